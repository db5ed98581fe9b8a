package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"cairn/archive/nar"
)

type storeListOptions struct{ recursive, long, directory, json bool }

func newStoreListCmd(env *Env) *cobra.Command {
	o := &storeListOptions{}
	cmd := &cobra.Command{
		Use:   "ls [-R] [-l] [-d] [--json] PATH",
		Short: "List the files of an object",
		Long: `List a directory of an object, or all below it with -R, with kind and size with -l.
The daemon reads the files, so that an object of a store below --root is listed as
well, wherever its files really are. Lines and JSON are those of 'nix store ls'.`,
		Example: `  cairn store ls ./result
  cairn store ls -lR /cairn/store/f2ib…-hello/share
  cairn store ls -R --json ./result`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error { return runStoreList(cmd.Context(), env, s, o, args[0]) })
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.recursive, "recursive", "R", false, "directories below as well")
	f.BoolVarP(&o.long, "long", "l", false, "kind, permissions, size, and where links point to")
	f.BoolVarP(&o.directory, "directory", "d", false, "the directory itself, not what is in it")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runStoreList(ctx context.Context, env *Env, s *session, o *storeListOptions, arg string) error {
	var top *file
	err := s.readNAR(ctx, env, arg, func(r io.Reader, rest string) (err error) {
		top, err = readFiles(r, strings.TrimPrefix(rest, "/"))
		return err
	})
	if err != nil {
		return err
	}
	return top.show(env, o, arg)
}

// listNAR prints all files of an archive.
func listNAR(env *Env, r io.Reader, asJSON bool) error {
	top, err := readFiles(r, "")
	if err != nil {
		return err
	}
	return top.show(env, &storeListOptions{recursive: true, long: true, json: asJSON}, ".")
}

// show prints a file or directory that arg names.
func (f *file) show(env *Env, o *storeListOptions, arg string) error {
	if o.json {
		b, err := json.Marshal(f.listing(o.recursive))
		env.printf("%s\n", b)
		return err
	}
	if f.Type != "directory" {
		env.printf("%s\n", f.line(path.Base(arg), o.long))
		return nil
	}
	if o.directory {
		env.printf("%s\n", f.line(".", o.long))
		return nil
	}
	f.print(env, o, ".")
	return nil
}

// file is a file of an object as 'nix store ls --json' shows it.
type file struct {
	Type       string           `json:"type"`
	Size       *int64           `json:"size,omitempty"`
	Executable bool             `json:"executable,omitempty"`
	Target     string           `json:"target,omitempty"`
	Entries    map[string]*file `json:"entries,omitempty"`
}

// unseen is what is not looked into; Nix shows it as {}.
var unseen = &file{}

// MarshalJSON shows a directory's entries also when there are none.
func (f *file) MarshalJSON() ([]byte, error) {
	if f == unseen {
		return []byte("{}"), nil
	}
	if f.Type == "directory" {
		return json.Marshal(struct {
			Type    string           `json:"type"`
			Entries map[string]*file `json:"entries"`
		}{f.Type, f.Entries})
	}
	type plain file
	return json.Marshal((*plain)(f))
}

// readFiles reads an archive and returns what is at or below a path.
func readFiles(r io.Reader, below string) (*file, error) {
	files := map[string]*file{}
	err := eachFile(r, func(h *nar.Header, _ io.Reader) error {
		if below != "" && h.Path != below && !strings.HasPrefix(h.Path, below+"/") {
			return nil
		}
		f := &file{Type: h.Type.String(), Executable: h.Executable, Target: h.Target}
		switch h.Type {
		case nar.Regular:
			f.Size = &h.Size
		case nar.Directory:
			f.Entries = map[string]*file{}
		}
		files[h.Path] = f
		if dir, name := path.Split(h.Path); h.Path != below {
			files[strings.TrimSuffix(dir, "/")].Entries[name] = f
		}
		return nil
	})
	if err == nil && files[below] == nil {
		err = errors.New("it does not exist")
	}
	return files[below], err
}

// listing is what JSON shows: one level, or all.
func (f *file) listing(all bool) *file {
	if all || f.Type != "directory" {
		return f
	}
	top := *f
	top.Entries = map[string]*file{}
	for name := range f.Entries {
		top.Entries[name] = unseen
	}
	return &top
}

// print writes what is in a directory, which is called name.
func (f *file) print(env *Env, o *storeListOptions, name string) {
	for _, base := range sortedKeys(f.Entries) {
		e := f.Entries[base]
		env.printf("%s\n", e.line(name+"/"+base, o.long))
		if o.recursive && e.Type == "directory" {
			e.print(env, o, name+"/"+base)
		}
	}
}

func (f *file) line(name string, long bool) string {
	if !long {
		return stripEscapes(name)
	}
	mode := map[string]string{"directory": "dr-xr-xr-x", "symlink": "lrwxrwxrwx", "regular": "-r--r--r--"}[f.Type]
	if f.Executable {
		mode = "-r-xr-xr-x"
	}
	size := int64(0)
	if f.Size != nil {
		size = *f.Size
	}
	text := fmt.Sprintf("%s %20d %s", mode, size, name)
	if f.Type == "symlink" {
		text += " -> " + f.Target
	}
	return stripEscapes(text)
}

// eachFile calls fn for everything in an archive and reads it to its end.
func eachFile(r io.Reader, fn func(*nar.Header, io.Reader) error) error {
	nr := nar.NewReader(r)
	for {
		h, err := nr.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = fn(h, nr)
		}
		if err != nil {
			return err
		}
	}
}

func newStoreCatCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "cat PATH",
		Short: "Print a file of an object",
		Long: `Print a regular file: an object that is one, or one inside an object.
The whole object is read and checked, and nothing but the file is printed.`,
		Example: `  cairn store cat /cairn/store/f2ib…-hello/share/doc
  cairn store cat ./result/etc/hosts`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				return s.readNAR(cmd.Context(), env, args[0], func(r io.Reader, rest string) error {
					return catNAR(env.Stdout, r, strings.TrimPrefix(rest, "/"))
				})
			})
		},
	}
}

func catNAR(w io.Writer, r io.Reader, name string) error {
	found := false
	err := eachFile(r, func(h *nar.Header, data io.Reader) error {
		if h.Path != name {
			return nil
		}
		if found = true; h.Type != nar.Regular {
			return fmt.Errorf("%q is a %s", "/"+name, h.Type)
		}
		_, err := io.Copy(w, data)
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("no file %q in the object", "/"+name)
	}
	return err
}

// readNAR gives fn the archive of the object that arg is or is inside of.
// An error of fn ends the connection: the rest of the archive is not wanted.
func (s *session) readNAR(ctx context.Context, env *Env, arg string, fn func(r io.Reader, rest string) error) error {
	p, rest, err := s.storePath(env, arg)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := s.NAR(ctx, p, w)
		w.CloseWithError(err)
		sent <- err
	}()
	err = fn(r, rest)
	if err != nil {
		err = fmt.Errorf("%s: %w", arg, err)
	}
	r.CloseWithError(err)
	if sendErr := <-sent; sendErr != nil && err == nil {
		return sendErr
	}
	return err
}
