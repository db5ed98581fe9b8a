package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

var sizeUnits = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}

// formatSize writes a number of bytes for people.
func formatSize(n int64) string {
	v, unit := float64(n), 0
	for math.Abs(v) >= 1024 && unit+1 < len(sizeUnits) {
		v, unit = v/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, sizeUnits[unit])
}

// parseSize reads "1500", "20M", "1.5GiB": factors of 1024, or of 1000 for KB, MB, GB, TB.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(strings.TrimSpace(s), "BKMGTPbkmgtpIi ")
	unit := strings.ToUpper(strings.TrimSpace(strings.TrimSpace(s)[len(digits):]))
	v, err := strconv.ParseFloat(digits, 64)
	if err != nil || v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0, hinted(fmt.Errorf("size %q is not a number of bytes", s), "write sizes as 500M or 2G")
	}
	factor, ok := sizeFactor(unit)
	if !ok {
		return 0, hinted(fmt.Errorf("size %q has the unknown unit %q", s, unit), "write sizes as 500M or 2G")
	}
	if v*factor >= math.MaxInt64 {
		return math.MaxInt64, nil
	}
	return int64(v * factor), nil
}

func sizeFactor(unit string) (float64, bool) {
	if unit == "" || unit == "B" {
		return 1, true
	}
	power := strings.IndexByte("KMGTP", unit[0]) + 1
	if power == 0 {
		return 0, false
	}
	switch unit[1:] {
	case "", "IB":
		return math.Pow(1024, float64(power)), true
	case "B":
		return math.Pow(1000, float64(power)), true
	}
	return 0, false
}

// parseAge reads a duration as Go writes it, or whole days (30d) or weeks (4w).
func parseAge(s string) (time.Duration, error) {
	days := map[byte]time.Duration{'d': 1, 'w': 7}
	if s != "" {
		if n, ok := days[s[len(s)-1]]; ok {
			v, err := strconv.ParseUint(s[:len(s)-1], 10, 16)
			if err == nil && time.Duration(v)*n <= math.MaxInt64/(24*time.Hour) {
				return time.Duration(v) * n * 24 * time.Hour, nil
			}
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, hinted(fmt.Errorf("age %q is not a duration", s), "write ages as 12h, 30d or 4w")
	}
	return d, nil
}

// formatAge writes a duration for people, in its largest unit.
func formatAge(d time.Duration) string {
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}} {
		if d >= unit.length {
			return fmt.Sprintf("%d %s", d/unit.length, unit.name)
		}
	}
	return fmt.Sprintf("%d s", max(0, d/time.Second))
}
