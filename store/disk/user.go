package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// AddUser makes a user's own directories for profiles and roots, which Nix's clients expect. What is there stays.
// Only root can make them for somebody else; others have them anyway or not at all.
func (l *Layout) AddUser(name string, uid int) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("add user: %q is no name of a directory", name)
	}
	for _, kind := range []string{"profiles", "gcroots"} {
		dir := filepath.Join(l.StateDir, kind, "per-user", name)
		err := os.Mkdir(dir, 0o755)
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
