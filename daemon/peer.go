package daemon

import (
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"cairn/archive"
	"cairn/daemon/build"
)

// Peer is who is at the other end of a connection.
type Peer struct {
	UID, GID, PID int
	// Groups are the process's further groups.
	Groups []int
	// Trusted peers may do everything, whatever the access list says.
	Trusted bool
	// Limit, unless it is none, is all that the peer may do, even if it is trusted.
	Limit archive.Verbs

	inside *build.Restriction // not nil: the peer is a builder's client
}

// peerOf finds out who connected.
func peerOf(c net.Conn) (Peer, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("connection of %T has no peer credentials", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var credErr error
	err = raw.Control(func(fd uintptr) { p, credErr = credentials(int(fd)) })
	if err == nil {
		err = credErr
	}
	if err != nil {
		return Peer{}, fmt.Errorf("ask for peer credentials: %w", err)
	}
	return p, nil
}

func credentials(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	return Peer{UID: int(cred.Uid), GID: int(cred.Gid), PID: int(cred.Pid), Groups: peerGroups(fd)}, nil
}

// maxGroups is the kernel's limit of a process's groups.
const maxGroups = 1 << 16

// peerGroups returns the further groups of the process that connected, as they were then. A kernel that does
// not tell (before 4.13) makes none.
func peerGroups(fd int) []int {
	list := make([]uint32, 32)
	for {
		size := uint32(len(list) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		n := int(size / 4)
		switch {
		case errno == unix.ERANGE && n > len(list) && n <= maxGroups:
			list = make([]uint32, n)
			continue
		case errno != 0 || n > len(list):
			return nil
		}
		groups := make([]int, n)
		for i := range groups {
			groups[i] = int(list[i])
		}
		return groups
	}
}

// person adds names: the user's, and the groups that the process has or that the user is a member of, whether the
// process knows of them yet or not.
func (p Peer) person() archive.Person {
	who := archive.Person{UID: p.UID, GIDs: append([]int{p.GID}, p.Groups...)}
	if u, err := user.LookupId(strconv.Itoa(p.UID)); err == nil {
		who.Name = u.Username
		who.GIDs = append(who.GIDs, memberships(u)...)
	}
	return withGroups(who)
}

// PersonOf returns a user as the user database knows it: by name, by number, or "uid:" and the number.
func PersonOf(name string) (archive.Person, error) {
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return archive.Person{}, fmt.Errorf("look up user %q: %w", name, err)
	}
	who := archive.Person{Name: u.Username, GIDs: memberships(u)}
	if who.UID, err = strconv.Atoi(u.Uid); err != nil {
		return archive.Person{}, fmt.Errorf("look up user %q: %w", name, err)
	}
	return withGroups(who), nil
}

// memberships are the groups that the database says a user is in, the primary one first.
func memberships(u *user.User) []int {
	var gids []int
	more, _ := u.GroupIds() // those that are found
	for _, text := range append([]string{u.Gid}, more...) {
		if gid, err := strconv.Atoi(text); err == nil {
			gids = append(gids, gid)
		}
	}
	return gids
}

// withGroups adds the names of the groups.
func withGroups(who archive.Person) archive.Person {
	slices.Sort(who.GIDs)
	who.GIDs = slices.Compact(who.GIDs)
	for _, gid := range who.GIDs {
		if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
			who.Groups = append(who.Groups, g.Name)
		}
	}
	return who
}

// processIn reports whether the process itself has a group, by name.
func (p Peer) processIn(group string) bool {
	g, err := user.LookupGroup(group)
	if err != nil {
		return false
	}
	gid, err := strconv.Atoi(g.Gid)
	return err == nil && (p.GID == gid || slices.Contains(p.Groups, gid))
}
