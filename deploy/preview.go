package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"cairn/archive/nar"
	"cairn/archive/ship"
	"cairn/client"
	"cairn/deploy/ssh"
	"cairn/services/system"
	"cairn/store"
)

// Preview is what a dry run can say of a machine without changing it. When the machine has everything that the system
// needs, its own plan says the rest; until then the difference of the two systems does.
type Preview struct {
	Bring   bool     `json:"bring"`             // cairn itself would be brought
	Total   int      `json:"total"`             // objects of the closure
	Missing int      `json:"missing"`           // of them would be sent
	Bytes   int64    `json:"bytes"`             // unpacked
	From    string   `json:"from,omitempty"`    // the current system
	Changes []string `json:"changes,omitempty"` // for people, one per line
}

// String prints the preview, indented, a line for each thing.
func (p *Preview) String() string {
	var b strings.Builder
	if p.Bring {
		b.WriteString("  bring    cairn itself, and set up its daemon\n")
	}
	if p.Missing > 0 {
		fmt.Fprintf(&b, "  send     %d of %d objects, %d KB unpacked\n", p.Missing, p.Total, (p.Bytes+1023)>>10)
	}
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "  change   %s\n", c)
	}
	return b.String()
}

// preview fills the result of a dry run.
func (d *deployment) preview(ctx context.Context) error {
	d.tell("connect", "connecting to %s", d.Environment)
	conn, err := d.Environment.Dial(ctx, &d.opts.SSH)
	if err != nil {
		return err
	}
	defer conn.Close()
	local, err := d.local.Dial(ctx)
	if err != nil {
		return err
	}
	defer local.Close()
	p := &Preview{}
	d.result.Preview, d.result.Status = p, Planned
	l, err := startAgent(ctx, conn, d.program.there(), d.progress)
	if absent, ok := errors.AsType[*absentError](err); ok {
		p.Bring = true
		if err := checkMachine(absent.machine); err != nil {
			return err
		}
		if err := p.count(ctx, local, nothing{}, d.System); err != nil {
			return err
		}
		return p.compare(ctx, conn, local, d.System)
	}
	if err != nil {
		return err
	}
	defer l.close()
	return d.previewWith(ctx, l, local, p)
}

// previewWith asks the agent that is there.
func (d *deployment) previewWith(ctx context.Context, l *link, local *client.Conn, p *Preview) error {
	r, err := l.ask(&Request{Op: "hello"})
	if err != nil {
		return err
	}
	p.From, d.result.Generation = r.Facts.System, r.Facts.Generation
	if r.Facts.DaemonError != "" {
		err = p.count(ctx, local, nothing{}, d.System)
	} else {
		err = p.count(ctx, local, sink{l, d.System}, d.System)
	}
	if err != nil {
		return err
	}
	if p.Missing > 0 {
		return p.compare(ctx, l.ssh, local, d.System)
	}
	if proceed, err := d.plan(l); err != nil || !proceed {
		return err
	}
	d.result.Status = Planned
	return nil
}

// nothing is the store of a machine that has none.
type nothing struct{}

func (nothing) Missing(_ context.Context, paths []store.Path) ([]store.Path, error) {
	return paths, nil
}

func (nothing) ImportBundle(context.Context, io.Reader) ([]store.Path, error) {
	return nil, errors.New("BUG: a dry run ships")
}

func (p *Preview) count(ctx context.Context, local *client.Conn, to ship.Sink, sys store.Path) error {
	cargo, err := ship.Load(ctx, local, to, []store.Path{sys})
	if err != nil {
		return err
	}
	p.Total, p.Missing, p.Bytes = cargo.Total, len(cargo.Missing), cargo.NarSize
	return nil
}

// compare reads both manifests, the machine's own without its help, and lists the differences.
func (p *Preview) compare(ctx context.Context, conn *ssh.Conn, local *client.Conn, sys store.Path) error {
	wanted, err := manifestOf(ctx, local, sys)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	err = conn.Run(ctx, ssh.Command{Argv: []string{"sh", "-c", `f=/cairn/var/profiles/system/services.json; [ ! -e $f ] || cat $f`}, Stdout: &limited{&out, system.MaxManifest}})
	if err != nil {
		return fmt.Errorf("read the current system: %w", err)
	}
	current := &system.Manifest{}
	if out.Len() > 0 {
		if current, err = system.ParseManifest(out.Bytes()); err != nil {
			return fmt.Errorf("read the current system: %w", err)
		}
	}
	p.Changes = Differences(current, wanted)
	return nil
}

// limited refuses more than so many bytes.
type limited struct {
	b    *bytes.Buffer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		return 0, errors.New("too long")
	}
	return l.b.Write(b)
}

// manifestOf reads the manifest of a system out of its archive.
func manifestOf(ctx context.Context, from store.Reader, sys store.Path) (*system.Manifest, error) {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := from.NAR(ctx, sys, pw)
		pw.CloseWithError(err)
		done <- err
	}()
	data, err := fileIn(pr, "services.json")
	_, rest := io.Copy(io.Discard, pr) // the daemon's connection wants to be read to the end
	if e := errors.Join(<-done, rest); err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("read system %s: %w", sys, err)
	}
	return system.ParseManifest(data)
}

// fileIn returns the contents of a file of an archive.
func fileIn(r io.Reader, name string) ([]byte, error) {
	a := nar.NewReader(r)
	for {
		h, err := a.Next()
		if err == io.EOF {
			return nil, fmt.Errorf("no file %s in it; is it a system?", name)
		}
		if err != nil {
			return nil, err
		}
		if h.Path == name {
			return io.ReadAll(io.LimitReader(a, system.MaxManifest+1))
		}
	}
}

// Differences lists what tells two systems apart, for people.
func Differences(a, b *system.Manifest) []string {
	var list []string
	units := func(m *system.Manifest) map[string]string {
		all := map[string]string{}
		for i := range m.Units {
			all[m.Units[i].Name] = m.Units[i].Definition() + m.Units[i].Reloads()
		}
		return all
	}
	files := func(m *system.Manifest) map[string]string {
		all := map[string]string{}
		for _, f := range m.Etc {
			all["/etc/"+f.Path] = strings.Join([]string{f.Source, f.Mode, f.User, f.Group}, " ")
		}
		return all
	}
	users := func(m *system.Manifest) map[string]string {
		all := map[string]string{}
		for _, u := range m.Users {
			b, _ := json.Marshal(u)
			all[u.Name] = string(b)
		}
		return all
	}
	list = append(list, differ("unit", units(a), units(b))...)
	list = append(list, differ("file", files(a), files(b))...)
	list = append(list, differ("user", users(a), users(b))...)
	if a.HostName != b.HostName {
		list = append(list, fmt.Sprintf("host name: %q to %q", a.HostName, b.HostName))
	}
	return list
}

func differ(kind string, a, b map[string]string) []string {
	var list []string
	for name, v := range b {
		if w, there := a[name]; !there {
			list = append(list, kind+" "+name+": new")
		} else if v != w {
			list = append(list, kind+" "+name+": changed")
		}
	}
	for name := range a {
		if _, there := b[name]; !there {
			list = append(list, kind+" "+name+": gone")
		}
	}
	slices.Sort(list)
	return list
}
