package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies returns the mount points that systemd-nspawn has to be placed in:
// the unified one, and in the hybrid layout systemd's own beside it.
func hierarchies() []string {
	var found []string
	for _, name := range []string{"systemd", "unified"} {
		if dir := filepath.Join(cgroupRoot, name); exists(filepath.Join(dir, "cgroup.procs")) {
			found = append(found, dir)
		}
	}
	if found == nil {
		return []string{cgroupRoot}
	}
	return found
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// makeGroups makes the cgroup name in every hierarchy and returns their cgroup.procs files.
func makeGroups(name string) ([]string, error) {
	var procs []string
	for _, h := range hierarchies() {
		dir := filepath.Join(h, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		procs = append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	return procs, nil
}

// killGroups kills every process of the cgroups that match, and removes them.
// A guest can outlive systemd-nspawn; nothing outlives this.
func killGroups(pattern string) error {
	for _, h := range hierarchies() {
		dirs, err := filepath.Glob(filepath.Join(h, pattern))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if err := killGroup(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func killGroup(dir string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) // since Linux 5.14, unified only
		for _, pid := range groupProcesses(dir) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		err := removeGroup(dir)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill processes of cgroup %s: %w", dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// groupProcesses lists the processes of a cgroup and those below it.
func groupProcesses(dir string) []int {
	var pids []int
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		b, _ := os.ReadFile(path)
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// removeGroup removes a cgroup and those below it, which must be empty.
func removeGroup(dir string) error {
	var dirs []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
