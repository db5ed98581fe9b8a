package cache

import (
	"cmp"
	"crypto/tls"
	"os"
	"time"

	"cairn/archive"
)

// Options are the choices of whoever opens a cache. The zero value is right for most.
type Options struct {
	ConnectTimeout time.Duration // to connect, TLS included; 0: 5 s
	StalledTimeout time.Duration // for an answer to begin, and then for each 16 KiB of it; 0: 20 s
	Attempts       int           // of a request that fails in a way that may pass; 0: 4
	Backoff        time.Duration // pause after the first failure, which then doubles; 0: 250 ms
	Connections    int           // to one host at a time; 0: 25

	NetrcFile string      // credentials by host, may be missing; empty: none
	TLS       *tls.Config // nil: the system's roots
	UserAgent string      // empty: "cairn"

	// Keys sign what is written, besides those that the URI names.
	Keys []archive.SecretKey
	// Getenv is where S3 credentials come from; nil: the process's environment.
	Getenv func(string) string
	// Warn is told of parameters of the URI that nobody knows; nil makes them errors.
	Warn func(string)
	// Progress is told how much of an object's packed archive was read; total is 0 when not known.
	// It is called from whoever reads.
	Progress func(n *NarInfo, done, total int64)
	// TempDir is for archives on their way into a cache that is not a folder; empty: the system's.
	TempDir string
}

const (
	defaultConnectTimeout = 5 * time.Second
	defaultStalledTimeout = 20 * time.Second
	defaultAttempts       = 4
	defaultBackoff        = 250 * time.Millisecond
	defaultConnections    = 25
)

// withDefaults returns a copy in which everything is set.
func (o *Options) withDefaults() *Options {
	if o == nil {
		o = &Options{}
	}
	d := *o
	d.ConnectTimeout = cmp.Or(d.ConnectTimeout, defaultConnectTimeout)
	d.StalledTimeout = cmp.Or(d.StalledTimeout, defaultStalledTimeout)
	d.Attempts = cmp.Or(d.Attempts, defaultAttempts)
	d.Backoff = cmp.Or(d.Backoff, defaultBackoff)
	d.Connections = cmp.Or(d.Connections, defaultConnections)
	d.UserAgent = cmp.Or(d.UserAgent, "cairn")
	if d.Getenv == nil {
		d.Getenv = os.Getenv
	}
	return &d
}
