package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/client"
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

	mark func(text string) error // writes it to the log of the disk's writes as well; nil without
}

// event is a line of the journal.
type event struct {
	Verb string     `json:"verb"` // see rig.replay
	Link string     `json:"link,omitempty"`
	Path store.Path `json:"path,omitzero"`
	N    int        `json:"n,omitempty"` // a generation
}

func (j *journal) write(e event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := j.f.Write(append(b, '\n')); err != nil || j.mark == nil {
		return err
	}
	return j.mark(string(b))
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

// load is what a driver does: so many steps of each kind of work, on a connection of its own for each entry.
type load struct {
	name   string
	work   []step
	steps  int      // of each entry; 0: until the daemon is gone
	engine engine   // does the work instead, on a store that it opens itself, and dies with it
	set    []string // settings of the daemon, as arguments of cairn daemon
	before string   // another load that is run first, and not killed
	only   []string // how the failpoints begin that it is killed at; nil: at all that it comes past
}

func (l *load) killedAt(point string) bool {
	return l.only == nil || slices.ContainsFunc(l.only, func(prefix string) bool { return strings.HasPrefix(point, prefix) })
}

// step is one request or a few that belong together.
type step func(d *driver, ctx context.Context, c *client.Conn) error

// drive runs a load until it is done or the daemon is gone. It writes refusals, which a healthy daemon has none of, to errs.
func drive(layout disk.Layout, bundles, journalFile string, l *load, errs io.Writer) error {
	f, err := os.OpenFile(journalFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	j := &journal{f: f, at: map[string]store.Path{}}
	if os.Getenv(markDisk) != "" {
		j.mark = markLog
	}
	d := &driver{layout: layout, journal: j, bundles: bundles, roots: filepath.Join(layout.StateDir, "gcroots"), errs: errs}
	if err := d.adopt(); err != nil {
		return err
	}
	if l.engine != nil {
		return d.run(l)
	}
	var wg sync.WaitGroup
	for _, work := range l.work {
		wg.Go(func() { d.loop(work, l.steps) })
	}
	wg.Wait()
	return nil
}

type driver struct {
	*journal
	layout  disk.Layout
	bundles string
	roots   string
	errs    io.Writer
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

// loop repeats one kind of work on a connection of its own until that breaks. A refusal does not break it.
func (d *driver) loop(work step, steps int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, d.layout.SocketPath, &client.Options{Dir: d.layout.Dir})
	if err != nil {
		return
	}
	defer func() { c.Close() }()
	for n := 0; steps == 0 || n < steps; n++ {
		err := work(d, ctx, c)
		if err == nil {
			continue
		}
		again, dialErr := client.Dial(ctx, d.layout.SocketPath, &client.Options{Dir: d.layout.Dir})
		if dialErr != nil {
			return // the daemon is gone
		}
		c.Close()
		c = again
		fmt.Fprintln(d.errs, "driver:", err)
	}
}
