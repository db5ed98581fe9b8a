package disk

import (
	"fmt"
	"os"
	"path/filepath"

	"cairn/store"
)

// Layout says where a store and what belongs to it are.
type Layout struct {
	Root       string    // prefix of everything below but Dir; empty for none
	Dir        store.Dir // the logical store directory, part of every path
	RealDir    string    // where the objects are
	StateDir   string    // database, roots, profiles, journals
	LogDir     string    // build logs
	SocketPath string    // the daemon's socket
	ConfDir    string    // ACL, keys, configuration
}

// NewLayout returns the layout below root (empty or "/": the machine's own), honouring the variables
// of nix: NIX_STORE_DIR, NIX_STATE_DIR, NIX_LOG_DIR, NIX_CONF_DIR, NIX_DAEMON_SOCKET_PATH.
// Root is put before each of them, too. A nil getenv has no variables.
func NewLayout(root string, getenv func(string) string) (Layout, error) {
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	or := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	dir, err := store.ParseDir(or("NIX_STORE_DIR", string(store.DefaultDir)))
	if err != nil {
		return Layout{}, err
	}
	if root != "" {
		if root, err = filepath.Abs(root); err != nil {
			return Layout{}, fmt.Errorf("root of the store: %w", err)
		}
	}
	state := or("NIX_STATE_DIR", "/cairn/var")
	l := Layout{
		Root:       root,
		Dir:        dir,
		RealDir:    string(dir),
		StateDir:   state,
		LogDir:     or("NIX_LOG_DIR", filepath.Join(state, "log")),
		SocketPath: or("NIX_DAEMON_SOCKET_PATH", filepath.Join(state, "daemon-socket", "socket")),
		ConfDir:    or("NIX_CONF_DIR", "/etc/cairn"),
	}
	for _, p := range []*string{&l.RealDir, &l.StateDir, &l.LogDir, &l.SocketPath, &l.ConfDir} {
		if !filepath.IsAbs(*p) {
			return Layout{}, fmt.Errorf("directory %q is not absolute", *p)
		}
		*p = filepath.Join(root, *p)
	}
	return l, nil
}

// RealPath returns where the object p is.
func (l *Layout) RealPath(p store.Path) string { return filepath.Join(l.RealDir, p.Base()) }

// Init makes the directories of a store. What is there stays.
func Init(l Layout) error {
	type dir struct {
		path string
		mode os.FileMode
	}
	dirs := []dir{
		{l.RealDir, 0o1775 &^ 0o1000},
		{filepath.Join(l.RealDir, poolName), 0o755},
		{l.StateDir, 0o755},
		{filepath.Join(l.StateDir, "db"), 0o700},
		{filepath.Join(l.StateDir, "gcroots"), 0o755},
		{filepath.Join(l.StateDir, "gcroots", "auto"), 0o755},
		{filepath.Join(l.StateDir, "gcroots", "per-user"), 0o755},
		{filepath.Join(l.StateDir, "profiles"), 0o755},
		{filepath.Join(l.StateDir, "profiles", "per-user"), 0o755},
		{filepath.Join(l.StateDir, "temproots"), 0o755},
		{filepath.Join(l.StateDir, "journal"), 0o700},
		{l.LogDir, 0o755},
		{filepath.Join(l.LogDir, "drvs"), 0o755},
		{filepath.Dir(l.SocketPath), 0o755},
		{l.ConfDir, 0o755},
	}
	for _, d := range dirs {
		if err := makeDir(d.path, d.mode); err != nil {
			return fmt.Errorf("init store: %w", err)
		}
	}
	if err := chmodSticky(l.RealDir); err != nil {
		return fmt.Errorf("init store: %w", err)
	}
	return nil
}

// makeDir makes a directory with exactly mode, whatever the umask; an existing one is left alone.
func makeDir(path string, mode os.FileMode) error {
	if fi, err := os.Stat(path); err == nil {
		if !fi.IsDir() {
			return fmt.Errorf("%s is not a directory", path)
		}
		return nil
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// chmodSticky lets others of the group make things in the store directory, but not remove ours.
func chmodSticky(path string) error {
	fi, err := os.Stat(path)
	if err != nil || fi.Mode()&os.ModeSticky != 0 {
		return err
	}
	return os.Chmod(path, 0o775|os.ModeSticky)
}
