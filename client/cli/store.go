package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cairn/archive/nar"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
)

func newStoreCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{Use: "store", GroupID: "store", Short: "Add, query and check store objects"}
	cmd.AddCommand(
		newStoreAddCmd(env),
		newStoreCopyCmd(env),
		newStorePathInfoCmd(env),
		newStoreClosureCmd(env),
		newStoreReferrersCmd(env),
		newStoreListCmd(env),
		newStoreCatCmd(env),
		newStoreDumpCmd(env),
		newStoreDeleteCmd(env),
		newStoreVerifyCmd(env),
		newStoreSignCmd(env),
	)
	return cmd
}

type storeAddOptions struct {
	name string
	flat bool
}

func newStoreAddCmd(env *Env) *cobra.Command {
	o := &storeAddOptions{}
	cmd := &cobra.Command{
		Use:   "add [--name NAME] [--flat] FILE…",
		Short: "Copy files and trees into the store",
		Long: `Copy files and directory trees into the store and print their store paths.
An object's path depends on its name and contents alone: adding it again changes
nothing. Links are copied as links, never followed.`,
		Example: `  cairn store add index.html
  cairn store add --name site ./public`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runStoreAdd(cmd.Context(), env, o, args) },
	}
	cmd.Flags().StringVar(&o.name, "name", "", "the object's `NAME`; default: the file's")
	cmd.Flags().BoolVar(&o.flat, "flat", false, "address a regular file by its bytes alone, without its executable bit")
	return cmd
}

func runStoreAdd(ctx context.Context, env *Env, o *storeAddOptions, args []string) error {
	if o.name != "" && len(args) > 1 {
		return &usageError{errors.New("--name is for one file")}
	}
	return env.withSession(ctx, func(s *session) error {
		for _, arg := range args {
			p, err := addFile(ctx, s, env, o, arg)
			if err != nil {
				return err
			}
			env.printf("%s\n", p)
		}
		return nil
	})
}

func addFile(ctx context.Context, s *session, env *Env, o *storeAddOptions, arg string) (store.Path, error) {
	name := o.name
	if name == "" {
		name = filepath.Base(env.path(arg))
	}
	if err := store.CheckName(name); err != nil {
		return store.Path{}, hinted(fmt.Errorf("add %s: %w", arg, err), "--name gives it another name")
	}
	method, open := store.Recursive, openNAR
	if o.flat {
		method, open = store.Flat, openRegular
	}
	r, err := open(env.path(arg))
	if err != nil {
		return store.Path{}, fmt.Errorf("add %s: %w", arg, err)
	}
	defer r.Close()
	info, err := s.AddToStore(ctx, name, method, store.SHA256, nil, r)
	if err != nil {
		return store.Path{}, err
	}
	return info.Path, nil
}

// openNAR returns the archive of a tree as it is read.
func openNAR(name string) (io.ReadCloser, error) {
	if _, err := os.Lstat(name); err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(nar.Dump(w, name)) }()
	return r, nil
}

func openRegular(name string) (io.ReadCloser, error) {
	fi, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, hinted(fmt.Errorf("%s is no regular file", name), "leave out --flat")
	}
	return os.Open(name)
}

type storeInfoOptions struct{ json, closure bool }

func newStorePathInfoCmd(env *Env) *cobra.Command {
	o := &storeInfoOptions{}
	cmd := &cobra.Command{
		Use:   "path-info [-r] [--json] PATH…",
		Short: "Show hash, size, references and signatures of objects",
		Long: `Show what the store knows of objects: size and hash of their archive, references,
the derivation that made them, content address and signatures.
With -r also of everything that they refer to, references first.`,
		Example: `  cairn store path-info /cairn/store/f2ib…-hello
  cairn store path-info -r --json ./result`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runStorePathInfo(cmd.Context(), env, o, args) },
	}
	cmd.Flags().BoolVarP(&o.closure, "recursive", "r", false, "the closure as well")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runStorePathInfo(ctx context.Context, env *Env, o *storeInfoOptions, args []string) error {
	return env.withSession(ctx, func(s *session) error {
		infos, err := infosOf(ctx, s, env, o.closure, args)
		if err != nil {
			return err
		}
		if o.json {
			return env.printJSON(infos)
		}
		rows := [][]string{{"PATH", "SIZE", "REFERENCES", "HASH", "CONTENT ADDRESS"}}
		for _, i := range infos {
			rows = append(rows, []string{i.Path.String(), formatSize(i.NarSize), strconv.Itoa(len(i.References)), i.NarHash.SRI(), i.CA.String()})
		}
		return env.printTable(rows)
	})
}

func infosOf(ctx context.Context, s *session, env *Env, closure bool, args []string) ([]*store.Info, error) {
	paths, err := s.objects(env, args)
	if err != nil {
		return nil, err
	}
	if closure {
		return s.Closure(ctx, paths)
	}
	var infos []*store.Info
	for _, p := range paths {
		i, err := s.Info(ctx, p)
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
	}
	return infos, nil
}

func newStoreClosureCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "closure [--json] PATH…",
		Short: "List what objects refer to, directly and indirectly",
		Long: `List the closure of objects: themselves and everything that they refer to,
references before what refers to them. This is what travels with an object.`,
		Example: `  cairn store closure ./result
  cairn store closure $(cairn build hello.star:hello)`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				infos, err := infosOf(cmd.Context(), s, env, true, args)
				if err != nil {
					return err
				}
				var paths []store.Path
				for _, i := range infos {
					paths = append(paths, i.Path)
				}
				return env.printPaths(asJSON, paths)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newStoreReferrersCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "referrers [--json] PATH",
		Short: "List the objects that refer to an object",
		Long: `List the valid objects that refer directly to an object. What keeps it alive is
another question, which 'cairn gc --why' answers.`,
		Example: `  cairn store referrers /cairn/store/f2ib…-hello
  cairn store referrers --json ./result`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				p, err := s.object(env, args[0])
				if err != nil {
					return err
				}
				if _, err := s.Info(cmd.Context(), p); err != nil {
					return err
				}
				list, err := s.Referrers(cmd.Context(), p)
				if err != nil {
					return err
				}
				return env.printPaths(asJSON, list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printPaths writes one path per line, or a JSON list.
func (e *Env) printPaths(asJSON bool, list []store.Path) error {
	if asJSON {
		if list == nil {
			list = []store.Path{}
		}
		return e.printJSON(list)
	}
	for _, p := range list {
		e.printf("%s\n", p)
	}
	return nil
}

func newStoreListCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "ls [--json] PATH",
		Short: "List the files of an object",
		Long: `List the files of an object with kind and size. The daemon reads them, so that an
object of a store below --root is listed as well, wherever its files really are.`,
		Example: `  cairn store ls ./result
  cairn store ls --json /cairn/store/f2ib…-hello`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				return s.readNAR(cmd.Context(), env, args[0], func(r io.Reader, rest string) error {
					return listNAR(env, r, strings.TrimPrefix(rest, "/"), asJSON)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// file is a line of a listing.
type file struct {
	Path       string `json:"path"`
	Type       string `json:"type"`
	Size       int64  `json:"size,omitempty"`
	Executable bool   `json:"executable,omitempty"`
	Target     string `json:"target,omitempty"`
}

// listNAR prints the files of an archive at or below a path.
func listNAR(env *Env, r io.Reader, below string, asJSON bool) error {
	files := []file{}
	err := eachFile(r, func(h *nar.Header, _ io.Reader) error {
		if h.Path == below || below == "" || strings.HasPrefix(h.Path, below+"/") {
			files = append(files, file{path.Join("/", h.Path), h.Type.String(), h.Size, h.Executable, h.Target})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no file %q in the object", below)
	}
	if asJSON {
		return env.printJSON(files)
	}
	for _, f := range files {
		env.printf("%s\n", f.line())
	}
	return nil
}

func (f file) line() string {
	mode := map[string]string{"directory": "dr-xr-xr-x", "symlink": "lrwxrwxrwx", "regular": "-r--r--r--"}[f.Type]
	if f.Executable {
		mode = "-r-xr-xr-x"
	}
	text := fmt.Sprintf("%s %12d %s", mode, f.Size, f.Path)
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

func newStoreDumpCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "dump PATH",
		Short: "Write an object's archive (NAR) to standard output",
		Long: `Write the archive of an object to standard output: its files in the one form that
its hash is made of. 'cairn archive --list' and '--extract' read it.`,
		Example: `  cairn store dump ./result | sha256sum
  cairn store dump ./result > result.nar`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				p, err := s.object(env, args[0])
				if err != nil {
					return err
				}
				return s.NAR(cmd.Context(), p, env.Stdout)
			})
		},
	}
}

func newStoreDeleteCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "delete PATH…",
		Short: "Delete objects that nothing keeps alive",
		Long: `Delete objects now instead of at the next collection. An object that is alive is
refused, and nothing is deleted then; 'cairn gc --why' says what keeps it.`,
		Example: `  cairn store delete /cairn/store/f2ib…-hello
  cairn store delete --root ~/try /cairn/store/f2ib…-hello`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				paths, err := s.objects(env, args)
				if err != nil {
					return err
				}
				r, err := s.Collect(cmd.Context(), &protocol.GCRequest{Paths: paths}, nil)
				if err != nil {
					return hinted(err, "'cairn gc --why PATH' says what keeps an object")
				}
				env.note("deleted %s, %s freed", count(len(r.Paths), "object"), formatSize(r.BytesFreed))
				return nil
			})
		},
	}
}

// errCorrupt says that a store is not as its database says.
var errCorrupt = errors.New("the store has errors")

func newStoreVerifyCmd(env *Env) *cobra.Command {
	contents, repair := false, false
	cmd := &cobra.Command{
		Use:   "verify [--contents] [--repair]",
		Short: "Check that the store is what its database says",
		Long: `Check that every valid object is there and that all its references are valid;
with --contents also that its bytes still have the recorded hash.
What is wrong is listed, and the exit code is 1.`,
		Example: `  cairn store verify --contents
  cairn store verify --root ~/try`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				errs, err := s.Verify(cmd.Context(), contents, repair, env.logLines())
				if err == nil && errs {
					err = errCorrupt
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&contents, "contents", false, "read and hash every object")
	cmd.Flags().BoolVar(&repair, "repair", false, "get corrupt objects anew where that is possible")
	return cmd
}

// logLines prints the daemon's log lines to standard error.
func (e *Env) logLines() client.Observer {
	return client.ObserverFunc(func(m *protocol.Message) {
		if m.Kind == protocol.KindNext {
			fmt.Fprint(e.Stderr, stripEscapes(strings.TrimRight(m.Text, "\n"))+"\n")
		}
	})
}

// count writes "1 object", "2 objects".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
