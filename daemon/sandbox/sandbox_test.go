package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/daemon/sandbox"
)

const hostUID = 0x3CA00000

func TestMain(m *testing.M) {
	sandbox.Init()
	os.Exit(m.Run())
}

// requireSandbox skips, or fails in CI, where the host gives no sandbox.
func requireSandbox(t testing.TB) {
	t.Helper()
	err := sandbox.Available()
	if err == nil {
		return
	}
	if os.Getenv("CAIRN_CI") == "1" {
		t.Fatal(err)
	}
	t.Skipf("%v; run the tests as root or enable user namespaces", err)
}

// hostSpec is a sandbox that sees the host's programs, for tests only.
func hostSpec(t testing.TB, script string) *sandbox.Spec {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"root", "build", "in"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() == 0 {
		os.Chown(filepath.Join(dir, "build"), hostUID, hostUID)
	}
	os.WriteFile(filepath.Join(dir, "in", "file"), []byte("input\n"), 0o666)
	return &sandbox.Spec{
		Argv: []string{"/bin/sh", "-c", script},
		Env:  []string{"PATH=/usr/bin:/usr/sbin", "HOME=/homeless"},
		Dir:  "/build",
		Root: filepath.Join(dir, "root"),
		Mounts: []sandbox.Mount{
			{Source: "/usr", Target: "/usr"},
			{Source: filepath.Join(dir, "in"), Target: "/in"},
			{Source: filepath.Join(dir, "build"), Target: "/build", Writable: true},
			{Source: filepath.Join(dir, "missing"), Target: "/missing", Optional: true},
		},
		Symlinks: map[string]string{"/bin": "usr/bin", "/lib": "usr/lib", "/lib64": "usr/lib64"},
		Files:    map[string]string{"/etc/passwd": "root:x:0:0::/:/noshell\nnixbld:x:1000:100::/build:/noshell\n", "/etc/group": "nixbld:x:100:\n"},
		HostUID:  hostUID, HostGID: hostUID,
	}
}

// launcher returns one for a test.
func launcher(t testing.TB) *sandbox.Launcher {
	l := new(sandbox.Launcher)
	t.Cleanup(func() { l.Close() })
	return l
}

func run(t testing.TB, spec *sandbox.Spec) (string, sandbox.Status, error) {
	t.Helper()
	var log bytes.Buffer
	st, err := launcher(t).Run(t.Context(), spec, &log)
	return log.String(), st, err
}

// TestInside compares what a builder sees and can do with what it should.
func TestInside(t *testing.T) {
	requireSandbox(t)
	for _, c := range []struct{ name, script, want string }{
		{"ids", `id -u; id -g; whoami`, "1000\n100\nnixbld\n"},
		{"host name", `uname -n; cat /proc/sys/kernel/domainname`, "localhost\n(none)\n"},
		{"process ids", `test $(ls -d /proc/[0-9]* | wc -l) -lt 8 && echo few`, "few\n"},
		{"capabilities", `grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status | tr '\t' ' '`,
			"CapInh: 0000000000000000\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\nCapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n"},
		{"files", `ls -A / | tr '\n' ' '; ls -A /dev | tr '\n' ' '`, "bin build dev etc in lib lib64 proc usr fd full null ptmx pts random shm stderr stdin stdout tty urandom zero "},
		{"open files", `ls /proc/self/fd | tr '\n' ' '`, "0 1 2 3 "},
		{"root is sealed", `touch /x /etc/y /dev/z 2>/dev/null; mkdir /etc/y 2>/dev/null; ls /x /etc/y /dev/z 2>/dev/null; echo done`, "done\n"},
		{"inputs are read-only", `(echo x >/in/file) 2>&1; touch /in/new /usr/new 2>/dev/null || echo refused; cat /in/file`, "/bin/sh: 1: cannot create /in/file: Read-only file system\nrefused\ninput\n"},
		{"build directory", `touch x && pwd && umask && stat -c %u:%g x`, "/build\n0022\n1000:100\n"},
		{"devices", `echo x >/dev/null; head -c 4 /dev/zero | od -An -tx1; head -c 1 /dev/urandom | wc -c; echo s >/dev/shm/s; cat /dev/shm/s`, " 00 00 00 00\n1\ns\n"},
		{"no set-id bits", `touch f; chmod 4755 f 2>/dev/null || echo refused; chmod g+s f 2>/dev/null || echo refused; chmod 755 f && stat -c %a f; mkdir d; chmod 2755 d 2>/dev/null || echo refused`, "refused\nrefused\n755\nrefused\n"},
		{"no namespaces", `unshare -U true 2>/dev/null || echo refused; unshare -m true 2>/dev/null || echo refused`, "refused\nrefused\n"},
		{"no mounts", `mount -t tmpfs x /build 2>/dev/null || echo refused; umount /usr 2>/dev/null || echo refused; mount -o remount,rw / 2>/dev/null || echo refused`, "refused\nrefused\nrefused\n"},
		{"process 1", `kill -9 1 2>/dev/null; kill -STOP 1 2>/dev/null; (cat /proc/1/environ; ls -l /proc/1/exe; ls /proc/1/fd/) 2>/dev/null >/dev/null || echo refused; echo alive`, "refused\nalive\n"},
		{"host processes", `for i in 2 3 5 100 1000 ` + strconv.Itoa(os.Getpid()) + `; do kill -0 $i 2>/dev/null && test ! -d /proc/$i && echo "reached $i"; done; echo done`, "done\n"},
		{"limits", `ulimit -c; ulimit -n`, "0\n4096\n"},
		{"session", `read -r pid name state parent group session tty rest </proc/$$/stat; echo $parent $tty; test $session = $$ && echo own`, "1 0\nown\n"},
		{"network", `cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '; ls /sys 2>&1`, "lo\nls: cannot access '/sys': No such file or directory\n"},
		{"umask and env", `env | sort`, "HOME=/homeless\nPATH=/usr/bin:/usr/sbin\nPWD=/build\n"},
		{"orphans are reaped", `(sh -c 'sleep 0.05 & exit' &); sleep 0.2; cat /proc/[0-9]*/stat | grep -c ') Z '`, "0\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, err := run(t, hostSpec(t, c.script))
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// probeProgram is python, whose ctypes reach the calls that no shell makes.
func probeProgram(t *testing.T) string {
	t.Helper()
	const p = "/usr/bin/python3"
	if out, err := exec.Command(p, "-S", "-c", "import ctypes").CombinedOutput(); err != nil {
		if os.Getenv("CAIRN_CI") == "1" {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Skipf("needs %s with ctypes (%v): apt-get install python3", p, err)
	}
	return p
}

// TestSystemCalls makes refused calls directly.
func TestSystemCalls(t *testing.T) {
	requireSandbox(t)
	python := probeProgram(t)
	for _, c := range []struct{ name, code, want string }{
		{"openat with set-id mode", `r(257, -100, b"/build/a", 0o101, 0o4755)`, "EPERM"},
		{"openat without O_CREAT ignores the mode", `r(257, -100, b"/build", 0, 0o4755)`, "ok"},
		{"open with set-id mode", `r(2, b"/build/a", 0o101, 0o2755)`, "EPERM"},
		{"creat with set-id mode", `r(85, b"/build/a", 0o4755)`, "EPERM"},
		{"mknod device", `r(133, b"/build/d", 0o20666, 0x103)`, "EPERM"},
		{"mknod fifo", `r(133, b"/build/p", 0o10666, 0)`, "ok"},
		{"openat2", `r(437, -100, b"/build", b"\0"*24, 24)`, "ENOSYS"},
		{"fchmodat2", `r(452, -100, b"/build", 0o4755, 0)`, "ENOSYS"},
		{"io_uring", `r(425, 1, b"\0"*120)`, "ENOSYS"},
		{"clone3", `r(435, b"\0"*88, 88)`, "ENOSYS"},
		{"clone with a user namespace", `r(56, 0x10000011, 0, 0, 0, 0)`, "EPERM"},
		{"setxattr", `r(188, b"/build", b"user.x", b"1", 1, 0)`, "ENOTSUP"},
		{"keyctl", `r(250, 0, -3, 0)`, "EPERM"},
		{"bpf", `r(321, 0, 0, 0)`, "EPERM"},
		{"vsock", `r(41, 40, 1, 0)`, "EAFNOSUPPORT"},
		{"unix socket", `r(41, 1, 1, 0)`, "ok"},
		{"open_tree", `r(428, -100, b"/", 1)`, "EPERM"},
		{"setuid root", `r(105, 0)`, "EINVAL"},
		{"chroot", `r(161, b"/build")`, "EPERM"},
		{"x32 table", `r(0x40000000 + 39)`, "killed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			script := `
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def r(*a):
    print("ok" if libc.syscall(*a) >= 0 else errno.errorcode[ctypes.get_errno()].replace("EOPNOTSUPP", "ENOTSUP"))
` + c.code
			spec := hostSpec(t, "")
			spec.Argv = []string{python, "-S", "-c", script}
			got, st, err := run(t, spec)
			if err != nil {
				t.Fatal(err)
			}
			if st.Signal == syscall.SIGSYS {
				got = "killed"
			}
			if strings.TrimSpace(got) != c.want {
				t.Errorf("got %q (%v), want %q", got, st, c.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	requireSandbox(t)
	for _, c := range []struct {
		script string
		want   string
	}{
		{"exit 0", "exit code 0"},
		{"exit 7", "exit code 7"},
		{"kill -KILL $$", "killed by signal 9 (killed)"},
		{"kill -TERM $$", "killed by signal 15 (terminated)"},
	} {
		_, st, err := run(t, hostSpec(t, c.script))
		if err != nil || st.String() != c.want {
			t.Errorf("%s: %v, %v; want %s", c.script, st, err, c.want)
		}
	}
}

func TestMissingProgram(t *testing.T) {
	requireSandbox(t)
	spec := hostSpec(t, "")
	spec.Argv = []string{"/no/such/builder"}
	_, _, err := run(t, spec)
	var setup *sandbox.SetupError
	if !errors.As(err, &setup) || setup.Step != "execute" || !strings.Contains(setup.Text, "/no/such/builder: no such file") {
		t.Errorf("error is %v", err)
	}
	spec = hostSpec(t, "")
	spec.Mounts = append(spec.Mounts, sandbox.Mount{Source: "/no/such/input", Target: "/x"})
	_, _, err = run(t, spec)
	if !errors.As(err, &setup) || setup.Step != "mount inputs" || !strings.Contains(setup.Text, "/no/such/input") {
		t.Errorf("error is %v", err)
	}
}

// TestBackgroundProcess checks that nothing outlives Run, so that outputs can be looked at.
func TestBackgroundProcess(t *testing.T) {
	requireSandbox(t)
	spec := hostSpec(t, `setsid sh -c 'trap "" HUP TERM INT; while :; do date +%N >/build/alive; done' >/dev/null 2>&1 & until test -s /build/alive; do sleep 0.01; done; exit 0`)
	if _, st, err := run(t, spec); err != nil || !st.Success() {
		t.Fatal(st, err)
	}
	file := filepath.Join(filepath.Dir(spec.Root), "build", "alive")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	after, _ := os.ReadFile(file)
	if !bytes.Equal(before, after) {
		t.Error("a process of the builder still writes")
	}
}

// firstWrite calls then when something was written.
type firstWrite struct {
	bytes.Buffer
	then func()
}

func (w *firstWrite) Write(p []byte) (int, error) {
	if w.Len() == 0 {
		defer w.then()
	}
	return w.Buffer.Write(p)
}

func TestCancel(t *testing.T) {
	requireSandbox(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("client left")
	var start time.Time
	log := &firstWrite{then: func() {
		start = time.Now()
		cancel(left)
	}}
	_, err := launcher(t).Run(ctx, hostSpec(t, `trap "" TERM INT HUP; (sleep 100 &) ; echo started; sleep 100`), log)
	if !errors.Is(err, left) {
		t.Errorf("error is %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %v", d)
	}
	if log.String() != "started\n" {
		t.Errorf("log is %q", log.String())
	}
}

func TestLargeLog(t *testing.T) {
	requireSandbox(t)
	got, _, err := run(t, hostSpec(t, `head -c 3000000 /dev/zero; echo end >&2`))
	if err != nil || len(got) != 3000004 || !strings.HasSuffix(got, "end\n") {
		t.Errorf("log has %d bytes, %v", len(got), err)
	}
}

// TestNetwork listens on the host and looks who can connect.
func TestNetwork(t *testing.T) {
	requireSandbox(t)
	python := probeProgram(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	abstract, err := net.Listen("unix", fmt.Sprintf("@cairn-sandbox-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	script := fmt.Sprintf(`
import socket
def c(f, a):
    try:
        socket.socket(f).connect(a); print("connected")
    except OSError as e: print(e.strerror)
c(socket.AF_INET, ("127.0.0.1", %d))
c(socket.AF_UNIX, "\0%s")`, tcp.Addr().(*net.TCPAddr).Port, abstract.Addr().String()[1:])
	spec := hostSpec(t, "")
	spec.Argv = []string{python, "-S", "-c", script}
	got, _, err := run(t, spec)
	if want := "Connection refused\nConnection refused\n"; err != nil || got != want {
		t.Errorf("without network: got %q, %v, want %q", got, err, want)
	}
	spec = hostSpec(t, "")
	spec.Argv, spec.Network = []string{python, "-S", "-c", script}, true
	got, _, err = run(t, spec)
	if err != nil || !strings.HasPrefix(got, "connected\n") {
		t.Errorf("with network: got %q, %v", got, err)
	}
	if landlockScopes() && got != "connected\nOperation not permitted\n" {
		t.Errorf("abstract socket with network: got %q", got)
	}
}

func landlockScopes() bool {
	v, _, errno := syscall.RawSyscall(444, 0, 0, 1)
	return errno == 0 && v >= 6
}

// TestServerDies ends the fork server while a builder runs: that one goes on, and others can start.
func TestServerDies(t *testing.T) {
	requireSandbox(t)
	l, killed := launcher(t), 0
	die := &firstWrite{then: func() {
		for _, pid := range children(t, os.Getpid()) {
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(name) == "cairn-sandbox\n" && !inNamespace(pid) {
				syscall.Kill(pid, syscall.SIGKILL)
				killed++
			}
		}
	}}
	st, err := l.Run(t.Context(), hostSpec(t, `echo started; sleep 0.2; exit 7`), die)
	if err != nil || st.ExitCode != 7 || killed != 1 {
		t.Errorf("the builder that ran: %v, %v; %d servers killed", st, err, killed)
	}
	if st, err = l.Run(t.Context(), hostSpec(t, `exit 8`), io.Discard); err != nil || st.ExitCode != 8 {
		t.Errorf("the next one: %v, %v", st, err)
	}
}

// children are the processes that one has started.
func children(t *testing.T, pid int) []int {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || tasks == nil {
		t.Fatalf("no list of children: %v", err)
	}
	var list []int
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for _, f := range strings.Fields(string(text)) {
			n, _ := strconv.Atoi(f)
			list = append(list, n)
		}
	}
	return list
}

// inNamespace reports whether a process has another pid namespace than the test.
func inNamespace(pid int) bool {
	own, _ := os.Readlink("/proc/self/ns/pid")
	its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return own != its
}

// TestParentDies kills a daemon: its builders must not outlive it.
func TestParentDies(t *testing.T) {
	requireSandbox(t)
	const key = "CAIRN_TEST_SANDBOX_PARENT"
	if dir := os.Getenv(key); dir != "" {
		spec := hostSpec(t, `trap "" HUP TERM INT; while :; do date +%N >/build/alive; done`)
		spec.Mounts[2].Source = dir
		launcher(t).Run(t.Context(), spec, io.Discard)
		return
	}
	dir := t.TempDir()
	os.Chmod(dir, 0o777)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestParentDies$")
	cmd.Env = append(os.Environ(), key+"="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "alive")
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Error("the builder does not start")
			break
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	time.Sleep(100 * time.Millisecond)
	before, _ := os.ReadFile(file)
	time.Sleep(200 * time.Millisecond)
	if after, _ := os.ReadFile(file); !bytes.Equal(before, after) {
		t.Error("the builder outlives the one who started it")
	}
}

// TestManyAtOnce checks that builders that start at the same time do not get each other's files and results.
func TestManyAtOnce(t *testing.T) {
	requireSandbox(t)
	l := launcher(t)
	var wg sync.WaitGroup
	for i := range 40 {
		spec := hostSpec(t, fmt.Sprintf("echo %d; exit %d", i, i))
		wg.Go(func() {
			var log bytes.Buffer
			st, err := l.Run(t.Context(), spec, &log)
			if want := fmt.Sprintln(i); err != nil || st.ExitCode != i || log.String() != want {
				t.Errorf("builder %d: %v, %v, log %q", i, st, err, log.String())
			}
		})
	}
	wg.Wait()
}

// TestOrdinaryUser runs the other tests again as nobody.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the tests run as an ordinary user already")
	}
	dir, err := os.MkdirTemp("", "sandbox-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chown(dir, 65534, 65534)
	cmd := exec.Command("/proc/self/exe", "-test.run=^Test(Inside|SystemCalls|Status|MissingProgram|BackgroundProcess|Cancel|Network|ServerDies|ParentDies|ManyAtOnce)$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "--- SKIP: TestInside") {
		t.Errorf("%v\n%s", err, out)
	}
}

func BenchmarkRun(b *testing.B) {
	requireSandbox(b)
	spec, l := hostSpec(b, "exit 0"), launcher(b)
	for b.Loop() {
		if _, err := l.Run(b.Context(), spec, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
