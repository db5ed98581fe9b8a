package ssh

import "strings"

// signs are ssh's words for what is wrong; the first that occurs counts.
var signs = []struct {
	words string
	kind  error
	next  string
}{
	{"REMOTE HOST IDENTIFICATION HAS CHANGED", ErrHostKeyChanged, "if the host was made anew, forget the old key with: ssh-keygen -R HOST; otherwise somebody else answers in its place"},
	{"REVOKED HOST KEY", ErrHostKeyChanged, "known_hosts marks this key as revoked; the host needs a new one"},
	{"no matching host key type found", ErrHostKeyChanged, "the host has no key of the pinned type any more; look at its keys with: ssh-keyscan HOST"},
	{"Host key verification failed", ErrHostKeyUnknown, "accept the key once with: ssh HOST, or pin it with host_key"},
	{"UNPROTECTED PRIVATE KEY FILE", ErrAuth, "make the private key file readable by you alone: chmod 600"},
	{"Permission denied (", ErrAuth, "try: ssh -v HOST; the public key must be in the user's authorized_keys there, and the private one in the agent or in identity"},
	{"Too many authentication failures", ErrAuth, "name the one key to use with identity"},
	{"no mutual signature", ErrAuth, "use a key of a type that the host accepts, such as ed25519"},
	{"Could not resolve hostname", ErrUnreachable, "look at the spelling of the host, and at /etc/hosts and the name servers"},
	{"Connection refused", ErrUnreachable, "the host is up but no sshd listens there; look at host and port"},
	{"No route to host", ErrUnreachable, "is the host up and on this network?"},
	{"Network is unreachable", ErrUnreachable, "this machine has no route to the host"},
	{"timed out", ErrUnreachable, "is the host up, and does a firewall let port 22 pass?"},
	{"command-line: ", ErrUnreachable, "this ssh is too old, or not OpenSSH's"},
	{"Bad configuration option", ErrUnreachable, "this ssh is too old, or its configuration is wrong"},
	{"", ErrUnreachable, "try: ssh -v HOST"},
}

// classify makes an error of what ssh said before it gave up.
func classify(said string) *Error {
	for _, s := range signs {
		if strings.Contains(said, s.words) {
			return &Error{Kind: s.kind, Text: telling(said, s.words), Next: s.next}
		}
	}
	panic("BUG: no sign matches")
}

// telling picks the line that says it, or the last one.
func telling(said, words string) string {
	switch words {
	case "UNPROTECTED PRIVATE KEY FILE":
		words = "Permissions "
	case "REMOTE HOST IDENTIFICATION HAS CHANGED": // one line of a banner
		return fingerprint(said)
	case "Host key verification failed":
		for line := range strings.Lines(said) {
			if strings.Contains(line, "host key is known") {
				return strings.TrimSpace(line)
			}
		}
	}
	for line := range strings.Lines(said) {
		if words != "" && strings.Contains(line, words) {
			return strings.TrimSpace(line)
		}
	}
	return lastLine(said)
}

func fingerprint(said string) string {
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "SHA256:") {
			return "it now shows " + strings.TrimRight(strings.TrimSpace(line), ".")
		}
	}
	return ""
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}
