package substitute

import (
	"strings"

	"cairn/archive/cache"
	"cairn/client/peer"
)

// nixSocket is where Nix's own daemon listens.
const nixSocket = "/nix/var/nix/daemon-socket/socket"

// isStore reports whether a URI names a store that answers questions, not a folder of files.
func isStore(uri string) bool {
	base, _, _ := strings.Cut(uri, "?")
	for _, scheme := range []string{"unix://", "ssh://", "ssh-ng://"} {
		if strings.HasPrefix(base, scheme) {
			return true
		}
	}
	return base == "daemon"
}

// openURI opens what the source's URI names: a store (package client/peer; "daemon" is Nix's on this machine), or else a binary
// cache (package cache).
func (s *source) openURI() (Cache, error) {
	if isStore(s.key.uri) {
		a, err := peer.ParseAddress(s.key.uri)
		if err != nil {
			return nil, err
		}
		return newRemote(a, &peer.Options{Dir: s.pool.store.Dir(), Socket: nixSocket, Connect: s.patience(), SSHOptions: s.pool.opts.SSHOptions}), nil
	}
	return cache.Open(s.key.uri, s.pool.store.Dir(), &cache.Options{
		ConnectTimeout: s.key.connect, StalledTimeout: s.key.stalled, Attempts: s.key.attempts, Connections: s.key.conns,
		NetrcFile: s.key.netrc, Progress: s.arrived, Warn: func(text string) { s.pool.opts.Logger.Warn(text, "uri", s.uri) },
	})
}
