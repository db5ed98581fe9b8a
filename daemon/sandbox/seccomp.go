package sandbox

import (
	"cmp"
	"math"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// The filter is assembled here, per system call table:
//
//	table of another machine → kill
//	refused number           → its error
//	number with a condition  → its error if an argument says so
//	anything else            → allow
//
// Numbers are found by bisection: the kernel runs the filter for each number when it is installed, to know those that are always allowed,
// and compiles it, for each builder.
//
// A rule that can be circumvented by a newer call (clone3, openat2, fchmodat2, io_uring) has that call
// answer "no such system call", so that C libraries fall back to the older one.

// table is the filter for one system call table.
type table struct {
	arch  uint32 // AUDIT_ARCH_*
	limit uint32 // numbers from here on belong to another table (x32); 0 = none
	rules []rule
}

// rule refuses a call with an error when its condition holds.
type rule struct {
	number uint32
	errno  uint32
	when   condition
}

// condition says when a call is refused.
type condition uint8

const (
	always      condition = iota
	mode1                 // argument 1 has a set-id bit
	mode2                 // argument 2 has one
	openMode2             // argument 1 creates, argument 2 has one
	openMode3             // argument 2 creates, argument 3 has one
	newSpaces             // argument 0 asks for new namespaces
	oddFamily             // argument 0 is a socket family that is not ours
	typeDevice1           // argument 1 is the mode of a device or has a set-id bit
	typeDevice2           // argument 2 is
)

const (
	setID      = unix.S_ISUID | unix.S_ISGID
	creating   = unix.O_CREAT | (unix.O_TMPFILE &^ unix.O_DIRECTORY)
	namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
)

// families are the sockets a builder may make.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET}

const (
	retKill  = unix.SECCOMP_RET_KILL_PROCESS
	retAllow = unix.SECCOMP_RET_ALLOW
	retError = unix.SECCOMP_RET_ERRNO

	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

// loadArg loads the low half of an argument; both kinds of machine are little-endian.
func loadArg(n uint32) unix.SockFilter { return load(offArgs + 8*n) }

func ret(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}

// jump skips as many instructions, which the kernel wants to be fewer than 256.
func jump(op uint16, k uint32, yes, no int) unix.SockFilter {
	if max(yes, no) > math.MaxUint8 {
		panic("BUG: a jump in a system call filter is too long")
	}
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(yes), Jf: uint8(no), K: k}
}

// compile returns the rule's test, entered when the number matches: it returns the error or allows.
func (r rule) compile() []unix.SockFilter {
	deny, allow := ret(retError|r.errno), ret(retAllow)
	masked := func(arg, mask uint32) []unix.SockFilter {
		return []unix.SockFilter{loadArg(arg), jump(unix.BPF_JSET, mask, 0, 1), deny, allow}
	}
	opening := func(flags uint32) []unix.SockFilter {
		return []unix.SockFilter{loadArg(flags), jump(unix.BPF_JSET, creating, 0, 3), loadArg(flags + 1), jump(unix.BPF_JSET, setID, 0, 1), deny, allow}
	}
	device := func(mode uint32) []unix.SockFilter {
		return []unix.SockFilter{
			loadArg(mode), jump(unix.BPF_JSET, setID, 4, 0),
			{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: unix.S_IFMT},
			jump(unix.BPF_JEQ, unix.S_IFCHR, 2, 0), jump(unix.BPF_JEQ, unix.S_IFBLK, 1, 0), allow, deny,
		}
	}
	switch r.when {
	case mode1:
		return masked(1, setID)
	case mode2:
		return masked(2, setID)
	case openMode2:
		return opening(1)
	case openMode3:
		return opening(2)
	case newSpaces:
		return masked(0, namespaces)
	case typeDevice1:
		return device(1)
	case typeDevice2:
		return device(2)
	case oddFamily:
		code := []unix.SockFilter{loadArg(0)}
		for i, f := range families {
			code = append(code, jump(unix.BPF_JEQ, f, len(families)-i, 0))
		}
		return append(code, deny, allow)
	}
	return []unix.SockFilter{deny}
}

// compile returns the table's filter, entered when the machine matches.
func (t table) compile() []unix.SockFilter {
	code := []unix.SockFilter{load(offNumber)}
	if t.limit != 0 {
		code = append(code, jump(unix.BPF_JGE, t.limit, 0, 1), ret(retKill))
	}
	return append(code, bisect(t.runs())...)
}

// run is rules for consecutive numbers that always refuse with the same error, or a single rule.
type run struct {
	rule
	last uint32
}

// runs returns the rules sorted by number, each number once.
func (t table) runs() []run {
	var list []run
	for _, r := range slices.SortedFunc(slices.Values(t.rules), func(a, b rule) int { return cmp.Compare(a.number, b.number) }) {
		if n := len(list) - 1; n >= 0 && list[n].when == always && r.when == always && list[n].errno == r.errno && list[n].last+1 == r.number {
			list[n].last = r.number
			continue
		}
		list = append(list, run{r, r.number})
	}
	return list
}

// bisect returns the tests of sorted runs.
func bisect(runs []run) []unix.SockFilter {
	if len(runs) == 1 {
		r := runs[0]
		body := append(r.compile(), ret(retAllow))
		allow := len(body) - 1
		test := []unix.SockFilter{jump(unix.BPF_JEQ, r.number, 0, allow)}
		if r.last > r.number {
			test = []unix.SockFilter{jump(unix.BPF_JGE, r.number, 0, allow+1), jump(unix.BPF_JGT, r.last, allow, 0)}
		}
		return append(test, body...)
	}
	middle := len(runs) / 2
	above, below := bisect(runs[middle:]), bisect(runs[:middle])
	return slices.Concat([]unix.SockFilter{jump(unix.BPF_JGE, runs[middle].number, 0, len(above))}, above, below)
}

// filter returns the whole program.
func filter(tables []table) []unix.SockFilter {
	code := []unix.SockFilter{load(offArch)}
	for _, t := range tables {
		body := t.compile()
		code = append(code, jump(unix.BPF_JEQ, t.arch, 1, 0),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(body))})
		code = append(code, body...)
	}
	return append(code, ret(retKill))
}

// systemCalls is the whole filter.
var systemCalls = sync.OnceValue(func() []unix.SockFilter { return filter(tables) })

// filter returns the address of the filter as the kernel takes it.
func (p *program) filter() uintptr {
	code := systemCalls()
	return put(p, struct {
		size uint16
		code uintptr
	}{uint16(len(code)), put(p, code...)})
}
