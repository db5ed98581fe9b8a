package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"cairn/archive/nar"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/derivation/eval"
	"cairn/store"
)

// event is a line of a client's journal, written when the daemon has acknowledged it.
type event struct {
	Verb  string        `json:"verb"`
	Took  time.Duration `json:"took"`
	Paths []store.Path  `json:"paths,omitempty"` // that must be there from now on
}

// worker is one client.
type worker struct {
	*client.Conn
	journal *os.File
	known   []store.Path // that it has added or built
}

// work is the life of a client process.
func work(socket, journal, end string) error {
	until, err := time.Parse(time.RFC3339Nano, end)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(journal, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Until(until)+2*time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, socket, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	w := &worker{Conn: c, journal: f}
	for time.Now().Before(until) {
		for _, do := range []func(context.Context) error{w.add, w.query, w.build, w.query} {
			if err := do(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *worker) done(verb string, began time.Time, paths ...store.Path) error {
	b, err := json.Marshal(event{verb, time.Since(began), paths})
	if err != nil {
		return err
	}
	w.known = append(w.known, paths...)
	_, err = w.journal.Write(append(b, '\n'))
	return err
}

// add adds a file of some size and a text that refers to it.
func (w *worker) add(ctx context.Context) error {
	began := time.Now()
	contents := strings.Repeat(fmt.Sprintf("%016x", rand.Uint64()), 1+rand.IntN(1<<rand.IntN(14)))
	var b bytes.Buffer
	if err := file(&b, contents); err != nil {
		return err
	}
	tree, err := w.AddToStore(ctx, "file", store.Recursive, store.SHA256, nil, &b)
	if err != nil {
		return fmt.Errorf("add file: %w", err)
	}
	text, err := w.AddToStore(ctx, "text", store.Text, store.SHA256, []store.Path{tree.Path}, strings.NewReader(tree.Path.String()))
	if err != nil {
		return fmt.Errorf("add text: %w", err)
	}
	return w.done("add", began, tree.Path, text.Path)
}

// file writes the archive of one file.
func file(b *bytes.Buffer, contents string) error {
	n := nar.NewWriter(b)
	if err := n.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(contents))}); err != nil {
		return err
	}
	if _, err := n.Write([]byte(contents)); err != nil {
		return err
	}
	return n.Close()
}

// query asks for what the client knows to be there.
func (w *worker) query(ctx context.Context) error {
	p := w.known[rand.IntN(len(w.known))]
	began := time.Now()
	info, err := w.Info(ctx, p)
	if err != nil {
		return fmt.Errorf("query %s: %w", p, err)
	}
	closure, err := w.Closure(ctx, []store.Path{p})
	if err != nil || len(closure) < 1+len(info.References) {
		return fmt.Errorf("closure of %s: %d paths: %w", p, len(closure), err)
	}
	if err := w.NAR(ctx, p, &bytes.Buffer{}); err != nil {
		return fmt.Errorf("archive of %s: %w", p, err)
	}
	return w.done("query", began)
}

// build builds something new, in a sandbox.
func (w *worker) build(ctx context.Context) error {
	began := time.Now()
	d := &derivation.Derivation{
		Name: "built", System: eval.System(), Builder: "/bin/sh",
		Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}},
		Args:    []string{"-c", fmt.Sprintf("echo %d > $out", rand.Uint64())},
		Env:     map[string]string{"name": "built", "out": derivation.Placeholder("out")},
	}
	drv, err := w.AddToStore(ctx, "built.drv", store.Text, store.SHA256, d.References(), bytes.NewReader(d.ATerm()))
	if err != nil {
		return fmt.Errorf("add derivation: %w", err)
	}
	results, err := w.Build(ctx, []protocol.Target{{Path: drv.Path, Outputs: protocol.All()}}, client.Normal, nil)
	if err != nil {
		return fmt.Errorf("build %s: %w", drv.Path, err)
	}
	paths := []store.Path{drv.Path}
	for _, r := range results {
		if !r.Status.OK() {
			return fmt.Errorf("build %s: %s: %s", drv.Path, r.Status, r.Error)
		}
		for _, o := range r.Outputs {
			paths = append(paths, o.OutPath)
		}
	}
	return w.done("build", began, paths...)
}
