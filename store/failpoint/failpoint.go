// Package failpoint names the places in the program where its death, or an error, is worst, so that tests can have it there.
//
// A place calls Hit or Err with its name, a literal; places that are the same to the disk share a name. Unless a test has armed them, that is one atomic load.
// Names lists them all, and says what the disk has at that moment; a test compares the list with the source.
// Only tests call Arm: no setting, environment or request of the program reaches it, which a test checks, too.
package failpoint

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Func is called with the name of each place that is passed, perhaps by several goroutines at once. Its error is
// what Err returns there; at a Hit it is dropped.
type Func func(name string) error

var armed atomic.Pointer[Func]

// Arm has fn called from now on; nil ends that.
func Arm(fn Func) {
	if fn == nil {
		armed.Store(nil)
		return
	}
	armed.Store(&fn)
}

// Hit is a place where the program may die.
func Hit(name string) {
	if fn := armed.Load(); fn != nil {
		(*fn)(name)
	}
}

// Err is a place where, besides, an error may come from the operating system.
func Err(name string) error {
	if fn := armed.Load(); fn != nil {
		return (*fn)(name)
	}
	return nil
}

// Kill returns a function that kills the process, as kill -9 does, when name is passed for the n-th time, counted from 1.
func Kill(name string, n int64) Func {
	var passed atomic.Int64
	return func(at string) error {
		if at == name && passed.Add(1) == n {
			unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {} // until it arrives
		}
		return nil
	}
}
