package sandbox

import (
	"testing"

	"golang.org/x/sys/unix"
)

// evaluate runs a filter as the kernel does.
func evaluate(t *testing.T, code []unix.SockFilter, arch, number uint32, args [6]uint32) uint32 {
	t.Helper()
	load := func(off uint32) uint32 {
		switch {
		case off == offNumber:
			return number
		case off == offArch:
			return arch
		}
		return args[(off-offArgs)/8]
	}
	acc := uint32(0)
	for at := 0; ; at++ {
		c := code[at]
		branch := func(yes bool) {
			if yes {
				at += int(c.Jt)
			} else {
				at += int(c.Jf)
			}
		}
		switch c.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = load(c.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			branch(acc == c.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			branch(acc >= c.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			branch(acc > c.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			branch(acc&c.K != 0)
		case unix.BPF_JMP | unix.BPF_JA:
			at += int(c.K)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= c.K
		case unix.BPF_RET | unix.BPF_K:
			return c.K
		default:
			t.Fatalf("instruction %d is %#x", at, c.Code)
		}
	}
}

// TestFilter compares what the filter answers with its tables, for all numbers and some beyond.
func TestFilter(t *testing.T) {
	code := filter(tables)
	t.Logf("%d instructions", len(code))
	for _, table := range tables {
		refused := map[uint32]rule{}
		for _, r := range table.rules {
			if _, twice := refused[r.number]; twice {
				t.Errorf("table %#x has two rules for %d", table.arch, r.number)
			}
			refused[r.number] = r
		}
		for number := range uint32(2000) {
			// All bits of all arguments: what has a condition is refused, whichever it is, but a device's type is a value.
			want, got := uint32(retAllow), evaluate(t, code, table.arch, number, [6]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)})
			r, ok := refused[number]
			if ok {
				want = retError | r.errno
			}
			if got != want {
				t.Errorf("table %#x, call %d with all bits: %#x, want %#x", table.arch, number, got, want)
			}
			want, got = retAllow, evaluate(t, code, table.arch, number, [6]uint32{unix.AF_UNIX})
			if ok && (r.when == always || r.when == newSpaces && unix.AF_UNIX&namespaces != 0) {
				want = retError | r.errno
			}
			if got != want {
				t.Errorf("table %#x, call %d without bits: %#x, want %#x", table.arch, number, got, want)
			}
		}
		if table.limit != 0 {
			for _, number := range []uint32{table.limit, table.limit + 39, ^uint32(0)} {
				if got := evaluate(t, code, table.arch, number, [6]uint32{}); got != retKill {
					t.Errorf("table %#x, call %#x: %#x", table.arch, number, got)
				}
			}
		}
	}
	if got := evaluate(t, code, unix.AUDIT_ARCH_PPC64, 1, [6]uint32{}); got != retKill {
		t.Errorf("another table: %#x", got)
	}
}
