package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client/config"
)

func newSystemSearchCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "search [WORD…]",
		Short: "Search the service types of the library",
		Long: `List the service types whose name, description or fields contain all WORDs. 'cairn
system show' prints one with its fields.`,
		Example: `  cairn system search web
  cairn system search --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			types, err := searchTypes(cmd.Context(), args)
			if err != nil {
				return err
			}
			if asJSON {
				return env.printJSON(types)
			}
			rows := [][]string{}
			for _, t := range types {
				rows = append(rows, []string{t.Name, t.Module, firstLine(t.Doc)})
			}
			return env.printTable(rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func searchTypes(ctx context.Context, words []string) ([]config.TypeDoc, error) {
	all, err := config.ServiceTypes(ctx)
	if err != nil {
		return nil, err
	}
	found := []config.TypeDoc{}
	for _, t := range all {
		if matches(t, words) {
			found = append(found, t)
		}
	}
	return found, nil
}

func matches(t config.TypeDoc, words []string) bool {
	text := t.Name + " " + t.Doc
	for _, f := range t.Fields {
		text += " " + f.Name + " " + f.Doc
	}
	text = strings.ToLower(text)
	for _, w := range words {
		if !strings.Contains(text, strings.ToLower(w)) {
			return false
		}
	}
	return true
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func newSystemShowCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "show TYPE",
		Short: "Show a service type and its fields",
		Long: `Show a service type of the library: what it is, where to load it from, what it
extends, and its fields with type, default and meaning.`,
		Example: `  cairn system show openssh
  cairn system show nginx --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return systemShow(cmd.Context(), env, asJSON, args[0]) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func systemShow(ctx context.Context, env *Env, asJSON bool, name string) error {
	all, err := config.ServiceTypes(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.Name == name {
			if asJSON {
				return env.printJSON(t)
			}
			env.printType(t)
			return nil
		}
	}
	return hinted(fmt.Errorf("no service type is called %q", name), "'cairn system search' lists them")
}

func (e *Env) printType(t config.TypeDoc) {
	e.printf("%s\n\n%s\n\n", t.Name, indent(t.Doc))
	if t.Module != "" {
		e.printf("  load(%q, %q)\n\n", t.Module, t.Name)
	}
	if len(t.Extends) > 0 {
		e.printf("  extends %s\n\n", strings.Join(t.Extends, ", "))
	}
	for _, f := range t.Fields {
		what := "required"
		if !f.Required {
			what = "default " + f.Default
		}
		e.printf("  %s: %s, %s\n%s\n", f.Name, f.Type, what, indent(indent(f.Doc)))
	}
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ")
}
