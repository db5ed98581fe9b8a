package client

import (
	"context"
	"fmt"

	"cairn/daemon/protocol"
	"cairn/store"
)

// Info returns what the daemon knows of a path, or an error that is store.ErrNotValid.
func (c *Conn) Info(ctx context.Context, path store.Path) (*store.Info, error) {
	var info *store.Info
	err := c.do(ctx, &call{
		op: protocol.OpQueryPathInfo, what: "query " + path.String(),
		fields: func(e *protocol.Encoder) { e.Path(path) },
		reply: func(d *protocol.Decoder) {
			if d.Bool() {
				info = d.Info(path)
			}
		},
	})
	if err == nil && info == nil {
		err = fmt.Errorf("query %s: %w", path, store.ErrNotValid)
	}
	if err != nil {
		return nil, err
	}
	return info, nil
}

// IsValid reports whether a path is valid.
func (c *Conn) IsValid(ctx context.Context, path store.Path) (bool, error) {
	var valid bool
	err := c.do(ctx, &call{
		op: protocol.OpIsValidPath, what: "query " + path.String(),
		fields: func(e *protocol.Encoder) { e.Path(path) },
		reply:  func(d *protocol.Decoder) { valid = d.Bool() },
	})
	return valid, err
}

// ValidPaths returns those of the paths that are valid. Nothing is substituted.
func (c *Conn) ValidPaths(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	return c.validPaths(ctx, "query valid paths", paths, false)
}

// askPaths is how many paths one question names. A request has room for some ten times as many.
const askPaths = 1 << 16

func (c *Conn) validPaths(ctx context.Context, what string, paths []store.Path, obtain bool) ([]store.Path, error) {
	var all []store.Path
	for {
		some := paths[:min(len(paths), askPaths)]
		paths = paths[len(some):]
		valid, err := c.paths(ctx, protocol.OpQueryValidPaths, what, func(e *protocol.Encoder) {
			e.Paths(some)
			if e.Version >= protocol.Minor(27) {
				e.Bool(obtain)
			}
		})
		if err != nil {
			return nil, err
		}
		if all = append(all, valid...); len(paths) == 0 {
			return store.SortPaths(all), nil
		}
	}
}

// AllPaths returns every valid path.
func (c *Conn) AllPaths(ctx context.Context) ([]store.Path, error) {
	return c.paths(ctx, protocol.OpQueryAllValidPaths, "query all valid paths", nil)
}

// Referrers returns the valid paths that refer to path.
func (c *Conn) Referrers(ctx context.Context, path store.Path) ([]store.Path, error) {
	return c.paths(ctx, protocol.OpQueryReferrers, "query referrers of "+path.String(), func(e *protocol.Encoder) { e.Path(path) })
}

// Derivers returns the valid derivations that have path as an output.
func (c *Conn) Derivers(ctx context.Context, path store.Path) ([]store.Path, error) {
	return c.paths(ctx, protocol.OpQueryValidDerivers, "query derivers of "+path.String(), func(e *protocol.Encoder) { e.Path(path) })
}

func (c *Conn) paths(ctx context.Context, op protocol.Op, what string, fields func(*protocol.Encoder)) ([]store.Path, error) {
	var list []store.Path
	err := c.do(ctx, &call{op: op, what: what, fields: fields, reply: func(d *protocol.Decoder) { list = d.Paths() }})
	return list, err
}

// PathFromDigest returns the valid path with the 32 digits, or the zero value.
func (c *Conn) PathFromDigest(ctx context.Context, digest string) (store.Path, error) {
	var p store.Path
	err := c.do(ctx, &call{
		op: protocol.OpQueryPathFromHashPart, what: "query the path with digest " + digest,
		fields: func(e *protocol.Encoder) { e.Text(digest) },
		reply:  func(d *protocol.Decoder) { p = d.OptionalPath() },
	})
	return p, err
}

// Closure returns what is known of the paths and everything that they refer to, references first.
func (c *Conn) Closure(ctx context.Context, paths []store.Path) ([]*store.Info, error) {
	if !c.answer.Serves(protocol.OpQueryClosure) {
		return c.walk(ctx, paths)
	}
	var list []*store.Info
	err := c.do(ctx, &call{
		op: protocol.OpQueryClosure, what: "query closure",
		fields: func(e *protocol.Encoder) { e.Paths(paths) },
		reply: func(d *protocol.Decoder) {
			for range d.Count() {
				i := d.KeyedInfo()
				if d.Broken() != nil {
					return
				}
				list = append(list, i)
			}
		},
	})
	return list, err
}

// ClosurePaths returns the paths of a closure, references first.
func (c *Conn) ClosurePaths(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	if c.answer.Serves(protocol.OpQueryClosurePaths) {
		var list []store.Path
		err := c.do(ctx, &call{
			op: protocol.OpQueryClosurePaths, what: "query closure",
			fields: func(e *protocol.Encoder) { e.Paths(paths) },
			reply:  func(d *protocol.Decoder) { list = d.PathList() },
		})
		return list, err
	}
	infos, err := c.Closure(ctx, paths)
	return store.PathsOf(infos), err
}

// walk finds a closure path by path.
func (c *Conn) walk(ctx context.Context, paths []store.Path) ([]*store.Info, error) {
	seen := map[store.Path]bool{}
	var list []*store.Info
	type step struct {
		info *store.Info
		next int
	}
	for _, root := range paths {
		stack := []step{{info: &store.Info{References: []store.Path{root}}}}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == len(top.info.References) {
				if !top.info.Path.IsZero() {
					list = append(list, top.info)
				}
				stack = stack[:len(stack)-1]
				continue
			}
			p := top.info.References[top.next]
			top.next++
			if seen[p] {
				continue
			}
			seen[p] = true
			info, err := c.Info(ctx, p)
			if err != nil {
				return nil, err
			}
			stack = append(stack, step{info: info})
		}
	}
	return list, nil
}

// Realisation returns the path that an output of a derivation is known to have.
func (c *Conn) Realisation(ctx context.Context, id store.DrvOutput) (store.Realisation, bool, error) {
	var list []store.Realisation
	err := c.do(ctx, &call{
		op: protocol.OpQueryRealisation, what: "query realisation of " + id.String(), since: 31,
		fields: func(e *protocol.Encoder) { e.DrvOutput(id) },
		reply: func(d *protocol.Decoder) {
			for range d.Count() {
				list = append(list, d.Realisation())
			}
		},
	})
	if err != nil || len(list) == 0 {
		return store.Realisation{}, false, err
	}
	return list[0], true, nil
}
