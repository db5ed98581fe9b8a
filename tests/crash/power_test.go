package crash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"cairn/tests/lab"
)

// diskSize is that of each disk of the host; the files have holes.
const diskSize = 1 << 30

// fileSystem is one that the store is on when the power is cut.
type fileSystem struct {
	name    string
	options string   // of its mount
	make    []string // the command that makes one, without its last argument, the disk
	needs   string   // the package of that command
}

// fileSystems differ in what a flush of one file brings to the disk besides: ext4 and XFS have one journal for all, so that
// what came before is there, too; btrfs has a log tree that knows only of the files that were flushed.
// No file system has its renames flush files by themselves.
var fileSystems = []fileSystem{
	{"ext4", "noauto_da_alloc", []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, "e2fsprogs"},
	{"xfs", "", []string{"mkfs.xfs", "-q", "-f"}, "xfsprogs"},
	{"btrfs", "", []string{"mkfs.btrfs", "-q", "-f"}, "btrfs-progs"},
}

// TestPower cuts the power. A host with a kernel of its own runs the load "power" on a disk whose writes dm-log-writes records in the
// order in which they became durable, acknowledgements between them. Then the writes are brought to another disk, and before flushes and after
// acknowledgements that are chosen at random the power is cut: what was flushed is there, of what was not a random part in blocks
// of 4 KiB, or nothing. The file system there is mounted, and what must hold after a kill must hold after that, too.
//
// CAIRN_POWER is the number of cuts, of which each file system has its share: make power N=200
func TestPower(t *testing.T) {
	cuts := 30
	switch s := os.Getenv("CAIRN_POWER"); {
	case s != "":
		var err error
		if cuts, err = strconv.Atoi(s); err != nil {
			t.Fatalf("CAIRN_POWER: %v", err)
		}
	case os.Getenv("CAIRN_CI") == "":
		t.Skip("power cuts are not asked for; make power, or CAIRN_POWER=40 go test ./tests/crash -run Power")
	}
	kernel, err := lab.Kernel(t.Context(), os.Getenv("CAIRN_CI") != "", os.Stderr)
	if err != nil {
		t.Skip(err)
	}
	seed, load := time.Now().UnixNano(), 3*time.Second
	if s := os.Getenv("CAIRN_POWER_SEED"); s != "" {
		if seed, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatalf("CAIRN_POWER_SEED: %v", err)
		}
	}
	if s := os.Getenv("CAIRN_POWER_TIME"); s != "" {
		if load, err = time.ParseDuration(s); err != nil {
			t.Fatalf("CAIRN_POWER_TIME: %v", err)
		}
	}
	for i, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(fs.make[0]); err != nil {
				t.Skipf("%v; apt-get install %s", err, fs.needs)
			}
			share := (cuts + len(fileSystems) - 1 - i) / len(fileSystems)
			h := &powerRig{kernel: kernel, dir: tempDir(t), fs: fs, cuts: share, seed: seed, load: load}
			h.test(t)
		})
	}
}

// powerRig is the host seen from outside.
type powerRig struct {
	kernel, dir string
	fs          fileSystem
	cuts        int
	seed        int64
	load        time.Duration
}

func (h *powerRig) test(t *testing.T) {
	t.Helper()
	res := h.run(t)
	for _, f := range res.Failures {
		t.Error(f)
	}
	if res.Cuts < h.cuts/2 || res.Acknowledged == 0 {
		t.Errorf("only %d cuts, %d acknowledgements", res.Cuts, res.Acknowledged)
	}
	if t.Failed() {
		t.Fatalf("seed %d", h.seed)
	}
	t.Logf("%s: %d power cuts in %d writes with %d flushes, recorded in %v and replayed in %v, seed %d; acknowledged %d, relied on %d times after cuts, lost 0",
		h.fs.name, res.Cuts, res.Entries, res.Flushes, res.Record.Round(time.Second), res.Replay.Round(time.Second), h.seed, res.Acknowledged, res.Replayed)
}

func (h *powerRig) run(t *testing.T) *powerResult {
	t.Helper()
	root := filepath.Join(h.dir, "root")
	for _, d := range []string{"proc", "sys", "dev", "tmp", "mnt", "bin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", plainProgram(t), filepath.Join(root, "init"))
	run(t, "cp", "/bin/busybox", filepath.Join(root, "bin/busybox")) // for builders
	h.disks(t)
	log, err := os.Create(filepath.Join(h.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), h.load+time.Minute+time.Duration(h.cuts)*10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.kernel, "mem=768M", "umid=power", "uml_dir="+h.dir+"/", "seccomp=on",
		"con0=null,fd:1", "con=null", "ssl=null", "root=/dev/root", "rootfstype=hostfs", "rootflags="+root, "rw", "init=/init", "quiet", "panic=1",
		"ubd0="+h.disk(0), "ubd1="+h.disk(1), "ubd2="+h.disk(2), "ubd3="+h.disk(3),
		"CAIRN_CRASH_ROLE=power", fmt.Sprintf("%s=%d", powerCuts, h.cuts), fmt.Sprintf("%s=%d", powerSeed, h.seed), powerTime+"="+h.load.String(), powerFS+"="+h.fs.name)
	cmd.Env = append(os.Environ(), "TMPDIR="+h.dir)
	cmd.Stdout, cmd.Stderr = log, log
	runErr := cmd.Run()
	res := &powerResult{}
	b, err := os.ReadFile(filepath.Join(root, resultIn))
	if err == nil {
		err = json.Unmarshal(b, res)
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("the host has no result: %v\n%s", errors.Join(runErr, err), text)
	}
	return res
}

func (h *powerRig) disk(n int) string { return filepath.Join(h.dir, fmt.Sprintf("disk%d", n)) }

// disks makes the disks: the first and the third are equal.
func (h *powerRig) disks(t *testing.T) {
	t.Helper()
	for n := range 4 {
		f, err := os.Create(h.disk(n))
		if err == nil {
			err = errors.Join(f.Truncate(diskSize), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run(t, append(slices.Clone(h.fs.make), h.disk(0))...)
	run(t, "cp", "--sparse=always", h.disk(0), h.disk(2))
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
}
