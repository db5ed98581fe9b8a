// Package wire is the framing that archives and protocols share: unsigned 64-bit little-endian
// integers, and byte strings padded with zeros to a multiple of eight.
//
//	u64     = 8 bytes, little-endian
//	bool    = u64, 0 or 1
//	string  = u64 length, bytes, zero bytes up to the next multiple of 8
//	list    = u64 count, that many strings
//	map     = u64 count, that many pairs of strings, sorted by key when written
//	framed  = { u64 length > 0, that many bytes, no padding } u64 0
//
// Reading is strict and bounded: the caller names the limit of everything whose size the peer
// chooses, a length is compared with its limit before memory is taken, padding must be zero, and a
// bool must be 0 or 1. An input that ends inside a value gives io.ErrUnexpectedEOF; io.EOF means that
// it ended before the value's first byte.
// A map must have unique keys; their order is free, because Nix's own peers do not all sort.
//
// Errors are sticky on the writer only: the first one stays and Flush returns it.
// Neither side is safe for concurrent use.
package wire

import (
	"errors"
	"fmt"
)

// Errors that callers test for with errors.Is.
var (
	// ErrTooLong says that a length or a count is above the caller's limit.
	ErrTooLong = errors.New("longer than allowed")
	// ErrPadding says that the bytes after a string are not zero.
	ErrPadding = errors.New("padding is not zero")
	// ErrValue says that a number is none of those that its place allows.
	ErrValue = errors.New("value is not allowed")
)

// Padding returns how many zero bytes follow a string of n bytes.
func Padding(n uint64) int { return int(-n & 7) }

// checkLength compares a length that the peer chose with the caller's limit.
func checkLength(what string, n uint64, limit int) error {
	if limit < 0 || n > uint64(limit) {
		return fmt.Errorf("%s of %d, the limit is %d: %w", what, n, limit, ErrTooLong)
	}
	return nil
}
