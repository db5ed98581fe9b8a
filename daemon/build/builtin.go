package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/daemon/protocol"
)

// builtins are the builders that are functions of this process: name after "builtin:".
// They write the output "out", and nothing they do depends on more than the derivation and its inputs.
var builtins = []struct {
	name  string
	build func(a *attempt, ctx context.Context, out string) error
}{
	{"buildenv", (*attempt).buildenv},
	{"fetchurl", (*attempt).fetchURL},
	{"tree", (*attempt).makeTree},
	{"unpack-channel", (*attempt).unpackChannel},
}

// builtin runs a built-in builder in the place of a sandbox.
func (a *attempt) builtin(ctx context.Context, name string) error {
	i := slices.IndexFunc(builtins, func(b struct {
		name  string
		build func(a *attempt, ctx context.Context, out string) error
	}) bool {
		return b.name == name
	})
	if i < 0 {
		return failure(protocol.InputRejected, "derivation '%s' wants the builder 'builtin:%s', which this daemon does not have", a.key.drv, name)
	}
	if len(a.outputs) != 1 || a.outputs[0].name != "out" {
		return failure(protocol.InputRejected, "derivation '%s': builtin:%s makes the single output \"out\"", a.key.drv, name)
	}
	if err := os.Mkdir(a.dir("store"), 0o700); err != nil {
		return err
	}
	err := builtins[i].build(a, ctx, filepath.Join(a.dir("store"), a.outputs[0].path.Base()))
	a.log.Close()
	if err == nil || ctx.Err() != nil {
		return err
	}
	if _, ok := err.(*Failure); ok {
		return err
	}
	return failure(protocol.PermanentFailure, "builtin:%s of '%s': %v", name, a.key.drv, err)
}

// locate finds where a path below the store directory really is, following symbolic links as somebody would who sees
// only the inputs.
func (a *attempt) locate(logical string) (string, error) {
	real, _, err := a.follow(logical)
	return real, err
}

// follow is locate; it also returns the path in the store without links.
func (a *attempt) follow(logical string) (string, string, error) {
	for links := 0; ; {
		p, rest, err := a.b.store.Dir().Within(logical)
		if err != nil {
			return "", "", err
		}
		if !slices.Contains(a.inputs, p) {
			return "", "", fmt.Errorf("%s is not among the inputs", p)
		}
		real, at := a.b.store.RealPath(p), p.String()
		parts := strings.Split(strings.TrimPrefix(rest, "/"), "/")
		if rest == "" {
			parts = nil
		}
		target := ""
		for i := 0; ; i++ {
			fi, err := os.Lstat(real)
			if err != nil {
				return "", "", err
			}
			if fi.Mode()&os.ModeSymlink != 0 {
				if target, err = os.Readlink(real); err != nil {
					return "", "", err
				}
				if !filepath.IsAbs(target) {
					target = filepath.Join(filepath.Dir(at), target)
				}
				target = filepath.Join(append([]string{target}, parts[i:]...)...)
				break
			}
			if i == len(parts) {
				return real, at, nil
			}
			if parts[i] == "" || parts[i] == "." || parts[i] == ".." {
				return "", "", fmt.Errorf("path %q is not clean", logical)
			}
			real, at = filepath.Join(real, parts[i]), filepath.Join(at, parts[i])
		}
		if links++; links > 40 {
			return "", "", fmt.Errorf("%s: too many symbolic links", logical)
		}
		logical = target
	}
}
