package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// smallDisk mounts a file system of the given size for a test.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CAIRN_CI") == "1" {
			t.Fatalf("mount a small tmpfs: %v", err)
		}
		t.Skipf("mount a small tmpfs: %v; run as root: sudo go test -run TestFullDisk ./store/disk", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFullDisk adds until the disk is full, checks that the error is clear and nothing is lost, makes it as full as
// others can make it, collects, and adds again.
func TestFullDisk(t *testing.T) {
	root := smallDisk(t, "256m")
	l, err := disk.NewLayout(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(l); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	added, err := fill(s, 4<<20)
	if !errors.Is(err, disk.ErrNoSpace) || !strings.Contains(err.Error(), "collect garbage or make room") {
		t.Fatalf("error of a full disk: %v", err)
	}
	if len(added) < 10 {
		t.Fatalf("only %d objects fit", len(added))
	}
	if _, err := fill(s, 1<<10); !errors.Is(err, disk.ErrNoSpace) { // to the brim
		t.Fatal(err)
	}
	if _, err := s.AddStream(t.Context(), "small", store.Text, store.SHA256, nil, strings.NewReader("x")); !errors.Is(err, disk.ErrNoSpace) {
		t.Errorf("small addition to a full disk: %v", err)
	}
	if _, err := s.TempDir(); !errors.Is(err, disk.ErrNoSpace) {
		t.Errorf("new build on a full disk: %v", err)
	}
	verify(t, s)

	// Somebody else takes the rest, to the last byte.
	hog := filepath.Join(root, "hog")
	if err := hogAll(hog); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if _, err := s.AddStream(t.Context(), "small", store.Text, store.SHA256, nil, strings.NewReader("x")); !errors.Is(err, disk.ErrNoSpace) {
		t.Errorf("small addition to a full disk: %v", err)
	}
	verify(t, s)
	if _, err := s.Delete(t.Context(), added[:1]); err != nil { // in the ballast's place
		t.Errorf("delete on a full disk: %v", err)
	}
	added = added[1:]

	// A new process opens the store, and deleting makes room.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = disk.Open(t.Context(), l, nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, p := range added {
		if !s.IsValid(p) {
			t.Fatalf("%s is lost", p)
		}
	}
	if _, err := s.Delete(t.Context(), added[1:]); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	text(t, s, "small", "x")
	verify(t, s)
}

// TestCloseFullDisk closes a store on a disk so full that not even the ballast helped, and opens it again, full as it is. Without care, the database would kill the process here.
func TestCloseFullDisk(t *testing.T) {
	root := smallDisk(t, "256m")
	l, err := disk.NewLayout(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(l); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestCloseFullDiskChild$", "-test.v")
	child.Env = append(os.Environ(), fullRoot+"="+root)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("child: %v\n%.4000s", err, out)
	}
	s := open(t, l) // in the place that the journals had
	if paths, _ := s.Count(); paths != 1 {
		t.Errorf("%d paths, want the one that is left", paths)
	}
	if _, err := s.AddStream(t.Context(), "small", store.Text, store.SHA256, nil, strings.NewReader("x")); !errors.Is(err, disk.ErrNoSpace) {
		t.Errorf("small addition to a full disk: %v", err)
	}
	for _, hog := range []string{"hog0", "hog1", "hog2"} {
		if err := os.Remove(filepath.Join(root, hog)); err != nil {
			t.Fatal(err)
		}
	}
	text(t, s, "small", "x")
}

// fullRoot tells the child of TestCloseFullDisk where its store is.
const fullRoot = "CAIRN_TEST_FULL_ROOT"

func TestCloseFullDiskChild(t *testing.T) {
	if os.Getenv(fullRoot) == "" {
		return
	}
	l, err := disk.NewLayout(os.Getenv(fullRoot), nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	text(t, s, "kept", "kept")
	gone := text(t, s, "gone", "gone")
	if err := hogAll(filepath.Join(l.Root, "hog0")); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if _, err := s.Delete(t.Context(), []store.Path{gone}); err != nil {
		t.Fatal(err)
	}
	if err := hogAll(filepath.Join(l.Root, "hog1")); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.StateDir, "db", "ballast")); err != nil && !errors.Is(err, fs.ErrNotExist) { // the database may have been first
		t.Fatal(err)
	}
	if err := hogAll(filepath.Join(l.Root, "hog2")); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.Is(err, disk.ErrNoSpace) {
		t.Fatalf("close: %v", err)
	}
}

// fill adds objects of some size, each referring to nothing, until it fails.
func fill(s *disk.Store, size int) ([]store.Path, error) {
	var added []store.Path
	for n := 0; ; n++ {
		archive := storetest.File(fmt.Sprint(n) + string(make([]byte, size)))
		info := storetest.Source(s.Dir(), "fill", archive)
		if err := s.Add(context.Background(), info, bytes.NewReader(archive)); err != nil {
			return added, err
		}
		added = append(added, info.Path)
	}
}

// hogAll writes until there is no space.
func hogAll(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
}
