// Package archive is how store objects leave a store and are believed in another one: keys and
// signatures, the list of keys that may do something, compression, and two streams of objects.
//
// # Keys
//
// Keys are Ed25519 in Nix's text form, "name:base64"; the public half has 32 bytes, the secret one 64, seed
// and public half. A signature is "name:base64" of 64 bytes. The name says which key to try; it is not secret
// and proves nothing. Base 64 is strict, so that each key has one text. A secret key never becomes text by
// accident: printing it prints its name.
//
// # ACL
//
// The access list is a text file that says who may do what: a line per rule, a subject and its verbs (acl.go).
//
//	# alice administers, the web team deploys, everybody else may only look
//	user:alice           all
//	@web                 default,inspect
//	*                    connect
//	builder-1:kPv…fU=    import
//
// A subject is a public key, or users: user:NAME, uid:N, group:NAME or @NAME, gid:N, and * for all (subject.go).
// Rights add up: somebody may do what any rule about them says. Root and the daemon's own user may do everything
// whatever the list says, so that a mistake in it locks nobody out for good.
//
//	verb      what it allows                                                              default  danger
//	connect   use the daemon: ask, read contents and logs, keep paths while connected        ✓
//	add       add objects that prove themselves: content-addressed, or signed by a key
//	          that may import; bundles of such keys; attach signatures                       ✓     fills the disk
//	build     build derivations, fetch from caches                                           ✓     fills the disk
//	root      make indirect roots                                                            ✓
//	gc        delete what nothing keeps alive                                                ✓
//	verify    check and optimise the whole store                                             ✓     takes time
//	export    get archives signed with this machine's key                                    ✓
//	inspect   see what others do: sessions, roots that are processes or leases
//	pin       have the daemon write a root's link, anywhere                                        like root
//	import    of a key: its signatures prove what others add.
//	          of users: add objects, realisations, results of builds and logs
//	          without proof                                                                        like root
//	repair    replace the contents of valid objects                                                like root
//	override  change restricted settings for a session: sandbox paths, hooks, caches, keys         like root
//
// "default" stands for the ones so marked, "all" for all, "none" for none; whoever may do anything may connect. They are the
// same as Nix's, whose settings are rules, too:
//
//	allowed-users = alice @web *    user:alice default, @web default, * default (unless the list has a rule about *)
//	trusted-users = root @wheel     user:root all, @wheel all
//	trusted-public-keys = KEY       KEY import
//
// A list that cannot be read allows nothing. There is no verb for switching systems and profiles, since no client can
// ask the daemon for that: it takes root, who needs no rule.
//
// # Streams
//
// An export stream (export.go) is Nix's: unsigned, no content addresses; whoever imports it trusts the
// sender. A bundle (bundle.go) is ours: one signature covers the descriptions of all objects,
// each object's bytes are checked against its description, and any changed, missing or additional
// byte is refused.
// Both carry objects in an order in which references come first.
//
// # Compression
//
// This package is the only door to compressions: all that binary caches have in the wild can be read, zstd and gzip
// written (compression.go); lzip and lzma are read by a decoder of our own (lzma.go). Compressed bytes depend on the version of the compressor, so that
// their hash never identifies anything.
package archive

import (
	"errors"
	"fmt"
	"slices"

	"cairn/store"
)

// Errors that callers test for with errors.Is.
var (
	// ErrUnauthorized says that the key that signed may not do what is asked.
	ErrUnauthorized = errors.New("key is not authorized")
	// ErrCorrupt says that bytes are not what was signed or announced.
	ErrCorrupt = errors.New("archive is damaged")
	// ErrKey says that a text is no key.
	ErrKey = errors.New("not a key")
)

// Sort returns infos in an order in which references come before what refers to them.
// The order depends only on the set. References to objects outside the set are ignored.
func Sort(infos []*store.Info) ([]*store.Info, error) {
	s := sorter{state: make(map[store.Path]bool, len(infos)), info: make(map[store.Path]*store.Info, len(infos))}
	for _, i := range infos {
		s.info[i.Path] = i
	}
	for _, p := range store.SortPaths(store.PathsOf(infos)) {
		if err := s.visit(p); err != nil {
			return nil, err
		}
	}
	return s.sorted, nil
}

type sorter struct {
	info   map[store.Path]*store.Info
	state  map[store.Path]bool // present: seen; true: done
	sorted []*store.Info
}

// visit appends an object after its references. It keeps its own stack: chains are as long as they like.
func (s *sorter) visit(root store.Path) error {
	type frame struct {
		info *store.Info
		refs []store.Path
	}
	var stack []frame
	push := func(p store.Path) error {
		done, seen := s.state[p]
		info := s.info[p]
		if done || info == nil {
			return nil
		}
		if seen {
			return fmt.Errorf("sort objects: %s and others refer to each other", p)
		}
		s.state[p] = false
		refs := slices.DeleteFunc(slices.Clone(info.References), func(r store.Path) bool { return r == p })
		stack = append(stack, frame{info: info, refs: store.SortPaths(refs)})
		return nil
	}
	if err := push(root); err != nil {
		return err
	}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.refs) == 0 {
			s.state[top.info.Path] = true
			s.sorted = append(s.sorted, top.info)
			stack = stack[:len(stack)-1]
			continue
		}
		next := top.refs[0]
		top.refs = top.refs[1:]
		if err := push(next); err != nil {
			return err
		}
	}
	return nil
}
