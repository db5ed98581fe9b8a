package crash

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store/failpoint"
)

// arm arms failpoints. Points is a comma-separated list of
//
//	count:FILE       write the names of failpoints that are passed to a file
//	kill:NAME:N      die when NAME is passed for the n-th time
//	error:NAME:N     return EIO there, with N = 0 each time
func arm(points string) error {
	var all []failpoint.Func
	for point := range strings.SplitSeq(points, ",") {
		if point == "" {
			continue
		}
		fn, err := parsePoint(strings.Split(point, ":"))
		if err != nil {
			return fmt.Errorf("failpoint %q: %w", point, err)
		}
		all = append(all, fn)
	}
	if len(all) == 0 {
		return nil
	}
	failpoint.Arm(func(name string) error {
		for _, fn := range all {
			if err := fn(name); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}

func parsePoint(f []string) (failpoint.Func, error) {
	if len(f) == 2 && f[0] == "count" {
		return counter(f[1])
	}
	if len(f) != 3 || !slices.Contains(failpoint.Names, f[1]) {
		return nil, fmt.Errorf("no such failpoint")
	}
	n, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return nil, err
	}
	if f[0] == "kill" {
		return failpoint.Kill(f[1], n), nil
	}
	var passed atomic.Int64
	return func(name string) error {
		if name == f[1] && (n == 0 || passed.Add(1) == n) {
			return unix.EIO
		}
		return nil
	}, nil
}

func counter(file string) (failpoint.Func, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	return func(name string) error {
		f.WriteString(name + "\n")
		return nil
	}, nil
}

// after says which error must have come before a failpoint can be passed.
var after = map[string]string{
	"disk/add/taken-back": "disk/add/named",
	"disk/replace/next":   "disk/replace/exchange",
	"disk/replace/away":   "disk/replace/exchange",
}

// errorPoints can return an error of the operating system.
var errorPoints = []string{"disk/add/flushed", "disk/add/named", "disk/add/renamed", "disk/add/split", "disk/replace/exchange", "meta/commit/begin"}

// recovery are the failpoints of a start, by what must have been interrupted before.
func recovery(point string) string {
	switch {
	case strings.HasPrefix(point, "disk/link/"), point == "disk/replace/away":
		return "disk/recover/finished"
	case point == "disk/delete/trashed", point == "disk/remove/entry", point == "disk/replace/trashed", point == "disk/delete/removed":
		return "disk/recover/trash"
	case point == "disk/add/committed", strings.HasPrefix(point, "profile/"):
		return "disk/recover/swept"
	}
	return "disk/recover/stray"
}

// seeds says with how many seeds each load is killed at each failpoint that it comes past. Unasked, that is done with one seed, and
// for each failpoint under one load only.
func seeds(t *testing.T) (n int, all bool) {
	n = rounds(t, 0)
	return max(1, n/20), n > 0
}

// tally is what TestPoints counts.
type tally struct {
	mu           sync.Mutex
	fired        map[string]int // failpoint → kills
	pairs        map[string]bool
	kills, again int
	missed       []string // "load point"
	acknowledged int
}

func (c *tally) kill(load, point string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fired[point]++
	c.pairs[load+" "+point] = true
	c.kills++
}

func (c *tally) never(point string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fired[point] == 0
}

// TestPoints kills at each failpoint under each load.
func TestPoints(t *testing.T) {
	count := &tally{fired: map[string]int{}, pairs: map[string]bool{}}
	seeds, all := seeds(t)
	plan := discover(t)
	start := uint64(time.Now().UnixNano())
	if s := os.Getenv("CAIRN_CRASH_SEED"); s != "" {
		var err error
		if start, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CAIRN_CRASH_SEED: %v", err)
		}
	}
	if !all {
		plan = sample(plan, start)
	}
	t.Run("load", func(t *testing.T) {
		for _, l := range loads {
			if len(plan[l.name]) == 0 {
				continue
			}
			t.Run(l.name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, plainProgram(t))
				for n := range seeds {
					for _, point := range sorted(plan[l.name]) {
						r.killAt(t, l, point, plan[l.name][point], start+uint64(n), count)
						if t.Failed() {
							t.Fatalf("seed %d, at %s", start+uint64(n), point)
						}
					}
				}
				count.mu.Lock()
				defer count.mu.Unlock()
				count.acknowledged += r.replay(t).acknowledged
			})
		}
	})
	for _, name := range failpoint.Names {
		if count.fired[name] == 0 {
			t.Errorf("nothing was ever killed at %s", name)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	t.Logf("%d failpoints × %d loads × %d seeds (%d pairs of the former): %d kills, %d of them during recovery, %d never reached; acknowledged %d, lost 0",
		len(count.fired), len(plan), seeds, len(count.pairs), count.kills, count.again, len(count.missed), count.acknowledged)
	for _, pair := range count.missed {
		t.Logf("never reached: %s", pair)
	}
}

func sorted(m map[string]int) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// discover runs each load once, under the race detector if the test is, and returns how often it comes past each failpoint.
func discover(t *testing.T) map[string]map[string]int {
	plan := map[string]map[string]int{}
	var mu sync.Mutex
	t.Run("discover", func(t *testing.T) {
		for _, l := range loads {
			if l.steps == 0 {
				continue
			}
			t.Run(l.name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, thisProgram)
				r.daemon(t, "").kill() // what only the first one does is not counted
				file := filepath.Join(t.TempDir(), "passed")
				if errs, _ := r.runLoad(t, l, "count:"+file); errs != "" {
					t.Error(errs)
				}
				r.check(t)
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				passed := map[string]int{}
				for name := range strings.FieldsSeq(string(b)) {
					if !strings.HasPrefix(name, "disk/recover/") && l.killedAt(name) {
						passed[name]++
					}
				}
				for point, first := range after {
					if passed[first] > 0 && l.killedAt(point) {
						passed[point] = 1
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if len(passed) > 0 {
					plan[l.name] = passed
				}
			})
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return plan
}

// sample keeps each failpoint in one load.
func sample(plan map[string]map[string]int, seed uint64) map[string]map[string]int {
	few := map[string]map[string]int{}
	random := rand.New(rand.NewPCG(seed, 0))
	for _, point := range failpoint.Names {
		var by []string
		for _, l := range loads {
			if plan[l.name][point] > 0 {
				by = append(by, l.name)
			}
		}
		if len(by) == 0 {
			continue
		}
		name := by[random.IntN(len(by))]
		if few[name] == nil {
			few[name] = map[string]int{}
		}
		few[name][point] = plan[name][point]
	}
	return few
}

// runLoad runs a load, with failpoints armed in the process that has the store open. It returns complaints, and whether that process was killed.
func (r *rig) runLoad(t *testing.T, l *load, points string) (string, bool) {
	t.Helper()
	if l.before != "" {
		if errs, _ := r.runLoad(t, loadNamed(l.before), ""); errs != "" {
			return l.before + ": " + errs, false
		}
	}
	if l.engine != nil {
		cmd := r.driver(t, l.name, points)
		out, err := cmd.CombinedOutput()
		if err != nil && !killed(cmd) {
			return fmt.Sprintf("%s%v", out, err), false
		}
		return string(out), err != nil
	}
	d := r.daemon(t, points, l.set...)
	defer d.kill()
	errs := r.drive(t, l.name, "")
	if c, err := net.Dial("unix", r.layout.SocketPath); err == nil {
		c.Close()
	} else {
		<-d.gone // it dies, and the driver has seen that first
	}
	dead := d.killed()
	d.kill()
	if text := d.log.String(); errs != "" || strings.Contains(text, "DATA RACE") {
		errs += "daemon:\n" + text
	}
	return errs, dead
}

// killAt runs a load until it is killed at a failpoint, has the next start killed, too, perhaps, and checks.
func (r *rig) killAt(t *testing.T, l *load, point string, passes int, seed uint64, count *tally) {
	t.Helper()
	h := fnv.New64()
	fmt.Fprint(h, l.name, point)
	random := rand.New(rand.NewPCG(seed, h.Sum64()))
	before := ""
	if first := after[point]; first != "" {
		before = "error:" + first + ":1,"
	}
	fired := false
	for _, n := range []int{1 + random.IntN(max(1, passes*2/3)), 1 + random.IntN(max(1, passes/4)), 1, 1, 1} {
		errs, dead := r.runLoad(t, l, fmt.Sprintf("%skill:%s:%d", before, point, n))
		if errs != "" && before == "" {
			t.Error(errs)
		}
		if fired = dead; fired || t.Failed() {
			break
		}
	}
	if !fired {
		count.mu.Lock()
		count.missed = append(count.missed, l.name+" "+point)
		count.mu.Unlock()
		r.check(t)
		return
	}
	count.kill(l.name, point)
	if again := recovery(point); random.IntN(2) == 0 || count.never(again) {
		r.killRecovery(t, again, count)
	}
	r.check(t)
}

// killRecovery has the next start die as well, if it comes past a failpoint.
func (r *rig) killRecovery(t *testing.T, point string, count *tally) {
	t.Helper()
	errs, dead := r.runLoad(t, loadNamed("open"), "kill:"+point+":1")
	if errs != "" {
		t.Error(errs)
	}
	if dead {
		count.kill("open", point)
		count.mu.Lock()
		count.again++
		count.mu.Unlock()
	}
}

// TestErrors has each failpoint that stands for an error return one, several times in a row.
func TestErrors(t *testing.T) {
	for _, point := range errorPoints {
		t.Run(strings.ReplaceAll(point, "/", "-"), func(t *testing.T) {
			t.Parallel()
			names := []string{"add", "import", "gc", "repair", "engine"}
			if _, all := seeds(t); !all {
				names = names[len(names)-1:]
			}
			for _, name := range names {
				r := newRig(t, thisProgram)
				var points []string
				for n := range 5 {
					points = append(points, fmt.Sprintf("error:%s:%d", point, n*2+1))
				}
				errs, dead := r.runLoad(t, loadNamed(name), strings.Join(points, ","))
				if dead {
					t.Errorf("%s: the daemon died: %s", name, errs)
				}
				r.check(t)
			}
		})
	}
}
