package settings

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value is a field of Settings as text.
type value interface {
	set(string) error
	String() string
}

// appender is a value that "extra-" can add to.
type appender interface {
	add(string) error
}

func assign(v value, text string, extra bool) error {
	if extra {
		return v.(appender).add(text)
	}
	return v.set(text)
}

type text string

func (t *text) set(s string) error { *t = text(s); return nil }
func (t *text) String() string     { return string(*t) }

type flag bool

func (f *flag) set(s string) error {
	switch s {
	case "true", "yes", "1":
		*f = true
	case "false", "no", "0":
		*f = false
	default:
		return fmt.Errorf("%q is neither true nor false", s)
	}
	return nil
}

func (f *flag) String() string { return strconv.FormatBool(bool(*f)) }

// maxCount keeps counts and seconds of clients in a range where sums and products fit.
const maxCount = 1 << 32

// count is a number that is not negative.
type count int

func (c *count) set(s string) error {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return fmt.Errorf("%q is no number", s)
	}
	*c = count(min(n, maxCount))
	return nil
}

func (c *count) String() string { return strconv.Itoa(int(*c)) }

// jobs is a count, or "auto": one per processor.
type jobs int

func (j *jobs) set(s string) error {
	if s == "auto" {
		*j = jobs(runtime.NumCPU())
		return nil
	}
	return (*count)(j).set(s)
}

func (j *jobs) String() string { return strconv.Itoa(int(*j)) }

// size is bytes, with an optional factor K, M, G or T of 1024.
type size int64

func (z *size) set(s string) error {
	digits, factor := s, uint64(1)
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
			digits, factor = s[:len(s)-1], 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return fmt.Errorf("%q is no size", s)
	}
	if n > math.MaxInt64/factor {
		n = math.MaxInt64 / factor
	}
	*z = size(n * factor)
	return nil
}

func (z *size) String() string { return strconv.FormatInt(int64(*z), 10) }

// Amount is a part of a disk: bytes, or percent of all bytes and of all inodes. The zero value is nothing.
type Amount struct {
	Bytes   int64
	Percent float64
}

// ParseAmount reads bytes with an optional factor K, M, G or T of 1024, or a number with "%".
func ParseAmount(s string) (Amount, error) {
	if digits, ok := strings.CutSuffix(s, "%"); ok {
		v, err := strconv.ParseFloat(digits, 64)
		if err != nil || !(v >= 0 && v <= 100) {
			return Amount{}, fmt.Errorf("%q is not between 0%% and 100%%", s)
		}
		return Amount{Percent: v}, nil
	}
	var z size
	if err := z.set(s); err != nil {
		return Amount{}, err
	}
	return Amount{Bytes: int64(z)}, nil
}

func (a Amount) String() string {
	if a.Percent > 0 {
		return strconv.FormatFloat(a.Percent, 'f', -1, 64) + "%"
	}
	return strconv.FormatInt(a.Bytes, 10)
}

// Of returns how many bytes and inodes that is of a disk with so many in all. Bytes say nothing of inodes.
func (a Amount) Of(bytes, inodes int64) (b, i int64) {
	if a.Percent == 0 {
		return a.Bytes, 0
	}
	return int64(float64(bytes) * a.Percent / 100), int64(float64(inodes) * a.Percent / 100)
}

type amount Amount

func (a *amount) set(s string) error {
	v, err := ParseAmount(s)
	if err == nil {
		*a = amount(v)
	}
	return err
}

func (a *amount) String() string { return Amount(*a).String() }

// seconds is a duration in whole seconds.
type seconds time.Duration

func (d *seconds) set(s string) error {
	var n count
	if err := n.set(s); err != nil {
		return err
	}
	*d = seconds(time.Duration(n) * time.Second)
	return nil
}

func (d *seconds) String() string {
	return strconv.FormatInt(int64(time.Duration(*d)/time.Second), 10)
}

// words is a list; a word that is there is not added again.
type words []string

func (w *words) set(s string) error { *w = strings.Fields(s); return nil }

func (w *words) add(s string) error {
	for _, x := range strings.Fields(s) {
		if !slices.Contains(*w, x) {
			*w = append(slices.Clip(*w), x)
		}
	}
	return nil
}

func (w *words) String() string { return strings.Join(*w, " ") }

// pairs is words name=value.
type pairs map[string]string

func (p *pairs) set(s string) error {
	*p = nil
	return p.add(s)
}

func (p *pairs) add(s string) error {
	m := pairs{}
	for k, v := range *p {
		m[k] = v
	}
	for _, w := range strings.Fields(s) {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return errors.New("words must be name=value")
		}
		m[k] = v
	}
	*p = m
	return nil
}

func (p *pairs) String() string {
	var list []string
	for k, v := range *p {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}
