package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
)

// printJSON writes v, indented, to standard output.
func (e *Env) printJSON(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printTable writes rows in aligned columns; the first row is the heading.
func (e *Env) printTable(rows [][]string) error {
	w := tabwriter.NewWriter(e.Stdout, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, stripEscapes(strings.Join(row, "\t")))
	}
	return w.Flush()
}

func (e *Env) printf(format string, args ...any) {
	fmt.Fprintf(e.Stdout, format, args...)
}

// note tells a person something beside the result.
func (e *Env) note(format string, args ...any) {
	fmt.Fprintf(e.Stderr, "%s\n", stripEscapes(fmt.Sprintf(format, args...)))
}
