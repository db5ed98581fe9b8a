package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/tests/lab"
)

// cutSystem is a system whose name, host name, files, units and account all say the same word.
const cutSystem = `
load("@cairn//base.star", "base_services", "etc", "etc_file", "unit", "units")

says = args.get("says")

def sleeper(name):
    return unit(name, description = "Sleeps for " + says, sections = {"Service": {"ExecStart": "/bin/sleep infinity"}})

cut = system(
    host_name = "cut-" + says,
    users = [user("user-" + says, system = True, create_home = False)],
    services = base_services + [
        simple_service("files", etc, [
            etc_file("cut/says", plain_file("says", says + "\n")),
            etc_file("cut/only-" + says, plain_file("only", says + "\n")),
        ]),
        simple_service("sleepers", units, [
            sleeper("always.service"),
            sleeper("only-" + says + ".service"),
        ]),
    ],
)
`

// cutLoad switches there and back, and adds files and trees, until it dies. It says what it begins and what is done.
// "$1" is new in each round.
const cutLoad = `
mkdir -p /root/add/tree; cd /root/add
add() { n=0; while :; do n=$((n+1))
	head -c $((RANDOM * 8)) /dev/urandom >file; cp file tree/$((n % 20))
	p=$(cairn store add --name file-$1-$n file) && echo "added $p" || { echo "failed: add"; exit; }
	p=$(cairn store add --name tree-$1-$n tree) && echo "added $p" || { echo "failed: add"; exit; }
done; }
watch() { while :; do [ -L /cairn/var/journal/pending ] && echo pending; sleep .1; done; }
say() { echo "begin $1"; shift; if out=$("$@" 2>&1); then echo "done $says"; else echo "failed: $*: $out"; exit; fi; }
add $1 & watch &
n=0
while :; do n=$((n+1))
	old=$(cat /etc/cut/says) link=$(readlink /cairn/var/profiles/system)
	link=${link#system-} says=$1$n; say $says cairn system reconfigure -q --arg says=$says /root/cut.star
	says=$old; say $says cairn system switch-generation ${link%-link}
	says=$1$n; say $says cairn system reconfigure -q --arg says=$says /root/cut.star
done
`

// cutCheck is what must hold after any cut. Its arguments are objects that must be there; it prints the word of the system.
const cutCheck = `
bad() { echo "$*" >&2; cat /cairn/var/journal/switch-*.jsonl | tail -n 40 | cut -c 1-300 >&2; exit 1; }
is() { [ "$2" = "$3" ] || bad "$1 is \"$2\", want \"$3\""; }
state=$(systemctl is-system-running --wait)
[ "$state" = running ] || bad "state is $state: $(systemctl --failed --no-legend)"
[ ! -L /cairn/var/journal/pending ] || bad "a switch is pending"
sys=$(readlink -f /cairn/var/profiles/system); says=${sys#*-cut-}; says=${says%-system}
is "current system" "$(readlink /run/current-system)" "$sys"
is "file" "$(cat /etc/cut/says)" "$says"
is "link" "$(readlink /etc/cut/says)" /cairn/var/profiles/system/etc/cut/says
is "files" "$(ls /etc/cut | tr '\n' ' ')" "only-$says says "
is "dangling links" "$(find /etc -type l -lname '/cairn/*' ! -exec test -e {} \; -print)" ""
is "host name" "$(hostname) $(cat /etc/hostname)" "cut-$says cut-$says"
is "units" "$(systemctl list-units --plain --no-legend --state=active 'only-*' always.service | cut -d ' ' -f 1 | tr '\n' ' ')" "always.service only-$says.service "
getent passwd "user-$says" >/dev/null || bad "no account user-$says"
is "daemon" "$(systemctl is-active cairn-daemon)" active
out=$(cairn store verify --contents 2>&1) || bad "verify: $out"
[ $# = 0 ] || out=$(cairn store path-info "$@" 2>&1) || bad "path-info: $out"
echo "$says"
`

// cutHost is a host that loses power.
type cutHost struct {
	*lab.Host
	t     *testing.T
	lab   *lab.Lab
	says  string   // the word of its system
	added []string // what it said it had
}

// told is what a host said under load, before it lost power.
type told struct {
	sync.Mutex
	begun, done string // words of systems
	added       []string
	failed      string
	after       string        // a first word of a line
	seen        chan struct{} // closed when there was such a line
}

func (s *told) line(line string) {
	s.Lock()
	defer s.Unlock()
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "begin":
		s.begun = rest
	case "done":
		s.begun, s.done = "", rest
	case "added":
		s.added = append(s.added, rest)
	case "failed:":
		s.failed = rest
	}
	if word == s.after {
		s.after = ""
		close(s.seen)
	}
}

// cut puts the host under load and cuts its power at a random moment, up to within after it said a line with the first word after.
func (h *cutHost) cut(round int, after string, within time.Duration) *told {
	h.t.Helper()
	s := &told{done: h.says, after: after, seen: make(chan struct{})}
	ctx, stop := context.WithCancel(h.t.Context())
	defer stop()
	load := exec.CommandContext(ctx, h.lab.SSH(), h.Name, "--", "bash", "/root/load", fmt.Sprintf("r%dn", round))
	out, err := load.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := load.Start(); err != nil {
		h.t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.line(lines.Text())
		}
	})
	select {
	case <-s.seen:
	case <-time.After(20 * time.Second):
	}
	time.Sleep(rand.N(within))
	if err := h.Kill(); err != nil {
		h.t.Fatal(err)
	}
	stop()
	reading.Wait()
	load.Wait()
	return s
}

// check checks the host, and that it is at one of the systems that it may be at.
func (h *cutHost) check(may ...string) {
	h.t.Helper()
	out, err := h.Run(h.t.Context(), append([]string{"bash", "/root/check"}, h.added...)...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.says = strings.TrimSpace(out)
	for _, m := range may {
		if h.says == m {
			return
		}
	}
	h.t.Fatalf("the system is %q, may be %q", h.says, may)
}

func newCutHost(t *testing.T) *cutHost {
	t.Helper()
	l := lab.New(t, 1, &lab.Options{Kernel: true})
	h := &cutHost{Host: l.Hosts[0], t: t, lab: l}
	program, err := os.Open(cairn(t))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if err := h.Put(t.Context(), "/root/cairn", program, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cut.star": cutSystem, "load": cutLoad, "check": cutCheck} {
		if err := h.Put(t.Context(), "/root/"+name, strings.NewReader(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, argv := range [][]string{
		{"/root/cairn", "init", "--daemon"},
		{"cairn", "system", "reconfigure", "-q", "--arg", "says=first", "/root/cut.star"},
		{"sync"}, // what this test brought, not what cairn did: that must be there anyway
	} {
		if _, err := h.Run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// cutMoments are when to cut, in turn: while evaluating, building and adding; in a switch; after one, in the next.
var cutMoments = []struct {
	after  string
	within time.Duration
}{{"begin", 8 * time.Second}, {"pending", time.Second}, {"done", 5 * time.Second}, {"pending", 2 * time.Second}}

// TestKernelPowerCut cuts the power of a host with a disk of its own in the middle of switches and additions:
// what was not brought to the disk is lost, and what was acknowledged must have been brought there.
func TestKernelPowerCut(t *testing.T) {
	t.Parallel()
	h := newCutHost(t)
	h.check("first")
	interrupted := 0
	start := time.Now()
	for round := 1; round <= 6 || round <= 10 && time.Since(start) < 100*time.Second; round++ {
		m := cutMoments[round%len(cutMoments)]
		s := h.cut(round, m.after, m.within)
		if s.failed != "" {
			t.Fatalf("round %d: %s", round, s.failed)
		}
		h.added = append(h.added, s.added...)
		again := ""
		if round%3 == 0 { // and in the middle of the recovery
			ctx, stop := context.WithTimeout(t.Context(), 2*time.Second+rand.N(4*time.Second))
			err := h.Boot(ctx)
			stop()
			if err != nil {
				again = ", again while booting"
			}
			if err := h.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		may := []string{s.done}
		if s.begun != "" {
			may = append(may, s.begun)
			interrupted++
		}
		h.check(may...)
		t.Logf("%3.0f s: cut %d%s: done %q, begun %q, %d objects added: at %q", time.Since(start).Seconds(), round, again, s.done, s.begun, len(s.added), h.says)
	}
	if interrupted == 0 || len(h.added) == 0 {
		t.Errorf("%d switches interrupted, %d objects added: nothing was tested", interrupted, len(h.added))
	}
	t.Run("reboot unconfirmed", func(t *testing.T) { h.t = t; h.rebootUnconfirmed() })
}

// rebootUnconfirmed reboots from inside, with a switch that nobody has confirmed: it must be undone.
func (h *cutHost) rebootUnconfirmed() {
	ctx, t := h.t.Context(), h.t
	if _, err := h.Run(ctx, "cairn", "system", "reconfigure", "-q", "--confirm-within", "10m", "--arg", "says=unconfirmed", "/root/cut.star"); err != nil {
		t.Fatal(err)
	}
	before, err := h.Run(ctx, "cat", "/etc/cut/says", "/proc/sys/kernel/random/boot_id")
	if err != nil || !strings.HasPrefix(before, "unconfirmed\n") {
		t.Fatalf("got %q, %v", before, err)
	}
	h.Run(ctx, "systemctl", "reboot") // may or may not see the connection end
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if id, err := h.Run(ctx, "cat", "/proc/sys/kernel/random/boot_id"); err == nil && !strings.HasSuffix(before, "\n"+id) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("did not come back from a reboot")
		}
	}
	h.check(h.says)
}
