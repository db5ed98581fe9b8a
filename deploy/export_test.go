package deploy

import (
	"bufio"
	"io"
	"time"
)

// SkipNoise reads up to the banner and returns the rest.
func SkipNoise(r io.Reader) (string, error) {
	b := bufio.NewReader(r)
	if err := skipNoise(b); err != nil {
		return "", err
	}
	rest, err := io.ReadAll(b)
	return string(rest), err
}

// Banner is the agent's greeting.
const Banner = banner

// LeaseTime is how long a lease holds by itself.
const LeaseTime = leaseTime

// TakeLease and GiveLease change the lease in dir.
func TakeLease(dir string, l Lease, now time.Time) error { return leaseFile{dir}.take(l, now) }

func GiveLease(dir string, l Lease) error { return leaseFile{dir}.give(l) }

// SudoError is what becomes of a failed command.
var SudoError = sudoError
