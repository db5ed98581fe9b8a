package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/store"
)

func newLogCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "log PATH",
		GroupID: "store",
		Short:   "Print the log of a build",
		Long: `Print what a builder wrote: PATH is a derivation, or an output of one that the store
remembers. The log of a running build is followed until the build ends.`,
		Example: `  cairn log ./result
  cairn log /cairn/store/0v3q…-hello.drv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				return runLog(cmd.Context(), env, s, args[0])
			})
		},
	}
}

func runLog(ctx context.Context, env *Env, s *session, arg string) error {
	p, err := s.object(env, arg)
	if err != nil {
		return err
	}
	drv, err := deriver(ctx, s, p)
	if err != nil {
		return err
	}
	text := &plainText{w: env.Stdout}
	if err := s.FollowLog(ctx, drv, text); err != nil {
		return err
	}
	return text.Flush()
}

// deriver finds the derivation that made an object.
func deriver(ctx context.Context, s *session, p store.Path) (store.Path, error) {
	if p.IsDerivation() {
		return p, nil
	}
	info, err := s.Info(ctx, p)
	if err != nil {
		return store.Path{}, err
	}
	if !info.Deriver.IsZero() {
		return info.Deriver, nil
	}
	if list, err := s.Derivers(ctx, p); err == nil && len(list) > 0 {
		return list[0], nil
	}
	return store.Path{}, fmt.Errorf("%s was not built here: no derivation of it is known", p)
}

// plainText removes escape sequences from what passes, line by line.
type plainText struct {
	w    io.Writer
	rest []byte
}

// maxLine is the length beyond which a line is passed on in pieces.
const maxLine = 64 << 10

func (t *plainText) Write(b []byte) (int, error) {
	t.rest = append(t.rest, b...)
	for len(t.rest) > 0 {
		end := lineEnd(t.rest)
		if end == 0 {
			break
		}
		if _, err := io.WriteString(t.w, stripEscapes(string(t.rest[:end]))); err != nil {
			return 0, err
		}
		t.rest = t.rest[end:]
	}
	return len(b), nil
}

// Flush writes a last line without its newline.
func (t *plainText) Flush() error {
	_, err := io.WriteString(t.w, stripEscapes(string(t.rest)))
	t.rest = nil
	return err
}

func lineEnd(b []byte) int {
	for i, c := range b {
		if c == '\n' {
			return i + 1
		}
	}
	if len(b) > maxLine {
		return len(b)
	}
	return 0
}
