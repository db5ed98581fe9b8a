package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// AddUser makes a user's own directories for profiles and roots, which Nix's clients expect. What is there stays.
// Only root can make them for somebody else; others have them anyway or not at all. What people delete of the directories
// above is made again: Nix's daemon does so for each client.
func (l *Layout) AddUser(name string, uid int) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("add user: %q is no name of a directory", name)
	}
	for _, kind := range []string{"profiles", "gcroots"} {
		above := filepath.Join(l.StateDir, kind, "per-user")
		dir := filepath.Join(above, name)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrNotExist) && makeDir(above, 0o755) == nil {
			err = os.Mkdir(dir, 0o755)
		}
		switch {
		case errors.Is(err, os.ErrExist):
			continue
		case err == nil && os.Geteuid() == 0:
			err = os.Lchown(dir, uid, -1)
		}
		if err != nil {
			return fmt.Errorf("add user %s: %w", name, err)
		}
	}
	return nil
}
