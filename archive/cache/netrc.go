package cache

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
)

// credentials are a user and a password, or a password alone, which is a bearer token.
type credentials struct{ user, password string }

func (c credentials) isZero() bool { return c == credentials{} }

// apply adds them to a request.
func (c credentials) apply(r *http.Request) {
	switch {
	case c.isZero():
	case c.user == "":
		r.Header.Set("Authorization", "Bearer "+c.password)
	default:
		r.SetBasicAuth(c.user, c.password)
	}
}

// netrc are credentials by host.
//
//	machine HOST login USER password SECRET
//	default login USER password SECRET
//
// An entry without login is a bearer token. "account" is read over, and so is "macdef" up to the next empty line.
type netrc struct {
	hosts    map[string]credentials
	fallback credentials
}

// maxNetrc is the size limit of the file.
const maxNetrc = 1 << 20

// readNetrc reads the file; one that is missing has no credentials.
func readNetrc(path string) (*netrc, error) {
	if path == "" {
		return &netrc{}, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &netrc{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read netrc: %w", err)
	}
	defer f.Close()
	n, err := parseNetrc(io.LimitReader(f, maxNetrc))
	if err != nil {
		return nil, fmt.Errorf("read netrc %s: %w", path, err)
	}
	return n, nil
}

// parseNetrc reads words. Errors do not show them.
func parseNetrc(r io.Reader) (*netrc, error) {
	n := &netrc{hosts: map[string]credentials{}}
	var host string
	var c credentials
	var open bool // an entry is being read
	end := func() {
		if _, ok := n.hosts[host]; open && host != "" && !ok {
			n.hosts[host] = c
		}
		if open && host == "" && n.fallback.isZero() {
			n.fallback = c
		}
		open, c = false, credentials{}
	}
	w := &netrcWords{lines: bufio.NewScanner(r)}
	for word, ok := w.next(); ok; word, ok = w.next() {
		switch word {
		case "default":
			end()
			host, open = "", true
			continue
		case "macdef":
			w.skipMacro()
			continue
		}
		value, ok := w.next()
		if !ok {
			return nil, fmt.Errorf("%d words, and the last has no value", w.count)
		}
		switch word {
		case "machine":
			end()
			host, open = strings.ToLower(value), true
		case "login":
			c.user = value
		case "password":
			c.password = value
		case "account":
		default:
			return nil, fmt.Errorf("word %d is not one of machine, default, login, password, account, macdef", w.count-1)
		}
	}
	end()
	return n, w.lines.Err()
}

// netrcWords splits a netrc into words; "#" at a word's place starts a comment.
type netrcWords struct {
	lines *bufio.Scanner
	words []string
	count int
}

func (w *netrcWords) next() (string, bool) {
	for len(w.words) == 0 {
		if !w.lines.Scan() {
			return "", false
		}
		w.words = strings.Fields(w.lines.Text())
		for i, word := range w.words {
			if strings.HasPrefix(word, "#") && (i == 0 || w.words[i-1] != "password") {
				w.words = w.words[:i]
				break
			}
		}
	}
	word := w.words[0]
	w.words = w.words[1:]
	w.count++
	return word, true
}

func (w *netrcWords) skipMacro() {
	w.words = nil
	for w.lines.Scan() && strings.TrimSpace(w.lines.Text()) != "" {
	}
}

// of returns a host's credentials. Those of "default" are for the cache itself, not for any host that it names.
func (n *netrc) of(host string, own bool) credentials {
	if c, ok := n.hosts[strings.ToLower(host)]; ok {
		return c
	}
	if own {
		return n.fallback
	}
	return credentials{}
}
