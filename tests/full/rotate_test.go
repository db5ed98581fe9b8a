package full

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/meta"
)

// TestRotation has another program fill the disk and make room again, all the time, while a database with the smallest memtables
// changes from one to the next, writes tables and compacts them. It is killed, and opened, full or not, and
// closed on a full disk. What it refuses it refuses for want of space, no write to a journal is its death, and it loses nothing. It may die while it
// makes a table, or is opened.
func TestRotation(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir := mount(t, kind)
			r := &rotation{dir: dir, db: filepath.Join(dir, "db"), acknowledged: filepath.Join(t.TempDir(), "acknowledged")}
			for round := 0; round < 4 || round < 16 && !r.enough(t); round++ {
				r.round(t, round)
			}
			if !r.enough(t) {
				t.Errorf("too little happened")
			}
			r.check(t)
		})
	}
}

// TestLeftTables opens a database whose disk is full of what a process has left that died while it merged tables, and which has no room to merge
// them: it opens, so that something can be deleted.
func TestLeftTables(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir := mount(t, kind)
			r := &rotation{dir: dir, db: filepath.Join(dir, "db"), acknowledged: filepath.Join(t.TempDir(), "acknowledged")}
			w := r.start(t)
			r.awaitTables(t, 40<<20)
			r.stop(t, w)
			left, full := filepath.Join(r.db, "999999.sst"), filepath.Join(r.dir, "hog-full")
			os.Remove(filepath.Join(r.db, "ballast")) // given up before
			if err := hogAllBut(full, r.dir, 30<<20); err != nil {
				t.Fatal(err)
			}
			if err := hogAllBut(left, r.dir, 1<<20); err != nil {
				t.Fatal(err)
			}
			w = r.start(t)
			r.lives(t, w, 2*time.Second)
			r.stop(t, w)
			if _, err := os.Stat(left); err == nil {
				t.Errorf("%s is still there", left)
			}
			os.Remove(full)
			r.check(t)
		})
	}
}

// awaitTables waits until the tables have so many bytes.
func (r *rotation) awaitTables(t *testing.T, bytes int64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		sum := int64(0)
		names, _ := filepath.Glob(filepath.Join(r.db, "*.sst"))
		for _, name := range names {
			if fi, err := os.Stat(name); err == nil {
				sum += fi.Size()
			}
		}
		if sum > bytes {
			return
		}
	}
	t.Fatal("too few tables")
}

// lives checks that the process does for a while.
func (r *rotation) lives(t *testing.T, w *writer, length time.Duration) {
	t.Helper()
	time.Sleep(length)
	select {
	case <-w.ended:
		said := r.read(t, w)
		t.Fatalf("the writer ended: %v\n%s", w.ProcessState, said[max(0, strings.Index(said, "SIGBUS")):])
	default:
	}
}

// stop has the process close the database.
func (r *rotation) stop(t *testing.T, w *writer) {
	t.Helper()
	w.Process.Signal(unix.SIGTERM)
	<-w.ended
	said := r.read(t, w)
	if !strings.Contains(said, "closed: <nil>") {
		t.Errorf("%v: %s", w.ProcessState, said[max(0, len(said)-2000):])
	}
}

// hogAllBut makes a file of all that is free in dir but so many bytes.
func hogAllBut(name, dir string, bytes int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	free, err := meta.Free(dir)
	if err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), 0, 0, free.Bytes-bytes)
}

type rotation struct {
	dir, db, acknowledged    string
	refused, rotations, died int
}

// writer is the writing process.
type writer struct {
	*exec.Cmd
	said  *os.File
	ended chan struct{}
}

func (r *rotation) start(t *testing.T) *writer {
	t.Helper()
	said, err := os.CreateTemp(t.TempDir(), "said-")
	if err != nil {
		t.Fatal(err)
	}
	var rig rig
	w := &writer{Cmd: rig.command(context.Background(), r.db, r.acknowledged), said: said, ended: make(chan struct{})}
	w.Env = append(os.Environ(), "CAIRN_FULL_ROLE=writer")
	w.Stdout, w.Stderr = said, said
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		w.Wait()
		close(w.ended)
	}()
	t.Cleanup(func() {
		w.Process.Kill()
		<-w.ended
		said.Close()
	})
	return w
}

// read counts what a process that has ended has said.
func (r *rotation) read(t *testing.T, w *writer) string {
	t.Helper()
	b, err := os.ReadFile(w.said.Name())
	if err != nil {
		t.Fatal(err)
	}
	r.refused += strings.Count(string(b), "refused")
	r.rotations += strings.Count(string(b), "journal")
	return string(b)
}

// round runs the writing process while the disk is filled again and again, and kills it.
func (r *rotation) round(t *testing.T, round int) {
	hogs := filepath.Join(r.dir, "hog-")
	if round%2 == 1 { // it starts on a full disk
		hog(hogs + "0")
	}
	w := r.start(t)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		hog(hogs + "1")
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		os.Remove(hogs + "0")
		os.Remove(hogs + "1")
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		select {
		case <-w.ended:
			r.died++
			said := r.read(t, w)
			_, trace, fault := strings.Cut(said, "SIGBUS")
			_, trace, _ = strings.Cut(trace, "\ngoroutine ") // the one that was running
			trace, _, _ = strings.Cut(trace, "\ngoroutine ")
			if !fault || !strings.Contains(trace, "CreateTable") && !strings.Contains(trace, "badger/v4.Open") {
				t.Fatalf("the writer ended: %v\n%s%s", w.ProcessState, trace, said[max(0, len(said)-100):])
			}
			w = r.start(t)
		default:
		}
	}
	if round == 1 {
		hog(hogs + "1") // and is told to close
		w.Process.Signal(unix.SIGTERM)
	} else {
		w.Process.Kill()
	}
	<-w.ended
	os.Remove(hogs + "1")
	r.read(t, w)
}

// enough reports whether so much has happened that it shows something: how much does depends on the machine.
func (r *rotation) enough(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile(r.acknowledged)
	if err != nil {
		t.Fatal(err)
	}
	changes := bytes.Count(b, []byte("put ")) + bytes.Count(b, []byte("delete "))
	return r.refused > 0 && r.rotations >= 5 && changes >= 100
}

// check opens the database where there is room, and looks for all that was acknowledged.
func (r *rotation) check(t *testing.T) {
	db, err := meta.Open(r.db, store.DefaultDir, rotationOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	b, err := os.ReadFile(r.acknowledged)
	if err != nil {
		t.Fatal(err)
	}
	last := map[int]bool{}    // whether an object was there when it was last acknowledged to be, or not
	unknown := map[int]bool{} // whether a process died since then in the midst of changing it
	trying := -1
	lines := bufio.NewScanner(strings.NewReader(string(b)))
	count := 0
	for lines.Scan() {
		verb, number, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		switch verb {
		case "try":
			if trying >= 0 {
				unknown[trying] = true
			}
			trying = n
			continue
		case "put", "delete":
			last[n] = verb == "put"
			count++
			delete(unknown, n)
		}
		trying = -1
	}
	if trying >= 0 {
		unknown[trying] = true
	}
	lost := 0
	for n, there := range last {
		if unknown[n] {
			continue
		}
		for i := range rotationBatch {
			_, err := db.Object(rotationDigest(n, i))
			if err != nil && !errors.Is(err, meta.ErrNotFound) {
				t.Fatal(err)
			}
			if (err == nil) != there {
				if lost++; i == 0 {
					t.Logf("%d is there: %t; it was\n%s", n, err == nil, strings.Join(regexp.MustCompile(fmt.Sprintf(`(?m)^.* %d$`, n)).FindAllString(string(b), -1), "\n"))
				}
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d objects are not as was acknowledged", lost)
	}
	t.Logf("%d transactions acknowledged, %d refused for want of space, %d journals, died %d times; lost %d", count, r.refused, r.rotations, r.died, lost)
}

// rotationOptions have journals of 8 MiB and a small reserve.
var rotationOptions = &meta.Options{MemTableSize: 8 << 20, Reserve: 8 << 20}

// rotationBatch is how many objects a transaction has, of some 4 KiB each.
const rotationBatch = 100

func rotationDigest(n, i int) (d meta.Digest) {
	copy(d[:], fmt.Sprintf("%d/%d", n, i))
	return d
}

func rotationChange(db *meta.DB, name int, verb string) *meta.Batch {
	forget := db.Forget()
	defer forget.Close()
	b := new(meta.Batch)
	for i := range rotationBatch {
		d := rotationDigest(name, i)
		if verb == "put" {
			b.PutObject(d, &meta.Object{Name: "x", References: make([]meta.Digest, 200)})
		} else if _, err := db.Object(d); errors.Is(err, meta.ErrNotFound) {
			continue
		} else if err := forget.Object(b, d, false, false); err != nil {
			panic(err)
		}
	}
	return b
}

// write puts and deletes batches of objects until it is killed, and notes which were acknowledged: "try" and "put", "delete" or "refuse".
func write(dir, acknowledged string) int {
	var db *meta.DB
	for db == nil {
		var err error
		if db, err = meta.Open(dir, store.DefaultDir, rotationOptions); err != nil {
			fmt.Println("refused to open:", err)
			if !errors.Is(err, meta.ErrNoSpace) {
				return 1
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	log, err := os.OpenFile(acknowledged, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	newest := ""
	for {
		select {
		case <-stop:
			fmt.Println("closed:", db.Close())
			return 0
		default:
		}
		name, verb := rand.IntN(150), "put"
		if rand.IntN(3) == 0 {
			verb = "delete"
		}
		fmt.Fprintf(log, "try %d\n", name)
		err := db.Commit(rotationChange(db, name, verb))
		switch {
		case err == nil:
			fmt.Fprintf(log, "%s %d\n", verb, name)
		case errors.Is(err, meta.ErrNoSpace):
			fmt.Fprintf(log, "refuse %d\n", name)
			fmt.Println("refused:", err)
			time.Sleep(5 * time.Millisecond)
		default:
			fmt.Println(err)
			return 1
		}
		if names, _ := filepath.Glob(filepath.Join(dir, "*.mem")); len(names) > 0 && names[len(names)-1] != newest {
			newest = names[len(names)-1]
			fmt.Println("journal", newest)
		}
	}
}
