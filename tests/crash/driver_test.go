package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cairn/archive/nar"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/derivation"
	"cairn/derivation/eval"
	"cairn/store"
	"cairn/store/disk"
)

// The driver is a process of its own: several clients that load the daemon and record what was
// acknowledged. It ends when the daemon is gone.

// journal records what may be relied on, one event per line, written before the next request.
type journal struct {
	mu sync.Mutex
	f  *os.File
	at map[string]store.Path // rooted now: link → path
}

// event is a line of the journal.
type event struct {
	Verb string     `json:"verb"` // "add", "build", "import", "root", "unroot", "collect"
	Link string     `json:"link,omitempty"`
	Path store.Path `json:"path,omitzero"`
}

func (j *journal) write(e event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = j.f.Write(append(b, '\n'))
	return err
}

// root keeps a path that the daemon has acknowledged: link first, then the record that it counts.
func (j *journal) root(roots, verb string, p store.Path) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.write(event{Verb: verb, Path: p}); err != nil {
		return err
	}
	link := filepath.Join(roots, fmt.Sprintf("%s-%d", verb, rand.Uint64()))
	if err := os.Symlink(p.String(), link); err != nil {
		return err
	}
	j.at[link] = p
	return j.write(event{Verb: "root", Link: link, Path: p})
}

// trim takes roots away until at most keep are left: record first, then the link.
func (j *journal) trim(keep int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for link := range j.at { // in random order
		if len(j.at) <= keep {
			break
		}
		if err := j.write(event{Verb: "unroot", Link: link}); err != nil {
			return err
		}
		if err := os.Remove(link); err != nil {
			return err
		}
		delete(j.at, link)
	}
	return nil
}

// drive runs the load until the daemon is gone, and returns the errors that are not that.
func drive(layout disk.Layout, bundles, journalFile string) error {
	f, err := os.OpenFile(journalFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	j := &journal{f: f, at: map[string]store.Path{}}
	d := &driver{layout: layout, journal: j, bundles: bundles, roots: filepath.Join(layout.StateDir, "gcroots")}
	if err := d.adopt(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, work := range []func(context.Context, *client.Conn) error{d.add, d.add, d.build, d.build, d.importBundle, d.collect} {
		wg.Go(func() { d.loop(work) })
	}
	wg.Wait()
	return nil
}

type driver struct {
	*journal
	layout  disk.Layout
	bundles string
	roots   string
}

// adopt finds the roots that earlier drivers left.
func (d *driver) adopt() error {
	links, err := filepath.Glob(filepath.Join(d.roots, "*-*"))
	if err != nil {
		return err
	}
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil {
			if p, err := store.ParsePath(target); err == nil {
				d.at[l] = p
			}
		}
	}
	return nil
}

// loop repeats one kind of work on a connection of its own until that breaks.
func (d *driver) loop(work func(context.Context, *client.Conn) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, d.layout.SocketPath, &client.Options{Dir: d.layout.Dir})
	if err != nil {
		return
	}
	defer c.Close()
	for err == nil {
		err = work(ctx, c)
	}
	if _, refused := err.(*refusal); refused {
		fmt.Fprintln(os.Stderr, "driver:", err)
	}
}

// refusal is an answer that a healthy daemon must not give; a lost connection is none.
type refusal struct{ error }

func (d *driver) add(ctx context.Context, c *client.Conn) error {
	dir, err := os.MkdirTemp("", "crash")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "tree")
	if err := randomTree(tree); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := nar.Dump(&b, tree); err != nil {
		return err
	}
	info, err := c.AddToStore(ctx, fmt.Sprintf("tree-%d", rand.IntN(1000)), store.Recursive, store.SHA256, nil, &b)
	if err != nil {
		return err
	}
	text, err := c.AddToStore(ctx, "text", store.Text, store.SHA256, []store.Path{info.Path}, bytes.NewReader([]byte(info.Path.String()+"\n")))
	if err != nil {
		return err
	}
	return d.root(d.roots, "add", text.Path)
}

func randomTree(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range 1 + rand.IntN(12) {
		b := make([]byte, rand.IntN(1<<rand.IntN(17)))
		for k := range b {
			b[k] = byte(rand.Uint32())
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// recipe is a floating content-addressed derivation that no store knows: built in the daemon, or in a sandbox.
func recipe() *derivation.Derivation {
	drv := &derivation.Derivation{
		Name:    "built",
		Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}},
		System:  "builtin", Builder: "builtin:tree",
		Env: map[string]string{
			"name": "built", "out": derivation.Placeholder("out"),
			"tree": fmt.Sprintf(`{"a/b":{"text":"%d\n"},"c":{"symlink":"a/b"}}`, rand.Uint64()),
		},
	}
	if rand.IntN(4) == 0 && sandbox.Available() == nil {
		drv.System, drv.Builder = eval.System(), "/bin/sh"
		drv.Args = []string{"-c", fmt.Sprintf("echo %d > $out", rand.Uint64())}
		delete(drv.Env, "tree")
	}
	return drv
}

// build builds a recipe.
func (d *driver) build(ctx context.Context, c *client.Conn) error {
	drv := recipe()
	info, err := c.AddToStore(ctx, "built.drv", store.Text, store.SHA256, drv.References(), bytes.NewReader(drv.ATerm()))
	if err != nil {
		return err
	}
	results, err := c.Build(ctx, []protocol.Target{{Path: info.Path, Outputs: protocol.All()}}, client.Normal, nil)
	if err != nil {
		return err
	}
	for _, r := range results {
		if !r.Status.OK() {
			return &refusal{fmt.Errorf("build %s: %s: %s", info.Path, r.Status, r.Error)}
		}
		for _, o := range r.Outputs {
			if err := d.root(d.roots, "build", o.OutPath); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *driver) importBundle(ctx context.Context, c *client.Conn) error {
	files, err := filepath.Glob(filepath.Join(d.bundles, "*.bundle"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no bundles in %s: %w", d.bundles, err)
	}
	f, err := os.Open(files[rand.IntN(len(files))])
	if err != nil {
		return err
	}
	defer f.Close()
	paths, err := c.ImportBundle(ctx, f)
	if err != nil {
		return err
	}
	for _, p := range paths {
		if err := d.root(d.roots, "import", p); err != nil {
			return err
		}
	}
	return nil
}

func (d *driver) collect(ctx context.Context, c *client.Conn) error {
	if err := d.trim(30); err != nil {
		return err
	}
	if _, err := c.Collect(ctx, &protocol.GCRequest{}, nil); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(event{Verb: "collect"})
}
