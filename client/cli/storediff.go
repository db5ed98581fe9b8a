package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cairn/store"
)

func newStoreDiffCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "diff-closures [--json] BEFORE AFTER",
		Short: "Show which packages two closures have in other versions or sizes",
		Long: `Show what differs between the closures of two objects, by package name: versions
that went and came, and how much larger or smaller the package is, if that is 8 KiB
or more. ∅ is no version at all, ε a name without one. Lines are those of
'nix store diff-closures'.`,
		Example: `  cairn store diff-closures /cairn/var/profiles/system-41-link /cairn/var/profiles/system-42-link
  cairn store diff-closures --json ./old ./result`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				var sides [2]packages
				for i, arg := range args {
					infos, err := infosOf(cmd.Context(), s, env, true, []string{arg})
					if err != nil {
						return err
					}
					sides[i] = packagesOf(infos)
				}
				changes := diffPackages(sides[0], sides[1])
				if asJSON {
					return env.printJSON(changes)
				}
				for _, c := range changes {
					env.printf("%s\n", c.line())
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// packages is sizes by name and version.
type packages map[string]map[string]int64

func packagesOf(infos []*store.Info) packages {
	all := packages{}
	for _, i := range infos {
		name, version := splitName(i.Path.Name())
		if all[name] == nil {
			all[name] = map[string]int64{}
		}
		all[name][version] += i.NarSize
	}
	return all
}

// splitName takes the name of an output off, which cannot be told from some versions, and splits at the first "-" before
// something else than a letter.
func splitName(name string) (pkg, version string) {
	if i := strings.LastIndexByte(name, '-'); i >= 0 && isOutput(name[i+1:]) {
		name = name[:i]
	}
	for i := 0; i+1 < len(name); i++ {
		if c := name[i+1] | 0x20; name[i] == '-' && (c < 'a' || c > 'z') {
			return name[:i], name[i+1:]
		}
	}
	return name, ""
}

func isOutput(s string) bool {
	if s == "lib32" || s == "lib64" {
		return true
	}
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") == ""
}

// packageChange is what is different about a package.
type packageChange struct {
	Name    string   `json:"name"`
	Removed []string `json:"removed"` // versions
	Added   []string `json:"added"`
	Before  int64    `json:"sizeBefore"` // bytes
	After   int64    `json:"sizeAfter"`
}

// noticed is from how many bytes on a change of size is shown.
const noticed = 8 << 10

func (c *packageChange) resized() bool { return max(c.After-c.Before, c.Before-c.After) >= noticed }

func (c *packageChange) line() string {
	var items []string
	if len(c.Removed)+len(c.Added) > 0 {
		items = append(items, showVersions(c.Removed)+" → "+showVersions(c.Added))
	}
	if c.resized() {
		items = append(items, fmt.Sprintf("%+.1f KiB", float64(c.After-c.Before)/1024))
	}
	return c.Name + ": " + strings.Join(items, ", ")
}

func showVersions(list []string) string {
	if len(list) == 0 {
		return "∅"
	}
	shown := slices.Clone(list)
	if i := slices.Index(shown, ""); i >= 0 {
		shown[i] = "ε"
		slices.Sort(shown)
	}
	return strings.Join(shown, ", ")
}

// diffPackages compares two closures, by name.
func diffPackages(before, after packages) []*packageChange {
	names := map[string]bool{}
	for name := range before {
		names[name] = true
	}
	for name := range after {
		names[name] = true
	}
	changes := []*packageChange{}
	for _, name := range sortedKeys(names) {
		c := &packageChange{Name: name, Removed: without(before[name], after[name]), Added: without(after[name], before[name])}
		for _, size := range before[name] {
			c.Before += size
		}
		for _, size := range after[name] {
			c.After += size
		}
		if c.resized() || len(c.Removed)+len(c.Added) > 0 {
			changes = append(changes, c)
		}
	}
	return changes
}

// without returns the versions in a that are not in b, sorted.
func without(a, b map[string]int64) []string {
	list := []string{}
	for _, v := range sortedKeys(a) {
		if _, ok := b[v]; !ok {
			list = append(list, v)
		}
	}
	return list
}
