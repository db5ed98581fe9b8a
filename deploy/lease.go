package deploy

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// leaseTime is how long a lease holds without a sign of life from its agent.
const leaseTime = 30 * time.Second

// Lease says who deploys to this machine. It is a file in the journal directory, changed under a lock beside it;
// its owner is whoever knows the token. The agent renews it while it lives, so that a lease whose
// coordinator or connection is gone ends by itself; between two connections of one deploy it just stays.
type Lease struct {
	Token   string    `json:"token"`
	Agent   string    `json:"agent"` // the session that renewed it last
	Owner   string    `json:"owner"`
	Purpose string    `json:"purpose"`
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires"`
}

func (l *Lease) String() string {
	return fmt.Sprintf("%s, for %s, since %s, until %s unless renewed", l.Owner, l.Purpose,
		l.Since.UTC().Format(time.DateTime), l.Expires.UTC().Format(time.TimeOnly))
}

// leaseFile is where the lease is, on the machine that is leased.
type leaseFile struct{ dir string }

func (f leaseFile) path() string { return filepath.Join(f.dir, "lease.json") }

// locked runs fn while nobody else looks at the lease.
func (f leaseFile) locked(fn func(*Lease) error) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(f.dir, "lease.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock lease: %w", err)
	}
	var have *Lease
	b, err := os.ReadFile(f.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		have = new(Lease)
		if json.Unmarshal(b, have) != nil {
			have = nil // torn by a power cut; who wrote it is gone
		}
	}
	return fn(have)
}

// take acquires or renews.
func (f leaseFile) take(want Lease, now time.Time) error {
	return f.locked(func(have *Lease) error {
		if have != nil && have.Token != want.Token && now.Before(have.Expires) {
			return hinted(fmt.Errorf("%w: %s", ErrLeased, have), "wait for it to end; an abandoned lease ends by itself within %s", leaseTime)
		}
		want.Since, want.Expires = now, now.Add(leaseTime)
		if have != nil && have.Token == want.Token {
			want.Since = have.Since
		}
		b, err := json.Marshal(want)
		if err != nil {
			return err
		}
		tmp := f.path() + ".tmp"
		if err := os.WriteFile(tmp, b, 0o600); err != nil {
			return fmt.Errorf("write lease: %w", err)
		}
		return os.Rename(tmp, f.path())
	})
}

// give ends the lease, unless another session has it by now, be it one of the same deploy.
func (f leaseFile) give(l Lease) error {
	return f.locked(func(have *Lease) error {
		if have == nil || have.Token != l.Token || have.Agent != l.Agent {
			return nil
		}
		return os.Remove(f.path())
	})
}

func newToken() string { return rand.Text() }

// whoAmI names the person at this machine.
func whoAmI() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "somewhere"
	}
	return name + "@" + host
}
