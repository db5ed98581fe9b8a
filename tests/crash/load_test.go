package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cairn/archive/nar"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/derivation"
	"cairn/derivation/eval"
	"cairn/store"
	"cairn/store/storetest"
)

// loads are what daemons are killed under.
var loads = []*load{
	{name: "mixed", work: []step{(*driver).add, (*driver).add, (*driver).build, (*driver).build, (*driver).importBundle, (*driver).collect}},
	{name: "power", work: []step{(*driver).add, (*driver).build, (*driver).importBundle, (*driver).addRoot, (*driver).addEqual, (*driver).link, (*driver).switchProfile, (*driver).collect}},
	{name: "add", work: []step{(*driver).add, (*driver).addFile}, steps: 12},
	{name: "clients", work: []step{addText, addText, addText, addText, addText, addText, addText, addText}, steps: 12},
	{name: "import", work: []step{(*driver).importNew}, steps: 12, only: []string{"disk/add/", "disk/import/", "disk/pool/", "meta/"}},
	{name: "copy", work: []step{(*driver).copyMany}, steps: 6},
	{name: "build", work: []step{(*driver).build, (*driver).build}, steps: 8},
	{name: "gc", work: []step{(*driver).add, (*driver).litter, (*driver).collect}, steps: 10},
	{name: "optimise", work: []step{(*driver).addEqual, (*driver).addEqual, (*driver).optimise}, steps: 6},
	{name: "optimise-at-once", work: []step{(*driver).addEqual, (*driver).addEqual, (*driver).collect}, steps: 8, set: []string{"auto-optimise-store=true", "optimise-on-add=false"}},
	{name: "roots", work: []step{(*driver).addRoot, (*driver).addNamedRoot}, steps: 8},
	{name: "expiry", work: []step{(*driver).expireRoots}, steps: 1, only: []string{"disk/root/removed"}},
	{name: "garbage", work: []step{(*driver).add, (*driver).addEqual, (*driver).unroot}, steps: 6, only: []string{}},
	{name: "lowspace", before: "garbage", work: []step{(*driver).add, (*driver).addEqual}, steps: 6, set: []string{"min-free=100%"}, only: []string{"daemon/lowspace/", "disk/delete/", "gc/"}},
	{name: "repair", work: []step{(*driver).repair}, steps: 6},
	{name: "scrub", work: []step{(*driver).scrub}, steps: 1, set: []string{"scrub-interval=1", "scrub-rate=0"}, only: []string{"disk/replace/", "disk/scrub/"}},
	{name: "engine", engine: (*driver).engineWork, steps: 4},
	{name: "profile", engine: (*driver).profileWork, steps: 6},
	{name: "rebuild", engine: (*driver).rebuildWork, steps: 2, only: []string{"disk/rebuild/", "meta/"}},
	{name: "open", engine: (*driver).openWork},
}

func loadNamed(name string) *load {
	for _, l := range loads {
		if l.name == name {
			return l
		}
	}
	panic("BUG: no load " + name)
}

// add adds a tree, and a text that refers to it.
func (d *driver) add(ctx context.Context, c *client.Conn) error {
	return d.addTree(ctx, c, randomTree)
}

// addEqual adds a tree whose files are those of other trees.
func (d *driver) addEqual(ctx context.Context, c *client.Conn) error {
	return d.addTree(ctx, c, equalTree)
}

func (d *driver) addTree(ctx context.Context, c *client.Conn, fill func(dir string) error) error {
	dir, err := os.MkdirTemp("", "crash")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "tree")
	if err := fill(tree); err != nil {
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

// addFile adds a file that is too large to be held in memory.
func (d *driver) addFile(ctx context.Context, c *client.Conn) error {
	info, err := c.AddToStore(ctx, "file", store.Flat, store.SHA256, nil, bytes.NewReader(randomBytes(1<<20+rand.IntN(1<<18))))
	if err != nil {
		return err
	}
	return d.root(d.roots, "add", info.Path)
}

func addText(d *driver, ctx context.Context, c *client.Conn) error {
	info, err := c.AddToStore(ctx, "small", store.Text, store.SHA256, nil, bytes.NewReader(randomBytes(100)))
	if err != nil {
		return err
	}
	return d.root(d.roots, "add", info.Path)
}

func randomTree(dir string) error {
	return makeTree(dir, func() []byte { return randomBytes(rand.IntN(1 << rand.IntN(17))) })
}

func equalTree(dir string) error {
	return makeTree(dir, func() []byte {
		return bytes.Repeat([]byte{byte('a' + rand.IntN(6))}, []int{5000, 5000, 100_000}[rand.IntN(3)])
	})
}

func makeTree(dir string, contents func() []byte) error {
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		return err
	}
	for i := range 1 + rand.IntN(12) {
		if err := os.WriteFile(filepath.Join(dir, []string{"", "sub"}[i%2], fmt.Sprintf("f%d", i)), contents(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(rand.Uint32())
	}
	return b
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
	if rand.IntN(3) == 0 && sandbox.Available() == nil {
		drv.System, drv.Builder = eval.System(), "/bin/sh"
		drv.Args = []string{"-c", fmt.Sprintf("for i in 1 2 3 4 5 6 7 8 9; do echo '%01000d'; done; echo %d > $out", 1, rand.Uint64())}
		delete(drv.Env, "tree")
	}
	return drv
}

// build builds a recipe.
func (d *driver) build(ctx context.Context, c *client.Conn) error {
	_, _, err := d.buildOne(ctx, c)
	return err
}

func (d *driver) buildOne(ctx context.Context, c *client.Conn) (drv, out store.Path, err error) {
	recipe := recipe()
	info, err := c.AddToStore(ctx, "built.drv", store.Text, store.SHA256, recipe.References(), bytes.NewReader(recipe.ATerm()))
	if err != nil {
		return drv, out, err
	}
	outs, err := buildPath(ctx, c, info.Path, client.Normal)
	if err != nil {
		return drv, out, err
	}
	if err := d.root(d.roots, "build", info.Path); err != nil {
		return drv, out, err
	}
	return info.Path, outs, d.root(d.roots, "build", outs)
}

func buildPath(ctx context.Context, c *client.Conn, drv store.Path, mode client.Mode) (out store.Path, err error) {
	results, err := c.Build(ctx, []protocol.Target{{Path: drv, Outputs: protocol.All()}}, mode, nil)
	if err != nil {
		return out, err
	}
	for _, r := range results {
		if !r.Status.OK() {
			return out, fmt.Errorf("build %s: %s: %s", drv, r.Status, r.Error)
		}
		for _, o := range r.Outputs {
			out = o.OutPath
		}
	}
	return out, nil
}

// repair builds, damages what was built, and has it repaired.
func (d *driver) repair(ctx context.Context, c *client.Conn) error {
	drv, out, err := d.buildOne(ctx, c)
	if err != nil {
		return err
	}
	if err := d.note("damage", out); err != nil {
		return err
	}
	if err := damage(d.layout.RealPath(out)); err != nil {
		return err
	}
	if _, err := buildPath(ctx, c, drv, client.Repair); err != nil {
		return err
	}
	return d.note("mended", out)
}

// scrub builds, damages what was built, and has it repaired when the daemon has found that by itself.
func (d *driver) scrub(ctx context.Context, c *client.Conn) error {
	drv, out, err := d.buildOne(ctx, c)
	if err != nil {
		return err
	}
	if err := d.note("damage", out); err != nil {
		return err
	}
	if err := damage(d.layout.RealPath(out)); err != nil {
		return err
	}
	if err := waitFinding(ctx, c, out); err != nil {
		return err
	}
	if err := d.note("found", out); err != nil {
		return err
	}
	time.Sleep(1200 * time.Millisecond) // the next scrub begins meanwhile, and is killed, perhaps
	if err := d.note("mending", out); err != nil {
		return err
	}
	if _, err := buildPath(ctx, c, drv, client.Repair); err != nil {
		return err
	}
	return d.note("mended", out)
}

// waitFinding waits until the daemon knows that an object is damaged.
func waitFinding(ctx context.Context, c *client.Conn, p store.Path) error {
	for {
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if st.Scrub == nil {
			return errors.New("the daemon does not scrub")
		}
		if slices.ContainsFunc(st.Scrub.Damaged, func(f protocol.ScrubFinding) bool { return f.Path == p }) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s is not found to be damaged: %w", p, ctx.Err())
		}
	}
}

func (d *driver) note(verb string, p store.Path) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(event{Verb: verb, Path: p})
}

// damage gives a file other contents, and no other name of it.
func damage(path string) error {
	file := ""
	err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			file = name
		}
		return err
	})
	if err != nil {
		return err
	}
	os.Chmod(filepath.Dir(file), 0o755)
	if err := os.Remove(file); err != nil {
		return err
	}
	return os.WriteFile(file, []byte("damaged"), 0o444)
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

// importNew imports a bundle of which the store has nothing any more.
func (d *driver) importNew(ctx context.Context, c *client.Conn) error {
	if err := d.trim(0); err != nil {
		return err
	}
	if _, err := c.Collect(ctx, &protocol.GCRequest{}, nil); err != nil {
		return err
	}
	return d.importBundle(ctx, c)
}

// copyMany adds a chain of objects in one request.
func (d *driver) copyMany(ctx context.Context, c *client.Conn) error {
	var infos []*store.Info
	from := memory{}
	for n := range 20 {
		var refs []store.Path
		if n > 0 {
			refs = []store.Path{infos[n-1].Path}
		}
		archive := storetest.Tree(fmt.Sprint(rand.Uint64()))
		i := storetest.Source(d.layout.Dir, "copied", archive, refs...)
		infos, from[i.Path] = append(infos, i), archive
	}
	if err := c.AddFrom(ctx, infos, from); err != nil {
		return err
	}
	return d.root(d.roots, "copy", infos[len(infos)-1].Path)
}

// memory is archives.
type memory map[store.Path][]byte

func (m memory) Info(_ context.Context, p store.Path) (*store.Info, error) {
	return nil, fmt.Errorf("%s: %w", p, store.ErrNotValid)
}

func (m memory) NAR(_ context.Context, p store.Path, w io.Writer) error {
	_, err := w.Write(m[p])
	return err
}

// addRoot adds something and has the daemon root it.
func (d *driver) addRoot(ctx context.Context, c *client.Conn) error {
	info, err := c.AddToStore(ctx, "rooted", store.Text, store.SHA256, nil, bytes.NewReader(randomBytes(100)))
	if err != nil {
		return err
	}
	link := filepath.Join(d.roots, fmt.Sprintf("perm-%d", rand.Uint64()))
	if rand.IntN(2) == 0 { // somewhere else, so that it is an indirect one
		link = filepath.Join(d.layout.Root, filepath.Base(link))
	}
	if err := c.AddPermRoot(ctx, info.Path, link); err != nil {
		return err
	}
	return d.rooted(link, info.Path)
}

// rooted notes that the daemon has acknowledged a root.
func (d *driver) rooted(link string, p store.Path) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[link] = p
	return d.write(event{Verb: "linked", Link: link, Path: p})
}

// addNamedRoot adds something and has the daemon keep it under a name, at first for a time and then, perhaps, for ever.
func (d *driver) addNamedRoot(ctx context.Context, c *client.Conn) error {
	info, err := c.AddToStore(ctx, "named", store.Text, store.SHA256, nil, bytes.NewReader(randomBytes(100)))
	if err != nil {
		return err
	}
	req := &protocol.AddRootRequest{Path: info.Path, Name: fmt.Sprintf("root-%d", rand.Uint64())}
	if rand.IntN(2) == 0 {
		req.TTL = 3600
		if _, err := c.AddRoot(ctx, req); err != nil {
			return err
		}
		req.TTL = 0
	}
	r, err := c.AddRoot(ctx, req)
	if err != nil {
		return err
	}
	return d.rooted(r.Link, info.Path)
}

// expireRoots has the daemon keep objects for a second, and collects when that is over.
func (d *driver) expireRoots(ctx context.Context, c *client.Conn) error {
	for range 4 {
		info, err := c.AddToStore(ctx, "expiring", store.Text, store.SHA256, nil, bytes.NewReader(randomBytes(100)))
		if err != nil {
			return err
		}
		if _, err := c.AddRoot(ctx, &protocol.AddRootRequest{Path: info.Path, Name: fmt.Sprintf("root-%d", rand.Uint64()), TTL: 1}); err != nil {
			return err
		}
	}
	time.Sleep(2 * time.Second) // an expiry is a whole second
	return d.collect(ctx, c)
}

// unroot makes what was added garbage.
func (d *driver) unroot(context.Context, *client.Conn) error { return d.trim(2) }

// litter puts something into the store directory that is no object.
func (d *driver) litter(_ context.Context, c *client.Conn) error {
	info := storetest.Source(d.layout.Dir, "stray", storetest.File(fmt.Sprint(rand.Uint64())))
	dir := d.layout.RealPath(info.Path)
	return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "a"), nil, 0o444), os.WriteFile(filepath.Join(dir, "b"), nil, 0o444))
}

// optimise has equal files linked, some of them to entries of the pool that are no good, and collects.
func (d *driver) optimise(ctx context.Context, c *client.Conn) error {
	entries, err := filepath.Glob(filepath.Join(d.layout.RealDir, ".links", "*", "*"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if rand.IntN(2) == 0 {
			if err := d.spoil(e); err != nil {
				return err
			}
		}
	}
	if err := d.addEqual(ctx, c); err != nil {
		return err
	}
	if _, err := c.Optimise(ctx, nil); err != nil {
		return err
	}
	if rand.IntN(2) == 0 {
		return d.collect(ctx, c)
	}
	return nil
}

// spoil puts a file that is no good in the place of an entry of the pool. It never writes to what is there, which may be an object's.
func (d *driver) spoil(entry string) error {
	bad := filepath.Join(d.layout.StateDir, "spoilt")
	if err := os.WriteFile(bad, []byte("damaged"), 0o444); err != nil {
		return err
	}
	return os.Rename(bad, entry)
}

// link has equal files linked.
func (d *driver) link(ctx context.Context, c *client.Conn) error {
	if err := d.addEqual(ctx, c); err != nil {
		return err
	}
	_, err := c.Optimise(ctx, nil)
	return err
}

// switchProfile makes a generation, switches to it and deletes old ones.
func (d *driver) switchProfile(ctx context.Context, c *client.Conn) error {
	info, err := c.AddToStore(ctx, "generation", store.Text, store.SHA256, nil, bytes.NewReader(randomBytes(100)))
	if err != nil {
		return err
	}
	return d.newGeneration(info.Path)
}

func (d *driver) collect(ctx context.Context, c *client.Conn) error {
	if err := d.trim(10); err != nil {
		return err
	}
	if _, err := c.Collect(ctx, &protocol.GCRequest{}, nil); err != nil {
		return err
	}
	return d.note("collect", store.Path{})
}
