package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/client"
	"cairn/store"
)

type archiveOptions struct {
	generateKey, authorize, export, importing, missing, list bool

	recursive, json  bool
	extract, keyName string
}

func newArchiveCmd(env *Env) *cobra.Command {
	o := &archiveOptions{}
	cmd := &cobra.Command{
		Use:     "archive --export [-r] PATH… | --import | --missing | --list | --extract DIR | --generate-key | --authorize",
		GroupID: "store",
		Short:   "Carry store objects as signed archives, and manage the keys",
		Long: `Carry store objects between machines in signed archives.

--export writes objects, signed with this machine's key, to standard output; with -r
their closure as well. --import reads such an archive: its signer must be in the
access list, and all of it must be whole, before anything becomes visible.
--missing reads paths, one per line, and prints those that the store lacks.
--list says what an archive (signed, or a bare NAR) on standard input contains, and
--extract unpacks a bare NAR to a directory that does not exist.

--generate-key makes the signing key; the secret half is readable by its owner
alone. --authorize reads a public key and lets its archives be imported, as
'cairn acl allow' does, which also lists and revokes.`,
		Example: `  cairn archive --export -r ./result > result.bundle
  cairn archive --import < result.bundle
  cairn archive --authorize < other-machine.pub`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return runArchive(cmd.Context(), env, o, args) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.export, "export", false, "write objects to standard output")
	f.BoolVarP(&o.recursive, "recursive", "r", false, "with --export: the closure as well")
	f.BoolVar(&o.importing, "import", false, "read objects from standard input")
	f.BoolVar(&o.missing, "missing", false, "print which of the paths on standard input are not in the store")
	f.BoolVar(&o.list, "list", false, "list the archive on standard input")
	f.StringVar(&o.extract, "extract", "", "unpack the NAR on standard input as `DIR`")
	f.BoolVar(&o.generateKey, "generate-key", false, "make the signing key")
	f.StringVar(&o.keyName, "key-name", "", "with --generate-key: the key's `NAME`; default: the host's name and -1")
	f.BoolVar(&o.authorize, "authorize", false, "let the public key on standard input sign imports")
	f.BoolVar(&o.json, "json", false, "with --list and --missing: print JSON")
	verbs := []string{"export", "import", "missing", "list", "extract", "generate-key", "authorize"}
	cmd.MarkFlagsMutuallyExclusive(verbs...)
	return cmd
}

func runArchive(ctx context.Context, env *Env, o *archiveOptions, args []string) error {
	if len(args) > 0 && !o.export {
		return &usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	switch {
	case o.export:
		return archiveExport(ctx, env, o, args)
	case o.importing:
		return env.withSession(ctx, func(s *session) error { return archiveImport(ctx, env, s) })
	case o.missing:
		return env.withSession(ctx, func(s *session) error { return archiveMissing(ctx, env, o, s) })
	case o.list:
		return archiveList(env, o)
	case o.extract != "":
		return damagedNAR(nar.Restore(bufio.NewReaderSize(env.Stdin, 1<<16), env.path(o.extract), nil))
	case o.generateKey:
		layout, err := env.layout()
		if err != nil {
			return err
		}
		return permissionHint(generateKey(env, layout, o.keyName))
	case o.authorize:
		return archiveAuthorize(env)
	}
	return &usageError{errors.New("one of --export, --import, --missing, --list, --extract, --generate-key, --authorize is needed")}
}

func archiveExport(ctx context.Context, env *Env, o *archiveOptions, args []string) error {
	if len(args) == 0 {
		return &usageError{errors.New("--export needs a PATH")}
	}
	if t := env.newTerminal(); t.file != nil && env.Stdout == io.Writer(t.file) {
		return &usageError{errors.New("an archive is not for a terminal; redirect standard output")}
	}
	return env.withSession(ctx, func(s *session) error {
		paths, err := s.objects(env, args)
		if err != nil {
			return err
		}
		return s.ExportBundle(ctx, paths, o.recursive, env.Stdout)
	})
}

func archiveImport(ctx context.Context, env *Env, s *session) error {
	paths, err := s.ImportBundle(ctx, env.Stdin)
	if err != nil {
		return err
	}
	return env.printPaths(false, paths)
}

// maxPathLine bounds a line that --missing reads.
const maxPathLine = 8 << 10

func archiveMissing(ctx context.Context, env *Env, o *archiveOptions, s *session) error {
	var asked []store.Path
	lines := bufio.NewScanner(env.Stdin)
	lines.Buffer(nil, maxPathLine)
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		if text == "" {
			continue
		}
		p, err := s.layout.Dir.ParsePath(text)
		if err != nil {
			return err
		}
		asked = append(asked, p)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read paths: %w", err)
	}
	have, err := client.Present(ctx, s, asked, false)
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(asked, func(p store.Path) bool { return have[p] })
	return env.printPaths(o.json, missing)
}

// narStart is how every NAR begins.
var narStart = []byte("\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1")

// damagedNAR makes the errors of a bare archive those of a bundle.
func damagedNAR(err error) error {
	if errors.Is(err, nar.ErrFormat) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", err, archive.ErrCorrupt)
	}
	return err
}

func archiveList(env *Env, o *archiveOptions) error {
	r := bufio.NewReaderSize(env.Stdin, 1<<16)
	if head, _ := r.Peek(len(narStart)); bytes.Equal(head, narStart) {
		return damagedNAR(listNAR(env, r, o.json))
	}
	layout, err := env.layout()
	if err != nil {
		return err
	}
	b, err := archive.OpenBundle(r, layout.Dir)
	if err != nil {
		return fmt.Errorf("list archive: %w", err)
	}
	if o.json {
		return env.printJSON(map[string]any{"key": b.Key(), "objects": b.Infos()})
	}
	env.note("signed by %s (not verified)", b.Key())
	for _, i := range b.Infos() {
		env.printf("%s\n", i.Path)
	}
	return nil
}

// maxKey bounds what --authorize reads.
const maxKey = 4 << 10

func archiveAuthorize(env *Env) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(env.Stdin, maxKey))
	if err != nil {
		return fmt.Errorf("read public key: %w", err)
	}
	key, err := archive.ParsePublicKey(strings.TrimSpace(string(b)))
	if err != nil {
		return hinted(fmt.Errorf("read public key: %w", err), "the other machine's key is its /etc/cairn/signing-key.pub")
	}
	added, err := archive.Authorize(aclFile(layout), key, archive.Import)
	if err != nil {
		return permissionHint(err)
	}
	if added {
		env.note("archives signed by %s may be imported from now on", key.Name())
	} else {
		env.note("archives signed by %s may already be imported", key.Name())
	}
	return nil
}
