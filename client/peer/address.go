package peer

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"cairn/store"
)

// Scheme is how a store is spoken to.
type Scheme string

// The schemes.
const (
	SSH    Scheme = "ssh"     // nix-store --serve
	SSHNG  Scheme = "ssh-ng"  // the worker protocol
	Socket Scheme = "unix"    // the worker protocol at a socket
	Auto   Scheme = "default" // the daemon of this machine
)

// Address is a store on some machine.
type Address struct {
	Scheme  Scheme
	User    string
	Host    string // "localhost" without user and port is a process of this machine, without ssh
	Port    int
	Path    string // of a socket
	Program string // run there instead of nix-daemon, nix-store or cairn; a line for its shell
	Store   string // the store there, as its program names it
	Key     string // file of a private key
	HostKey string // the only one that is accepted, "type base64"
	// Compress makes ssh compress.
	Compress bool
}

// ParseAddress parses the URI of a store.
//
//	uri    = ("ssh://" | "ssh-ng://") [user "@"] host [":" port] ["?" params]  |  "unix://" path  |  "daemon"
//	params = remote-program, remote-store, ssh-key, base64-ssh-public-host-key, compress; others are Nix's and ignored
func ParseAddress(uri string) (Address, error) {
	a, err := parseAddress(uri)
	if err != nil {
		return Address{}, fmt.Errorf("store %.200q: %w", uri, err)
	}
	return a, nil
}

func parseAddress(uri string) (Address, error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		if uri == "daemon" || uri == "auto" || uri == "" {
			return Address{Scheme: Auto}, nil
		}
		return Address{}, fmt.Errorf("it is none of ssh-ng://HOST, ssh://HOST, unix://SOCKET and daemon")
	}
	rest, query, _ := strings.Cut(rest, "?")
	a := Address{Scheme: Scheme(scheme)}
	params, err := url.ParseQuery(query)
	if err != nil {
		return Address{}, fmt.Errorf("parameters: %w", err)
	}
	a.Program, a.Store, a.Key = params.Get("remote-program"), params.Get("remote-store"), params.Get("ssh-key")
	a.Compress = params.Get("compress") == "true" || params.Get("compress") == "1"
	if a.HostKey, err = DecodeHostKey(params.Get("base64-ssh-public-host-key")); err != nil {
		return Address{}, err
	}
	switch a.Scheme {
	case SSH, SSHNG:
		return a, a.setHost(rest)
	case Socket:
		if !filepath.IsAbs(rest) {
			return Address{}, fmt.Errorf("path %q is not absolute", rest)
		}
		a.Path = rest
		return a, nil
	}
	return Address{}, fmt.Errorf("scheme %q is not ssh-ng, ssh or unix", scheme)
}

// DecodeHostKey decodes a public key as Nix's machine files have it: the key's line in base 64.
func DecodeHostKey(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("host key: %w", err)
	}
	words := strings.Fields(string(b))
	if len(words) < 2 || strings.HasPrefix(words[0], "@") || strings.ContainsAny(string(b), "\x00") {
		return "", fmt.Errorf("host key %.60q is not \"type base64\"", b)
	}
	return words[0] + " " + words[1], nil
}

// hostLetters are those of names and addresses.
const hostLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:%"

// setHost parses [user@]host[:port] and refuses what ssh could take for an option.
func (a *Address) setHost(s string) error {
	s = strings.TrimSuffix(s, "/")
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		a.User, s = s[:i], s[i+1:]
	}
	port := ""
	switch end := strings.IndexByte(s, ']'); {
	case strings.HasPrefix(s, "[") && end > 0:
		a.Host, port = s[1:end], s[end+1:]
	case strings.Count(s, ":") == 1:
		i := strings.IndexByte(s, ':')
		a.Host, port = s[:i], s[i:]
	default:
		a.Host = s
	}
	if port != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16)
		if err != nil || n == 0 || port[0] != ':' {
			return fmt.Errorf("port %q is not between 1 and 65535", port)
		}
		a.Port = int(n)
	}
	if a.Host == "" || strings.HasPrefix(a.Host, "-") || strings.ContainsFunc(a.Host, func(r rune) bool { return !strings.ContainsRune(hostLetters, r) }) {
		return fmt.Errorf("%q is not a host name", a.Host)
	}
	if strings.HasPrefix(a.User, "-") || strings.ContainsAny(a.User, " \t\r\n\x00/'\"\\") {
		return fmt.Errorf("%q is not a user name", a.User)
	}
	return nil
}

// String returns the URI without parameters, which is what people know the store by.
func (a Address) String() string {
	switch a.Scheme {
	case Auto:
		return "daemon"
	case Socket:
		return "unix://" + a.Path
	}
	s := a.Host
	if strings.Contains(s, ":") {
		s = "[" + s + "]"
	}
	if a.User != "" {
		s = a.User + "@" + s
	}
	if a.Port != 0 {
		s += ":" + strconv.Itoa(a.Port)
	}
	return string(a.Scheme) + "://" + s
}

// here reports whether ssh is not needed.
func (a Address) here() bool { return a.Host == "localhost" && a.User == "" && a.Port == 0 }

// nixDir is the store directory for which Nix's programs are asked for.
const nixDir = store.Dir("/nix/store")

// command is the line for the shell there. Who has Nix's store directory runs Nix's programs, or ours under their names;
// others run ours.
func (a Address) command(dir store.Dir) string {
	program, rest := "cairn serve --legacy", " --serve --write"
	if a.Scheme == SSHNG {
		program, rest = "cairn daemon", " --stdio"
	}
	if dir == nixDir {
		program = map[Scheme]string{SSH: "nix-store", SSHNG: "nix-daemon"}[a.Scheme]
	}
	program = cmp.Or(a.Program, program)
	if a.Store != "" {
		rest += " --store " + quote(a.Store)
	}
	return program + rest
}

// quote makes one word of a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
