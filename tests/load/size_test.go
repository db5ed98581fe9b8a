package load

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// maxForAny is what a process may take, in MiB, whatever the size of the objects that pass through it.
const maxForAny = 128

// TestAnySize brings one object all ways that there are: whatever its size, each process keeps below maxForAny.
func TestAnySize(t *testing.T) {
	w := &ways{dir: tempDir(t), size: 192 << 20}
	if raceEnabled { // which takes memory of its own, and time
		w.size = 16 << 20
	}
	if s := os.Getenv("CAIRN_LOAD_SIZE"); s != "" {
		mib, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("CAIRN_LOAD_SIZE: %v", err)
		}
		w.size = mib << 20
	}
	w.hosts(t)
	w.source(t)
	for _, way := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"add", w.add},
		{"add again", w.add},
		{"dump", func(t *testing.T) { w.run(t, w.a, "store", "dump", w.object) }},
		{"copy to a socket", func(t *testing.T) { w.copy(t, "unix://"+w.b.layout.SocketPath) }},
		{"copy to ssh-ng", func(t *testing.T) { w.copy(t, w.here("ssh-ng", "daemon --stdio")) }},
		{"copy to ssh", func(t *testing.T) { w.copy(t, w.here("ssh", "serve --legacy --write")) }},
		{"copy from ssh", w.copyBack},
		{"bundle", w.bundle},
		{"push to a cache", func(t *testing.T) { w.run(t, w.a, "cache", "push", "--quiet", w.cache(), w.object) }},
		{"copy from a cache", func(t *testing.T) { w.fetch(t, w.cache()) }},
		{"serve a cache", w.serve},
		{"verify", func(t *testing.T) { w.run(t, w.a, "store", "verify") }},
		{"optimise", func(t *testing.T) { w.run(t, w.a, "store", "optimise") }},
		{"collect", func(t *testing.T) { w.run(t, w.a, "gc") }},
	} {
		began := time.Now()
		usage := w.watch(t, func() { way.do(t) })
		t.Logf("%-18s %6v  %s", way.name, time.Since(began).Round(10*time.Millisecond), usage)
		for who, mib := range usage {
			if mib > maxForAny && !raceEnabled {
				t.Errorf("%s of %d MiB: %s took %d MiB; %d are allowed", way.name, w.size>>20, who, mib, maxForAny)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// ways is two stores with their daemons, and an object that goes from the first to the second.
type ways struct {
	dir    string
	size   int64
	a, b   *host
	file   string // that becomes the object
	object string
}

// hosts starts the two.
func (w *ways) hosts(t *testing.T) {
	t.Helper()
	w.a, w.b = newHost(t, filepath.Join(w.dir, "a"), "--no-durability"), newHost(t, filepath.Join(w.dir, "b"), "--no-durability")
	key, err := os.Open(filepath.Join(w.a.layout.ConfDir, "signing-key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	allow := process("daemon", "archive", "--authorize", "--root", w.b.root)
	allow.Stdin = key
	if out, err := allow.CombinedOutput(); err != nil {
		t.Fatalf("authorize: %v\n%s", err, out)
	}
}

// source makes the file that becomes the object.
func (w *ways) source(t *testing.T) {
	t.Helper()
	w.file = filepath.Join(w.dir, "object")
	f, err := os.Create(w.file)
	if err == nil {
		_, err = io.CopyN(f, rand.NewChaCha8([32]byte{'s', 'i', 'z', 'e'}), w.size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a command on a store.
func (w *ways) run(t *testing.T, h *host, args ...string) {
	t.Helper()
	w.pipe(t, h, nil, io.Discard, args...)
}

// pipe runs a command on a store, with its standard input and output.
func (w *ways) pipe(t *testing.T, h *host, in io.Reader, out io.Writer, args ...string) {
	t.Helper()
	cmd := process("daemon", append(args, "--root", h.root)...)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, errs.String(), h.log.String())
	}
}

func (w *ways) add(t *testing.T) {
	var out bytes.Buffer
	w.pipe(t, w.a, nil, &out, "store", "add", w.file)
	w.object = strings.TrimSpace(out.String())
}

// here is the URI of the second store's program, started without ssh.
func (w *ways) here(scheme, command string) string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return scheme + "://localhost?remote-program=" + url.QueryEscape(fmt.Sprintf("%s %s --root %s", self, command, w.b.root))
}

// copy copies the object to the second store, and then deletes it there.
func (w *ways) copy(t *testing.T, uri string) {
	w.run(t, w.a, "store", "copy", "--quiet", "--no-check-sigs", "--to", uri, w.object)
	w.forget(t)
}

// forget deletes the object from the second store, where it must be.
func (w *ways) forget(t *testing.T) {
	t.Helper()
	w.run(t, w.b, "store", "path-info", w.object)
	w.run(t, w.b, "gc")
}

// fetch copies the object from elsewhere into the second store, and then deletes it there.
func (w *ways) fetch(t *testing.T, uri string) {
	w.run(t, w.b, "store", "copy", "--quiet", "--no-check-sigs", "--from", uri, w.object)
	w.forget(t)
}

// copyBack copies the object from the second store to the first.
func (w *ways) copyBack(t *testing.T) {
	w.run(t, w.a, "store", "copy", "--quiet", "--no-check-sigs", "--to", "unix://"+w.b.layout.SocketPath, w.object)
	w.run(t, w.a, "store", "delete", w.object)
	w.run(t, w.a, "store", "copy", "--quiet", "--no-check-sigs", "--from", w.here("ssh", "serve --legacy"), w.object)
	w.forget(t)
}

func (w *ways) cache() string { return "file://" + filepath.Join(w.dir, "cache") }

// bundle writes a signed archive to a file and has the second store read it.
func (w *ways) bundle(t *testing.T) {
	f, err := os.Create(filepath.Join(w.dir, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	w.pipe(t, w.a, nil, f, "archive", "--export", "-r", w.object)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	w.pipe(t, w.b, f, io.Discard, "archive", "--import")
	w.forget(t)
}

// serve has the second store's command copy from the first one's web server.
func (w *ways) serve(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	server := process("daemon", "cache", "serve", "--listen", address, "--root", w.a.root)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		server.Process.Signal(os.Interrupt)
		server.Wait()
	}()
	for range 500 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.fetch(t, "http://"+address)
}

// usage is the most memory that processes had, in MiB, by what they do.
type usage map[string]int

func (u usage) String() string {
	var parts []string
	for _, who := range slices.Sorted(maps.Keys(u)) {
		parts = append(parts, fmt.Sprintf("%s %d", who, u[who]))
	}
	return strings.Join(parts, ", ") + " MiB"
}

// watch runs do and returns what the processes of this program took meanwhile.
func (w *ways) watch(t *testing.T, do func()) usage {
	t.Helper()
	for _, h := range []*host{w.a, w.b} { // forget the most that they had before
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", h.daemon.Process.Pid), []byte("5"), 0); err != nil {
			t.Log("peak memory is that of all steps so far: ", err)
		}
	}
	u, stop := usage{}, make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			w.look(u)
			select {
			case <-stop:
				w.look(u)
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	do()
	return u
}

// look notes what the processes have taken that have this program's stores on their command line.
func (w *ways) look(u usage) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		line, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(line, []byte(w.dir)) {
			continue
		}
		words := strings.Split(string(line), "\x00")
		if len(words) < 3 || words[0] != "/proc/self/exe" && !strings.HasSuffix(words[0], ".test") {
			continue
		}
		who := strings.Join(words[1:3], " ")
		u[who] = max(u[who], peak(filepath.Dir(name)))
	}
}

// peak is the most resident memory that a process had, in MiB.
func peak(proc string) int {
	text, _ := os.ReadFile(filepath.Join(proc, "status"))
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	if fields := strings.Fields(rest); len(fields) > 0 {
		kib, _ := strconv.Atoi(fields[0])
		return kib >> 10
	}
	return 0
}
