package daemon

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Peer is who is at the other end of a connection.
type Peer struct {
	UID, GID, PID int
	Trusted       bool
}

// peerOf finds out who connected and whether they may.
func (s *Server) peerOf(c net.Conn) (Peer, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("connection of %T has no peer credentials", c)
	}
	cred, err := credentials(uc)
	if err != nil {
		return Peer{}, fmt.Errorf("ask for peer credentials: %w", err)
	}
	p := Peer{UID: int(cred.Uid), GID: int(cred.Gid), PID: int(cred.Pid)}
	p.Trusted = p.UID == 0 || p.UID == os.Geteuid() || p.in(s.settings.TrustedUsers)
	if !p.Trusted && !p.in(s.settings.AllowedUsers) {
		return Peer{}, fmt.Errorf("user %d is not among the allowed users", p.UID)
	}
	return p, nil
}

func credentials(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return nil, err
	}
	return cred, credErr
}

// in reports whether the peer is named in a list of names, uids, @groups and "*".
func (p Peer) in(list []string) bool {
	if len(list) == 0 {
		return false
	}
	uid := strconv.Itoa(p.UID)
	if slices.Contains(list, "*") || slices.Contains(list, uid) {
		return true
	}
	groups := []string{strconv.Itoa(p.GID)}
	if u, err := user.LookupId(uid); err == nil {
		if slices.Contains(list, u.Username) {
			return true
		}
		if more, err := u.GroupIds(); err == nil {
			groups = append(groups, more...)
		}
	}
	for _, gid := range groups {
		if slices.Contains(list, "@"+gid) {
			return true
		}
		if g, err := user.LookupGroupId(gid); err == nil && slices.Contains(list, "@"+g.Name) {
			return true
		}
	}
	return false
}
