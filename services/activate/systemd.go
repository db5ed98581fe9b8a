package activate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// UnitStatus is what systemd knows of a unit.
type UnitStatus struct {
	LoadState    string `json:"loadState"`   // loaded, not-found, masked, …
	ActiveState  string `json:"activeState"` // active, inactive, failed, activating, …
	SubState     string `json:"subState"`
	FragmentPath string `json:"fragmentPath,omitempty"`
	Result       string `json:"result,omitempty"` // of services: success, exit-code, …
	MainPID      uint32 `json:"mainPID,omitempty"`
	Restarts     uint32 `json:"restarts,omitempty"` // by systemd itself
	Ran          bool   `json:"ran,omitempty"`      // the main process has run
	Invocation   string `json:"invocation,omitempty"`
}

// running reports whether the unit is up or on its way.
func (s UnitStatus) running() bool {
	switch s.ActiveState {
	case "active", "reloading", "refreshing", "activating", "maintenance":
		return true
	}
	return false
}

// looping reports whether the unit fails and is restarted again and again.
func (s UnitStatus) looping() bool { return strings.HasPrefix(s.SubState, "auto-restart") }

// hostOwned reports whether the host has a unit file of its own that is in use.
func (s UnitStatus) hostOwned() bool {
	return s.FragmentPath != "" && !strings.HasPrefix(s.FragmentPath, "/run/systemd/transient/")
}

// Systemd is what the engine asks of a service manager.
type Systemd interface {
	// Status looks at units; one that does not exist is "not-found".
	Status(ctx context.Context, units ...string) (map[string]UnitStatus, error)
	// Loaded lists the units that are loaded and match a glob.
	Loaded(ctx context.Context, pattern string) ([]string, error)
	// Enqueue asks for "start", "stop", "restart" or "reload". The job's result comes from wait:
	// done, failed, timeout, canceled, dependency, skipped, …
	Enqueue(ctx context.Context, verb, unit string) (wait func(context.Context) (string, error), err error)
	// Reload reads all unit files again.
	Reload(ctx context.Context) error
	// ResetFailed forgets that a unit failed, and how often it was started.
	ResetFailed(ctx context.Context, unit string) error
	Close() error
}

const (
	managerName = "org.freedesktop.systemd1"
	managerPath = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerFace = "org.freedesktop.systemd1.Manager"
)

// bus is a connection to systemd. It prefers systemd's own socket, which works
// before the bus daemon runs and while it restarts.
type bus struct {
	conn    *dbus.Conn
	manager dbus.BusObject
	signals chan *dbus.Signal
	done    sync.WaitGroup

	mu      sync.Mutex // guards what follows; innermost
	results map[dbus.ObjectPath]string
	waiting map[dbus.ObjectPath]chan string
}

// DialSystemd connects to the service manager of this host.
func DialSystemd(ctx context.Context) (Systemd, error) {
	conn, err := dialPrivate(ctx)
	if err != nil {
		var err2 error
		if conn, err2 = dbus.ConnectSystemBus(dbus.WithContext(ctx)); err2 != nil {
			return nil, fmt.Errorf("connect to systemd: %w: %w; %w", ErrNoSystemd, err, err2)
		}
	}
	b := &bus{
		conn: conn, manager: conn.Object(managerName, managerPath), signals: make(chan *dbus.Signal, 1024),
		results: map[dbus.ObjectPath]string{}, waiting: map[dbus.ObjectPath]chan string{},
	}
	conn.AddMatchSignal(dbus.WithMatchInterface(managerFace), dbus.WithMatchMember("JobRemoved")) // refused on the private socket, which needs none
	conn.Signal(b.signals)
	b.done.Go(b.listen)
	if err := b.manager.CallWithContext(ctx, managerFace+".Subscribe", 0).Err; err != nil {
		b.Close()
		return nil, fmt.Errorf("subscribe to systemd: %w", err)
	}
	return b, nil
}

func dialPrivate(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.Dial("unix:path=/run/systemd/private", dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (b *bus) listen() {
	for s := range b.signals {
		if s.Name != managerFace+".JobRemoved" || len(s.Body) < 4 {
			continue
		}
		job, ok1 := s.Body[1].(dbus.ObjectPath)
		result, ok2 := s.Body[3].(string)
		if !ok1 || !ok2 {
			continue
		}
		b.mu.Lock()
		if ch := b.waiting[job]; ch != nil {
			ch <- result
			delete(b.waiting, job)
		} else {
			b.results[job] = result
		}
		b.mu.Unlock()
	}
}

// Close ends the connection and waits for the listener.
func (b *bus) Close() error {
	err := b.conn.Close() // closes the signal channel
	b.done.Wait()
	return err
}

func (b *bus) Enqueue(ctx context.Context, verb, unit string) (func(context.Context) (string, error), error) {
	method := map[string]string{"start": "StartUnit", "stop": "StopUnit", "restart": "RestartUnit", "reload": "ReloadUnit"}[verb]
	if method == "" {
		panic("BUG: systemd verb " + verb)
	}
	var job dbus.ObjectPath
	err := b.manager.CallWithContext(ctx, managerFace+"."+method, 0, unit, "replace").Store(&job)
	if verb == "stop" && isNoSuchUnit(err) {
		return func(context.Context) (string, error) { return "done", nil }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s unit %s: %w", verb, unit, err)
	}
	return func(ctx context.Context) (string, error) { return b.await(ctx, job) }, nil
}

func isNoSuchUnit(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.systemd1.NoSuchUnit" || e.Name == "org.freedesktop.systemd1.LoadFailed")
}

func (b *bus) await(ctx context.Context, job dbus.ObjectPath) (string, error) {
	b.mu.Lock()
	if r, ok := b.results[job]; ok {
		delete(b.results, job)
		b.mu.Unlock()
		return r, nil
	}
	ch := make(chan string, 1)
	b.waiting[job] = ch
	b.mu.Unlock()
	select {
	case r := <-ch:
		return r, nil
	case <-b.conn.Context().Done():
		return "", errors.New("connection to systemd lost")
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (b *bus) Reload(ctx context.Context) error {
	if err := b.manager.CallWithContext(ctx, managerFace+".Reload", 0).Err; err != nil {
		return fmt.Errorf("reload unit files: %w", err)
	}
	return nil
}

func (b *bus) ResetFailed(ctx context.Context, unit string) error {
	err := b.manager.CallWithContext(ctx, managerFace+".ResetFailedUnit", 0, unit).Err
	if err != nil && !isNoSuchUnit(err) {
		return fmt.Errorf("reset unit %s: %w", unit, err)
	}
	return nil
}

func (b *bus) Loaded(ctx context.Context, pattern string) ([]string, error) {
	var rows [][]any
	if err := b.manager.CallWithContext(ctx, managerFace+".ListUnitsByPatterns", 0, []string{}, []string{pattern}).Store(&rows); err != nil {
		return nil, fmt.Errorf("list units %s: %w", pattern, err)
	}
	var names []string
	for _, r := range rows {
		if name, ok := r[0].(string); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

func (b *bus) Status(ctx context.Context, units ...string) (map[string]UnitStatus, error) {
	out := map[string]UnitStatus{}
	for _, u := range units {
		st, err := b.status(ctx, u)
		if err != nil {
			return nil, fmt.Errorf("look at unit %s: %w", u, err)
		}
		out[u] = st
	}
	return out, nil
}

func (b *bus) status(ctx context.Context, unit string) (UnitStatus, error) {
	var path dbus.ObjectPath
	if err := b.manager.CallWithContext(ctx, managerFace+".LoadUnit", 0, unit).Store(&path); err != nil {
		if isNoSuchUnit(err) {
			return UnitStatus{LoadState: "not-found", ActiveState: "inactive"}, nil
		}
		return UnitStatus{}, err
	}
	var props map[string]dbus.Variant
	if err := b.conn.Object(managerName, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, "").Store(&props); err != nil {
		return UnitStatus{}, err
	}
	st := UnitStatus{
		LoadState: text(props, "LoadState"), ActiveState: text(props, "ActiveState"), SubState: text(props, "SubState"),
		FragmentPath: text(props, "FragmentPath"), Result: text(props, "Result"),
	}
	st.MainPID, _ = props["MainPID"].Value().(uint32)
	st.Restarts, _ = props["NRestarts"].Value().(uint32)
	if exit, ok := props["ExecMainExitTimestamp"].Value().(uint64); ok {
		st.Ran = exit > 0
	}
	if id, ok := props["InvocationID"].Value().([]byte); ok {
		st.Invocation = fmt.Sprintf("%x", id)
	}
	return st, nil
}

func text(props map[string]dbus.Variant, name string) string {
	s, _ := props[name].Value().(string)
	return s
}
