package config

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/derivation/eval"
	"cairn/services/system"
	"cairn/store"
)

// childVariable marks the environment of a child.
const childVariable = "CAIRN_EVALUATION_CHILD"

// initialized says that this program can be its own child.
var initialized bool

// Init makes Load evaluate in a child process. It must be the first thing that main does;
// in the child it serves the evaluation and does not return.
func Init() {
	if os.Getenv(childVariable) == "" {
		initialized = true
		return
	}
	os.Unsetenv(childVariable)
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// start is the first message to a child.
type start struct {
	File    string
	Options Options
}

// request is a question of the parent.
type request struct {
	Question string // "names", "value", "targets", "system", "machines", "types", "additions"
	Name     string
	Paths    []string
}

// reply is a child's answer. A "print" is not the last one to a request.
type reply struct {
	Print     *printed
	Error     *failure
	Names     []string
	Value     []byte
	Targets   []flatTarget
	System    *flatSystem
	Machines  []flatMachine
	Systems   []flatSystem // of the machines, each once
	Types     []TypeDoc
	Additions []flatAddition
}

type printed struct{ Place, Message string }

// flatSystem is a System with its spec as JSON, so that absent and zero numbers stay apart.
type flatSystem struct {
	Name, Output, Drv string
	Spec              []byte
}

// Paths travel as strings, which gob knows.

type flatTarget struct{ Name, Drv, Output, Path string }

type flatAddition struct {
	Path, Name string
	Method     store.Method
	Algo       store.Algorithm
	References []string
	Text, File string
}

type flatMachine struct {
	Name        string
	System      int // in reply.Systems
	Environment Environment
}

// failure is an error on its way to the parent.
type failure struct {
	Text  string
	Place *eval.Error
}

func flatten(err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Text: err.Error()}
	errors.As(err, &f.Place)
	return f
}

func (f *failure) err() error {
	switch {
	case f == nil:
		return nil
	case f.Place == nil:
		return errors.New(f.Text)
	case f.Place.Error() == f.Text:
		return f.Place
	}
	before, _, _ := strings.Cut(f.Text, f.Place.Error())
	return fmt.Errorf("%s%w", before, f.Place)
}

func flattenSystem(s *System) (flatSystem, error) {
	spec, err := json.Marshal(s.Spec)
	return flatSystem{s.Name, s.Output, s.Drv.String(), spec}, err
}

func (f *flatSystem) system() (*System, error) {
	s := &System{Name: f.Name, Output: f.Output, Drv: unflat(f.Drv), Spec: new(system.Spec)}
	return s, json.Unmarshal(f.Spec, s.Spec)
}

func flat(paths []store.Path) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = p.String()
	}
	return out
}

// unflat turns a string that a path was made into back into it.
func unflat(s string) store.Path {
	var p store.Path
	if err := p.UnmarshalText([]byte(s)); err != nil {
		panic("BUG: " + err.Error())
	}
	return p
}

func unflatAll(ss []string) []store.Path {
	out := make([]store.Path, len(ss))
	for i, s := range ss {
		out[i] = unflat(s)
	}
	return out
}

// serve is the child: it evaluates and answers until its input ends.
func serve(in io.Reader, out io.Writer) error {
	dec, enc := gob.NewDecoder(in), gob.NewEncoder(out)
	var s start
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("evaluation child: read the start: %w", err)
	}
	if err := limitMemory(s.Options.MaxHeap); err != nil {
		return enc.Encode(reply{Error: flatten(err)})
	}
	s.Options.Print = func(place, message string) {
		enc.Encode(reply{Print: &printed{place, message}}) //nolint:errcheck // the next reply fails too
	}
	e, err := load(context.Background(), s.File, &s.Options)
	if err := enc.Encode(reply{Error: flatten(err)}); err != nil || e == nil {
		return err
	}
	defer e.Close()
	for {
		var q request
		if err := dec.Decode(&q); err != nil {
			return nil // the parent is done, or gone
		}
		if err := enc.Encode(e.answer(&q)); err != nil {
			return fmt.Errorf("evaluation child: answer: %w", err)
		}
	}
}

// limitMemory asks the kernel to refuse more than twice what the watchdog allows, and room for the program itself.
func limitMemory(heap uint64) error {
	if heap == 0 {
		heap = 1 << 30
	}
	limit := 2*heap + 512<<20
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_DATA, &now); err != nil {
		return fmt.Errorf("limit memory of the evaluation: %w", err)
	}
	limit = min(limit, now.Max)
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return fmt.Errorf("limit memory of the evaluation: %w", err)
	}
	return nil
}

func (e *evaluated) answer(q *request) reply {
	var r reply
	var err error
	switch q.Question {
	case "names":
		r.Names, err = e.Names()
	case "value":
		r.Value, err = e.Value(q.Name)
	case "targets":
		r.Targets, err = e.flatTargets(q.Name)
	case "system":
		r.System, err = e.flatSystem(q.Name)
	case "machines":
		r.Machines, r.Systems, err = e.flatMachines()
	case "types":
		r.Types, err = e.ServiceTypes()
	case "additions":
		r.Additions, err = e.flatAdditions(q.Paths)
	default:
		err = fmt.Errorf("evaluation child: unknown question %q", q.Question)
	}
	r.Error = flatten(err)
	return r
}

func (e *evaluated) flatTargets(name string) ([]flatTarget, error) {
	targets, err := e.Targets(name)
	out := make([]flatTarget, len(targets))
	for i, t := range targets {
		out[i] = flatTarget{t.Name, t.Drv.String(), t.Output, t.Path.String()}
	}
	return out, err
}

func (e *evaluated) flatAdditions(paths []string) ([]flatAddition, error) {
	list, err := e.Additions(unflatAll(paths)...)
	out := make([]flatAddition, len(list))
	for i, a := range list {
		out[i] = flatAddition{a.Path.String(), a.Name, a.Method, a.Algo, flat(a.References), a.Text, a.File}
	}
	return out, err
}

func (e *evaluated) flatSystem(name string) (*flatSystem, error) {
	s, err := e.System(name)
	if err != nil {
		return nil, err
	}
	f, err := flattenSystem(s)
	return &f, err
}

// flatMachines sends each system once, however many machines have it.
func (e *evaluated) flatMachines() ([]flatMachine, []flatSystem, error) {
	machines, err := e.Machines()
	if err != nil {
		return nil, nil, err
	}
	index := map[*System]int{}
	var systems []flatSystem
	flat := make([]flatMachine, len(machines))
	for i, m := range machines {
		at, ok := index[m.System]
		if !ok {
			f, err := flattenSystem(m.System)
			if err != nil {
				return nil, nil, err
			}
			at = len(systems)
			index[m.System], systems = at, append(systems, f)
		}
		flat[i] = flatMachine{m.Name, at, m.Environment}
	}
	return flat, systems, nil
}

// child is the backend that asks a child process.
type child struct {
	mu     sync.Mutex // guards the streams: one question at a time
	file   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	enc    *gob.Encoder
	dec    *gob.Decoder
	stderr *tail
	print  func(place, message string)
	heap   uint64
	ctx    context.Context
	dead   error // set when the child is gone
}

var _ backend = (*child)(nil)

func startChild(ctx context.Context, file string, opts *Options) (*child, error) {
	o := *opts
	o.Print = nil
	program, err := opts.cairnProgram() // before the child, whose own name is another
	if err != nil {
		return nil, err
	}
	o.Cairn = program
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = []string{childVariable + "=1", "GOTRACEBACK=none", "GOGC=200", "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c := &child{file: file, cmd: cmd, print: opts.Print, stderr: &tail{}, ctx: ctx, heap: o.MaxHeap}
	if c.heap == 0 {
		c.heap = 1 << 30
	}
	cmd.Stderr = c.stderr
	if c.in, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start evaluation of %s: %w", file, err)
	}
	if c.out, err = cmd.StdoutPipe(); err != nil {
		return nil, fmt.Errorf("start evaluation of %s: %w", file, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start evaluation of %s: %w", file, err)
	}
	c.enc, c.dec = gob.NewEncoder(c.in), gob.NewDecoder(c.out)
	if _, err := c.exchange(start{file, o}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// ask sends a question and returns the answer.
func (c *child) ask(q request) (*reply, error) { return c.exchange(q) }

func (c *child) exchange(message any) (*reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return nil, c.dead
	}
	if err := c.enc.Encode(message); err != nil {
		return nil, c.died()
	}
	for {
		r := new(reply)
		if err := c.dec.Decode(r); err != nil {
			return nil, c.died()
		}
		if r.Print == nil {
			return r, r.Error.err()
		}
		if c.print != nil {
			c.print(r.Print.Place, r.Print.Message)
		}
	}
}

// died says why the child is gone.
func (c *child) died() error {
	c.in.Close()
	err := c.cmd.Wait()
	said := c.stderr.String()
	switch {
	case c.ctx.Err() != nil:
		err = context.Cause(c.ctx)
	case strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory") || strings.Contains(said, "ThreadSanitizer failed to allocate"):
		err = fmt.Errorf("more than %d MiB of memory in one step: does a list or a text grow without end? (%w)", c.heap>>20, eval.ErrLimit)
	case err == nil:
		err = errors.New("the evaluation ended early")
	case said != "":
		err = fmt.Errorf("%w: %s", err, firstLine(said))
	}
	c.dead = fmt.Errorf("evaluate %s: %w", c.file, err)
	return c.dead
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// Close ends the child and waits for it.
func (c *child) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return nil
	}
	c.dead = fmt.Errorf("evaluate %s: already closed", c.file)
	c.in.Close()
	c.out.Close()
	return c.cmd.Wait()
}

func (c *child) Names() ([]string, error) {
	r, err := c.ask(request{Question: "names"})
	if err != nil {
		return nil, err
	}
	return r.Names, nil
}

func (c *child) Value(name string) (json.RawMessage, error) {
	r, err := c.ask(request{Question: "value", Name: name})
	if err != nil {
		return nil, err
	}
	return r.Value, nil
}

func (c *child) Targets(name string) ([]Target, error) {
	r, err := c.ask(request{Question: "targets", Name: name})
	if err != nil {
		return nil, err
	}
	targets := make([]Target, len(r.Targets))
	for i, t := range r.Targets {
		targets[i] = Target{t.Name, unflat(t.Drv), t.Output, unflat(t.Path)}
	}
	return targets, nil
}

func (c *child) System(name string) (*System, error) {
	r, err := c.ask(request{Question: "system", Name: name})
	if err != nil {
		return nil, err
	}
	return r.System.system()
}

func (c *child) Machines() ([]Machine, error) {
	r, err := c.ask(request{Question: "machines"})
	if err != nil {
		return nil, err
	}
	systems := make([]*System, len(r.Systems))
	for i := range r.Systems {
		if systems[i], err = r.Systems[i].system(); err != nil {
			return nil, err
		}
	}
	machines := make([]Machine, len(r.Machines))
	for i, m := range r.Machines {
		machines[i] = Machine{m.Name, systems[m.System], m.Environment}
	}
	return machines, nil
}

func (c *child) ServiceTypes() ([]TypeDoc, error) {
	r, err := c.ask(request{Question: "types"})
	if err != nil {
		return nil, err
	}
	return r.Types, nil
}

func (c *child) Additions(paths ...store.Path) ([]eval.Addition, error) {
	r, err := c.ask(request{Question: "additions", Paths: flat(paths)})
	if err != nil {
		return nil, err
	}
	list := make([]eval.Addition, len(r.Additions))
	for i, a := range r.Additions {
		list[i] = eval.Addition{
			Path: unflat(a.Path), Name: a.Name, Method: a.Method, Algo: a.Algo, References: unflatAll(a.References), Text: a.Text, File: a.File,
		}
	}
	return list, nil
}

// tail keeps the start of what a child says before it dies, which is where the runtime gives the reason.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const maxTail = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p[:min(len(p), maxTail-t.b.Len())])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}
