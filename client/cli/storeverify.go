package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
	"cairn/store/disk"
)

// errCorrupt says that a store is not as its database says.
var errCorrupt = errors.New("the store has errors")

type storeVerifyOptions struct {
	all, closure, contents, noContents, repair, dryRun, json bool
	sigsNeeded                                               int
	limit                                                    string
}

func newStoreVerifyCmd(env *Env) *cobra.Command {
	o := &storeVerifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify [-r] [--no-contents] [--repair] [--json] [PATH…]",
		Short: "Check that the store is what its database says",
		Long: `Check that objects are there, that all their references are valid, and that their
bytes still have the recorded hash; without PATH all objects, the pool of hard links,
and whether the store directory has files that nobody knows. An object whose files
have disappeared and that nothing refers to is dropped from the database.

What has been read before is compared by its BLAKE3 hash, which was taken of the same
bytes as SHA-256 and is faster, and by SHA-256 again where that differs.

What is wrong is listed, and the exit code is 1 if any of it is left.`,
		Example: `  cairn store verify
  cairn store verify -r ./result
  cairn store verify --root ~/try --no-contents`,
		RunE: func(cmd *cobra.Command, args []string) error { return runStoreVerify(cmd.Context(), env, o, args) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.all, "all", false, "all objects, which is the default without PATH")
	f.BoolVarP(&o.closure, "closure", "r", false, "everything that the objects refer to as well")
	f.BoolVar(&o.contents, "contents", false, "read and hash every object, which is the default")
	f.BoolVar(&o.noContents, "no-contents", false, "only look whether files and references are there")
	f.BoolVar(&o.repair, "repair", false, "repair what is wrong, as 'cairn store repair' does")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.StringVar(&o.limit, "limit", "", "read at most `SIZE` per second, for example 100M")
	f.IntVar(&o.sigsNeeded, "sigs-needed", 0, "objects must have `N` signatures by keys of trusted-public-keys or of the access list, or be addressed by their contents")
	f.Lookup("contents").Hidden = true
	cmd.MarkFlagsMutuallyExclusive("contents", "no-contents")
	return cmd
}

func runStoreVerify(ctx context.Context, env *Env, o *storeVerifyOptions, args []string) error {
	if o.all && len(args) > 0 {
		return &usageError{errors.New("--all is instead of paths")}
	}
	req := &protocol.VerifyRequest{Contents: !o.noContents, Repair: o.repair, DryRun: o.dryRun}
	if o.limit != "" {
		var err error
		if req.Limit, err = parseSize(o.limit); err == nil && req.Limit == 0 {
			err = errors.New("nothing per second would take for ever")
		}
		if err != nil {
			return &usageError{fmt.Errorf("--limit: %w", err)}
		}
	}
	return env.withSession(ctx, func(s *session) error {
		var err error
		if len(args) > 0 {
			if req.Paths, err = verifiedPaths(ctx, env, s, o.closure, args); err != nil {
				return err
			}
		}
		p := env.newProgress(false)
		r, err := s.Check(ctx, req, verifyProgress(p, time.Now()), o.planned(env, p))
		p.close()
		if err == nil && o.sigsNeeded > 0 {
			err = findUntrusted(ctx, env, s, o.sigsNeeded, req.Paths, r)
		}
		if err != nil {
			return err
		}
		if o.json {
			err = env.printJSON(r)
		} else {
			printFindings(env, o, r)
		}
		if err == nil && r.Left > 0 {
			err = corrupt(o, r)
		}
		return err
	})
}

// verifyProgress draws how far it is and how long it will take, from the start.
func verifyProgress(p *progress, start time.Time) client.Observer {
	return client.ObserverFunc(func(m *protocol.Message) {
		switch {
		case m.Kind == protocol.KindNext:
			p.line("%s", strings.TrimRight(m.Text, "\n"))
		case m.Kind == protocol.KindResult && m.Result == protocol.ResProgress && len(m.Fields) == 6:
			read, size := int64(m.Fields[4].Number), int64(m.Fields[5].Number)
			text := fmt.Sprintf("%d of %s, %s of %s, %d bad", m.Fields[0].Number, count(int(m.Fields[1].Number), "object"),
				formatSize(read), formatSize(size), m.Fields[3].Number)
			if taken := time.Since(start); read > 0 && read < size && taken > time.Second {
				left := time.Duration(float64(taken) * float64(size-read) / float64(read))
				text += fmt.Sprintf(", about %v to go", left.Round(time.Second))
			}
			p.total("%s", text)
		}
	})
}

// verifiedPaths also accepts objects that are registered and have disappeared: whether they are known, the daemon says.
func verifiedPaths(ctx context.Context, env *Env, s *session, closure bool, args []string) ([]store.Path, error) {
	paths, err := s.objects(env, args)
	if err != nil || !closure {
		return paths, err
	}
	infos, err := s.Closure(ctx, paths)
	if err != nil {
		return nil, err
	}
	paths = nil
	for _, i := range infos {
		paths = append(paths, i.Path)
	}
	return paths, nil
}

// untrustedKind is a finding of ours, which the daemon does not look for.
const untrustedKind = "untrusted"

// findUntrusted adds the objects that have too few signatures to the findings.
func findUntrusted(ctx context.Context, env *Env, s *session, needed int, paths []store.Path, r *protocol.VerifyResult) error {
	keys, err := trustedKeys(env, s.layout)
	if err != nil {
		return err
	}
	if paths == nil {
		if paths, err = s.AllPaths(ctx); err != nil {
			return err
		}
	}
	for _, p := range paths {
		info, err := s.Info(ctx, p)
		if errors.Is(err, store.ErrNotValid) {
			continue // found before
		}
		if err != nil {
			return err
		}
		if !info.CA.IsZero() && info.CheckContentAddress() == nil || signatures(info, keys) >= needed {
			continue
		}
		r.Findings = append(r.Findings, protocol.Finding{Kind: untrustedKind, Path: p.String(), Text: fmt.Sprintf("path '%s' is untrusted", p)})
		r.Left++
	}
	return nil
}

// signatures counts the keys by which an object is signed.
func signatures(info *store.Info, keys []archive.PublicKey) (n int) {
	for _, k := range keys {
		if _, ok := archive.VerifyInfo(info, []archive.PublicKey{k}); ok {
			n++
		}
	}
	return n
}

// trustedKeys returns the keys of trusted-public-keys and those of the access list that may import.
func trustedKeys(env *Env, layout disk.Layout) ([]archive.PublicKey, error) {
	set, err := (&engineOptions{}).settings(layout, env.Getenv, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	var keys []archive.PublicKey
	for _, text := range set.TrustedPublicKeys {
		k, err := archive.ParsePublicKey(text)
		if err != nil {
			return nil, fmt.Errorf("trusted-public-keys: %w", err)
		}
		keys = append(keys, k)
	}
	acl, err := archive.LoadACL(aclFile(layout))
	if err != nil {
		return nil, err
	}
	for _, k := range acl.Keys(archive.Import) {
		if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

func corrupt(o *storeVerifyOptions, r *protocol.VerifyResult) error {
	err := fmt.Errorf("%w: %s left", errCorrupt, count(r.Left, "problem"))
	switch {
	case o.repair:
		return err
	case r.Findings[len(r.Findings)-1].Kind == untrustedKind && r.Findings[0].Kind == untrustedKind:
		return hinted(err, "'cairn store sign PATH' signs what you have reason to trust")
	}
	return hinted(err, "'cairn store repair --dry-run --all' says what can be done about it")
}

func printFindings(env *Env, o *storeVerifyOptions, r *protocol.VerifyResult) {
	for _, f := range r.Findings {
		env.printf("%s\n", stripEscapes(f.Text))
		switch {
		case f.Fixed && f.How == "removed":
			env.printf("  removed\n")
		case f.Fixed:
			env.printf("  repaired from %s\n", stripEscapes(f.How))
		case o.repair && o.dryRun:
			env.printRemedies(&f)
		case f.Error != "":
			env.printf("  cannot be repaired: %s\n", stripEscapes(f.Error))
			env.printDeletion(&f)
		}
	}
	env.note("%s checked, %s read, %s, %d left", count(r.Paths, "object"), formatSize(r.Bytes), count(len(r.Findings), "finding"), r.Left)
}

func newStoreOptimiseCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "optimise [--json]",
		Short: "Make equal files hard links to save space",
		Long: `Make files of the store that have the same contents hard links to one file. Each object
is verified before its files become links; damaged ones are left alone. It may
run at any time; a second run reads only what is new.`,
		Example: `  cairn store optimise
  cairn store optimise --root ~/try --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				r, err := s.Optimise(cmd.Context(), env.logLines())
				if err != nil {
					return err
				}
				if asJSON {
					return env.printJSON(r)
				}
				env.printf("%.2f MiB freed by hard-linking %d files\n", float64(r.Bytes)/(1<<20), r.Files)
				if r.Skipped > 0 {
					env.note("%s not touched because they are damaged; 'cairn store repair --dry-run --all' lists them", count(r.Skipped, "object"))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
