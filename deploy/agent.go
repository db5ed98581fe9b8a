package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"cairn/archive"
	"cairn/archive/wire"
	"cairn/client"
	"cairn/services/activate"
	"cairn/store"
	"cairn/store/disk"
)

// silence is how long the agent waits for the next byte before it takes the coordinator for gone.
const silence = leaseTime

// Agent is what Serve needs to know of the machine it runs on.
type Agent struct {
	Layout  disk.Layout
	Program string           // this program, at a place that stays
	Session activate.Session // who asks, and how
}

// agent is one session.
type agent struct {
	Agent
	in       *wire.Reader
	out      *wire.Writer
	lease    Lease        // ours; no token: none
	daemon   *client.Conn // dialled when needed; keeps what arrives alive until the session ends
	awaiting bool         // the last switch waits to be confirmed, perhaps over another connection
	broken   bool         // the input cannot be read any further

	mu sync.Mutex // guards lease between requests and its renewal
}

// operation is a row of the table of requests.
type operation struct {
	op     string
	leased bool // only with the lease
	do     func(*agent, context.Context, *Request) (*Reply, error)
}

var operations = []operation{
	{"hello", false, (*agent).hello},
	{"ping", false, func(*agent, context.Context, *Request) (*Reply, error) { return &Reply{}, nil }},
	{"missing", false, (*agent).missing},
	{"import", true, (*agent).importBundle},
	{"plan", false, (*agent).forward},
	{"switch", true, (*agent).forward},
	{"confirm", true, (*agent).forward},
	{"status", false, (*agent).forward},
	{"release", true, (*agent).release},
}

// Serve is the agent: it answers requests until the input ends, or says nothing for too long.
// In the latter case the reading goroutine stays behind; the caller is expected to end the process.
func Serve(ctx context.Context, in io.Reader, out io.Writer, machine Agent) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	heard := &listener{r: in, timer: time.AfterFunc(silence, func() { cancel(errSilence) })}
	a := &agent{Agent: machine, in: wire.NewReader(heard), out: wire.NewWriter(out)}
	done := make(chan error, 1)
	go func() { done <- a.serve(ctx) }()
	renewal := time.NewTicker(leaseTime / 3)
	defer renewal.Stop()
	for {
		select {
		case err := <-done:
			a.end()
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-renewal.C:
			a.renew()
		}
	}
}

var errSilence = errors.New("agent: the coordinator says nothing any more")

// listener notices when nothing comes though something is expected.
type listener struct {
	r     io.Reader
	timer *time.Timer
}

func (l *listener) Read(p []byte) (int, error) {
	l.timer.Reset(silence)
	defer l.timer.Stop()
	return l.r.Read(p)
}

func (a *agent) serve(ctx context.Context) error {
	io.WriteString(a.out, banner)
	if err := a.out.Flush(); err != nil {
		return err
	}
	for !a.broken {
		q, err := ReadRequest(a.in)
		switch {
		case err == nil, errors.Is(err, ErrNotUnderstood):
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		default:
			return fmt.Errorf("agent: read request: %w", err)
		}
		if err := a.answer(ctx, q, err); err != nil {
			return err
		}
	}
	return nil
}

// answer does what is asked for, unless that is not understood.
func (a *agent) answer(ctx context.Context, q *Request, err error) error {
	var p *Reply
	if a.broken = err != nil; err == nil {
		p, err = a.perform(ctx, q)
	}
	if err != nil {
		p = &Reply{Error: newFailure(err)}
	}
	p.Done = true
	return writeMessage(a.out, p)
}

func (a *agent) perform(ctx context.Context, q *Request) (*Reply, error) {
	for _, o := range operations {
		if o.op != q.Op {
			continue
		}
		if o.leased && !a.hasLease() {
			return nil, fmt.Errorf("agent: %s without a lease", q.Op)
		}
		return o.do(a, ctx, q)
	}
	return nil, fmt.Errorf("agent: unknown request %q; the coordinator's cairn is another one than the machine's", q.Op)
}

// event tells the coordinator of progress. A stream that broke is found by the answer.
func (a *agent) event(p *Reply) { writeMessage(a.out, p) }

// hello takes the lease if a token is given, lets the key in if one is given, and answers with facts.
func (a *agent) hello(ctx context.Context, q *Request) (*Reply, error) {
	if q.Token != "" {
		if err := a.takeLease(q); err != nil {
			return nil, err
		}
	}
	did := false
	if q.Key != "" {
		var err error
		if did, err = a.authorize(q.Key); err != nil {
			return nil, err
		}
	}
	f, err := a.facts(ctx)
	if err != nil {
		return nil, err
	}
	return &Reply{Facts: f, Did: did}, nil
}

func (a *agent) authorize(text string) (bool, error) {
	if !a.hasLease() {
		return false, errors.New("agent: authorize without a lease")
	}
	key, err := archive.ParsePublicKey(text)
	if err != nil {
		return false, err
	}
	return archive.Authorize(a.Layout.ConfDir+"/acl", key, archive.Import)
}

func (a *agent) leaseFile() leaseFile { return leaseFile{a.Layout.StateDir + "/journal"} }

func (a *agent) hasLease() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lease.Token != ""
}

func (a *agent) takeLease(q *Request) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := Lease{Token: q.Token, Owner: q.Owner, Purpose: q.Purpose, Agent: newToken()}
	if err := a.leaseFile().take(l, time.Now()); err != nil {
		return err
	}
	a.lease = l
	return nil
}

// renew keeps the lease while the session lives. If it was lost meanwhile, the next request that needs it says so.
func (a *agent) renew() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease.Token != "" && a.leaseFile().take(a.lease, time.Now()) != nil {
		a.lease = Lease{}
	}
}

func (a *agent) release(context.Context, *Request) (*Reply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.leaseFile().give(a.lease)
	a.lease = Lease{}
	return &Reply{}, err
}

// end gives the lease back, unless the deploy goes on over another connection.
func (a *agent) end() {
	if a.daemon != nil {
		a.daemon.Close()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease.Token != "" && !a.awaiting {
		a.leaseFile().give(a.lease)
	}
}

// dial connects to the machine's daemon, once.
func (a *agent) dial(ctx context.Context) (*client.Conn, error) {
	if a.daemon != nil {
		return a.daemon, nil
	}
	c, err := client.Dial(ctx, a.Layout.SocketPath, &client.Options{Dir: a.Layout.Dir})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	a.daemon = c
	return c, nil
}

// missing answers which of the paths are not valid here, and keeps all of them alive from now on.
func (a *agent) missing(ctx context.Context, q *Request) (*Reply, error) {
	paths, err := parsePaths(a.Layout.Dir, q.Paths)
	if err != nil {
		return nil, err
	}
	d, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	if q.System != "" { // the root of what will come
		root, err := a.Layout.Dir.ParsePath(q.System)
		if err != nil {
			return nil, err
		}
		if err := d.AddTempRoot(ctx, root); err != nil {
			return nil, err
		}
	}
	have, err := client.Present(ctx, d, paths, false)
	if err != nil {
		return nil, err
	}
	reply := &Reply{}
	var keep []store.Path
	for _, p := range paths {
		if !have[p] && p.Name() == programName && a.hasLease() {
			if have[p], err = a.addOwn(ctx, d, p); err != nil {
				return nil, err
			}
		}
		if !have[p] {
			reply.Paths = append(reply.Paths, p.String())
			continue
		}
		keep = append(keep, p)
	}
	return reply, d.AddTempRoots(ctx, keep)
}

// importBundle hands the frames that follow the request to the daemon.
func (a *agent) importBundle(ctx context.Context, _ *Request) (*Reply, error) {
	frames := wire.NewFrameReader(a.in)
	d, err := a.dial(ctx)
	var list []store.Path
	if err == nil {
		list, err = d.ImportBundle(ctx, frames)
	}
	if err != nil {
		a.broken = true // what is left of the bundle is not read
		return nil, err
	}
	if err := frames.Drain(); err != nil {
		return nil, fmt.Errorf("agent: read bundle: %w", err)
	}
	reply := &Reply{}
	for _, p := range list {
		reply.Paths = append(reply.Paths, p.String())
	}
	return reply, nil
}

// forward has the program of the system do it, and passes on what that says.
func (a *agent) forward(ctx context.Context, q *Request) (*Reply, error) {
	if _, err := a.Layout.Dir.ParsePath(q.System); err != nil {
		return nil, err
	}
	c := activation{Op: q.Op, System: q.System, ID: q.ID, Within: q.Within, Session: a.Session,
		StateDir: a.Layout.StateDir, StoreDir: a.Layout.Dir.String(), Program: a.Program}
	reply, err := c.delegate(ctx, a.Layout, a.event)
	if err != nil {
		return nil, err
	}
	if reply.Switch != nil && q.Op != "plan" {
		a.awaiting = reply.Switch.Outcome == "awaiting" || reply.Switch.Outcome == "running"
	}
	return reply, nil
}
