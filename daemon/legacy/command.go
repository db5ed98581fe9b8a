package legacy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"cairn/archive"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// command is a row of the table. run reads the fields, works, and writes the answer.
type command struct {
	name   string
	writes bool
	run    func(*session, context.Context) error
}

// commands is what a session can do, from number 1 on.
var commands = []command{
	{"QueryValidPaths", false, (*session).queryValidPaths},
	{"QueryPathInfos", false, (*session).queryPathInfos},
	{"DumpStorePath", false, (*session).dumpStorePath},
	{"ImportPaths", true, (*session).importPaths},
	{"ExportPaths", false, (*session).exportPaths},
	{"BuildPaths", true, (*session).buildPaths},
	{"QueryClosure", false, (*session).queryClosure},
	{"BuildDerivation", true, (*session).buildDerivation},
	{"AddToStoreNar", true, (*session).addToStoreNar},
}

func find(n protocol.ServeCommand) *command {
	if n < protocol.ServeQueryValidPaths || n > protocol.ServeAddToStoreNar {
		return nil
	}
	return &commands[n-1]
}

func (s *session) queryValidPaths(ctx context.Context) error {
	lock, substitute, paths := s.d.Bool(), s.d.Bool(), s.d.Paths()
	if err := s.d.Err(); err != nil {
		return err
	}
	if lock && s.opts.Write {
		if err := s.conn.AddTempRoots(ctx, paths); err != nil {
			return err
		}
	}
	query := s.conn.ValidPaths
	if substitute && s.opts.Write {
		query = s.conn.Obtain
	}
	valid, err := query(ctx, paths)
	s.e.Paths(valid)
	return err
}

func (s *session) queryPathInfos(ctx context.Context) error {
	paths := s.d.Paths()
	if err := s.d.Err(); err != nil {
		return err
	}
	valid, err := s.conn.ValidPaths(ctx, paths)
	if err != nil {
		return err
	}
	for _, p := range valid {
		i, err := s.conn.Info(ctx, p)
		if errors.Is(err, store.ErrNotValid) {
			continue
		}
		if err != nil {
			return err
		}
		s.e.Path(p)
		s.e.ServeInfo(i)
	}
	s.e.Text("")
	return nil
}

func (s *session) dumpStorePath(ctx context.Context) error {
	p := s.d.Path()
	if err := s.d.Err(); err != nil {
		return err
	}
	return s.conn.NAR(ctx, p, s.e.Wire())
}

// importPaths adds the objects of an export stream.
func (s *session) importPaths(ctx context.Context) error {
	err := archive.ReadExport(s.d.Wire(), s.d.Dir, func(info *store.Info, r io.Reader) error { return s.conn.Add(ctx, info, r) })
	s.e.Uint64(1)
	return err
}

func (s *session) exportPaths(ctx context.Context) error {
	s.d.Uint64()
	paths := s.d.Paths()
	if err := s.d.Err(); err != nil {
		return err
	}
	return archive.WriteExport(ctx, s.e.Wire(), s.conn, paths)
}

func (s *session) addToStoreNar(ctx context.Context) error {
	d := s.d
	info := &store.Info{
		Path: d.Path(), Deriver: d.OptionalPath(), NarHash: d.NarHash(), References: d.Paths(), RegisteredAt: d.Int63(), NarSize: d.Int63(),
		Ultimate: d.Bool(), Signatures: d.Texts(protocol.MaxPath), CA: d.ContentAddress(),
	}
	if err := d.Err(); err != nil {
		return err
	}
	if info.NarSize == 0 {
		return fmt.Errorf("add %s: the size of the archive is missing", info.Path)
	}
	contents := &io.LimitedReader{R: d.Wire(), N: info.NarSize}
	if err := s.conn.Add(ctx, info, contents); err != nil {
		return err
	}
	if contents.N > 0 {
		return fmt.Errorf("add %s: the archive ends %d bytes before its size", info.Path, contents.N)
	}
	s.e.Uint64(1)
	return nil
}

// queryClosure answers with everything that the paths refer to and, if wanted, with the outputs of derivations among that.
func (s *session) queryClosure(ctx context.Context) error {
	outputs, paths := s.d.Bool(), s.d.Paths()
	if err := s.d.Err(); err != nil {
		return err
	}
	closure, asked := paths, map[store.Path]bool{}
	for grown := true; grown; {
		infos, err := s.conn.Closure(ctx, closure)
		if err != nil {
			return err
		}
		closure = nil
		for _, i := range infos {
			closure = append(closure, i.Path)
		}
		grown = false
		if outputs {
			more, err := s.outputsOf(ctx, closure, asked)
			if err != nil {
				return err
			}
			closure, grown = append(closure, more...), len(more) > 0
		}
	}
	s.e.Paths(closure)
	return nil
}

// outputsOf returns the valid outputs of those derivations that were not asked about before.
func (s *session) outputsOf(ctx context.Context, paths []store.Path, asked map[store.Path]bool) ([]store.Path, error) {
	var list []store.Path
	for _, p := range paths {
		if !p.IsDerivation() || asked[p] {
			continue
		}
		asked[p] = true
		m, err := s.conn.OutputMap(ctx, p)
		if err != nil {
			return nil, err
		}
		for _, out := range m {
			if !out.IsZero() {
				list = append(list, out)
			}
		}
	}
	if list == nil {
		return nil, nil
	}
	return s.conn.ValidPaths(ctx, list)
}

// configure sets the limits of a build: nothing is substituted, as in Nix.
func (s *session) configure(ctx context.Context, o *protocol.ServeOptions) error {
	if o.Repeats != 0 {
		return errors.New("repeated builds are not supported any more; use --check")
	}
	return s.conn.SetOptions(ctx, &protocol.Options{
		KeepFailed: o.KeepFailed, MaxSilent: o.MaxSilent, MaxJobs: protocol.Keep, Cores: protocol.Keep,
		Overrides: map[string]string{"timeout": strconv.FormatUint(o.Timeout, 10), "max-build-log-size": strconv.FormatUint(o.MaxLog, 10)},
	})
}

// observer passes on what builders print, as Nix does: lines, nothing else.
func (s *session) observer() client.Observer {
	return client.ObserverFunc(func(m *protocol.Message) {
		switch {
		case m.Kind == protocol.KindNext:
			io.WriteString(s.opts.Log, m.Text)
		case m.Kind == protocol.KindResult && m.Result == protocol.ResBuildLogLine && len(m.Fields) > 0:
			io.WriteString(s.opts.Log, m.Fields[0].Text+"\n")
		}
	})
}

func (s *session) buildPaths(ctx context.Context) error {
	targets, limits := s.d.ServeTargets(), s.d.ServeOptions()
	if err := s.d.Err(); err != nil {
		return err
	}
	ctx, stop := s.attended(ctx)
	defer stop()
	err := s.configure(ctx, limits)
	var results []*protocol.BuildResult
	if err == nil {
		results, err = s.conn.Build(ctx, targets, client.Normal, s.observer())
	}
	status, text := failures(results)
	switch e := (*protocol.Error)(nil); {
	case errors.As(err, &e):
		status, text = 1, e.Error()
	case err != nil:
		return err
	}
	s.e.Uint64(status)
	if status != 0 {
		s.e.Text(text)
	}
	return nil
}

// failures makes one exit status and text of the results of builds, as Nix's programs do.
func failures(results []*protocol.BuildResult) (status uint64, text string) {
	var texts []string
	var failed uint64
	for _, r := range results {
		if r.Status.OK() {
			continue
		}
		texts = append(texts, r.Error)
		switch {
		case r.Status == protocol.TimedOut:
			status |= 4 | 1
		case r.Status == protocol.OutputRejected && strings.HasPrefix(r.Error, "hash mismatch"):
			status |= 4 | 2
		case r.Status == protocol.NotDeterministic:
			status |= 8
		case r.Status == protocol.PermanentFailure, r.Status == protocol.OutputRejected:
			status |= 4
		}
		failed = 1
	}
	if status != 0 {
		return status | 0x60, strings.Join(texts, "\n")
	}
	return failed, strings.Join(texts, "\n")
}

func (s *session) buildDerivation(ctx context.Context) error {
	path := s.d.Path()
	drv := s.d.BasicDerivation(strings.TrimSuffix(path.Name(), ".drv"))
	limits := s.d.ServeOptions()
	if err := s.d.Err(); err != nil {
		return err
	}
	ctx, stop := s.attended(ctx)
	defer stop()
	r, err := s.build(ctx, path, drv, limits)
	if err != nil {
		return err
	}
	s.e.ServeResult(r)
	return nil
}

// build turns what the daemon refuses into a result: the client has no other way to learn of it.
func (s *session) build(ctx context.Context, path store.Path, drv *derivation.Derivation, limits *protocol.ServeOptions) (*protocol.BuildResult, error) {
	if err := s.configure(ctx, limits); err != nil {
		return nil, err
	}
	r, err := s.conn.BuildDerivation(ctx, path, drv, client.Normal, s.observer())
	if e := (*protocol.Error)(nil); errors.As(err, &e) {
		return &protocol.BuildResult{Status: protocol.MiscFailure, Error: e.Error()}, nil
	}
	return r, err
}
