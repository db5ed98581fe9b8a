package cli

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"cairn/daemon/settings"
)

func newConfigCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{Use: "config", GroupID: "service", Short: "Show the daemon's settings"}
	cmd.AddCommand(newConfigShowCmd(env))
	return cmd
}

type configShowOptions struct {
	engineOptions
	json, changed bool
}

func newConfigShowCmd(env *Env) *cobra.Command {
	o := &configShowOptions{}
	cmd := &cobra.Command{
		Use:   "show [--changed] [--json] [--option NAME=VALUE] [NAME…]",
		Short: "List the daemon's settings and where each value comes from",
		Long: `List the settings that a daemon would start with now: nix.conf in the configuration
directory (NIX_CONF_DIR), with what it includes, the user's files, NIX_CONFIG, and
--option, which is the daemon's. Named settings come with what they mean.

Clients change settings for their sessions, with --option of Nix's programs: those
marked "anyone" everybody, those marked "trusted" who has the right "override" of
the access list, those marked "daemon" nobody.`,
		Example: `  cairn config show
  cairn config show --changed
  cairn config show substituters trusted-public-keys`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error { return runConfigShow(env, o, args) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.changed, "changed", false, "only those that something sets")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.StringArrayVar(&o.options, "option", nil, "a setting as the daemon's command line has it, `NAME=VALUE`; may be given more than once")
	return cmd
}

// shownSetting is a setting with its value.
type shownSetting struct {
	Name    string          `json:"name"`
	Value   string          `json:"value"`
	From    string          `json:"from"`
	Default string          `json:"default"`
	Rights  settings.Rights `json:"overriddenBy"`
	Aliases []string        `json:"aliases,omitempty"`
	Doc     string          `json:"doc"`
}

func runConfigShow(env *Env, o *configShowOptions, args []string) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	set, from, err := o.explain(layout, env.Getenv, slog.New(slog.NewTextHandler(env.Stderr, nil)))
	if err != nil {
		return err
	}
	wanted, err := findSettings(args)
	if err != nil {
		return err
	}
	list := []shownSetting{}
	defaults := settings.Defaults()
	for _, s := range wanted {
		shown := shownSetting{s.Name, s.Text(set), from[s.Name], s.Text(defaults), s.Rights, s.Aliases, s.Doc}
		if shown.From == "" {
			if o.changed {
				continue
			}
			shown.From, shown.Default = "default", shown.Value // which may be of this layout
		}
		list = append(list, shown)
	}
	switch {
	case o.json:
		return env.printJSON(list)
	case len(args) > 0:
		for _, s := range list {
			env.printf("%s = %s\n  %s\n  from: %s; default: %s; set for a session by: %s\n", s.Name, s.Value, s.Doc, s.From, cmp.Or(s.Default, "(empty)"), s.Rights)
		}
		return nil
	}
	rows := [][]string{{"NAME", "VALUE", "FROM"}}
	for _, s := range list {
		rows = append(rows, []string{s.Name, s.Value, s.From})
	}
	return env.printTable(rows)
}

// findSettings returns settings by name or alias, all without names.
func findSettings(names []string) ([]*settings.Setting, error) {
	all := settings.All()
	if len(names) == 0 {
		return all, nil
	}
	var list []*settings.Setting
	for _, n := range names {
		s, _ := settings.Find(n)
		if s == nil {
			return nil, &usageError{hinted(fmt.Errorf("%w '%s'", settings.ErrUnknown, n), "'cairn config show' lists all")}
		}
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list, nil
}
