package refscan

import (
	"encoding/binary"
	"io"

	"cairn/store"
)

// Scanner finds which of a set of paths a stream refers to.
type Scanner struct {
	dst        io.Writer
	candidates map[string][]store.Path // not found yet, by digest
	begins     [1 << 12]uint64         // bit set of how candidates begin
	found      []store.Path
	tail       [2 * digestLen]byte // the last bytes seen, and room for the next ones
	held       int                 // how many
}

// NewScanner returns a scanner for candidates. What is written to it goes on to w unless that is nil.
func NewScanner(w io.Writer, candidates []store.Path) *Scanner {
	s := &Scanner{dst: w, candidates: make(map[string][]store.Path, len(candidates))}
	for _, p := range candidates {
		s.candidates[p.Digest()] = append(s.candidates[p.Digest()], p)
		word, bit := begin([]byte(p.Digest()))
		s.begins[word] |= bit
	}
	return s
}

// begin returns the place in a bit set of a hash of the first 8 digits.
func begin(digest []byte) (word int, bit uint64) {
	h := binary.LittleEndian.Uint64(digest) * 0x9e3779b97f4a7c15
	return int(h >> 52), 1 << (h >> 46 & 63)
}

// Write scans p.
func (s *Scanner) Write(p []byte) (int, error) {
	if len(s.candidates) > 0 {
		s.border(p)
		s.scan(p)
	}
	if s.dst != nil {
		return s.dst.Write(p)
	}
	return len(p), nil
}

// border scans the windows that begin before p, and remembers the last bytes.
func (s *Scanner) border(p []byte) {
	n := copy(s.tail[s.held:s.held+digestLen-1], p)
	s.held += n
	if s.held >= digestLen {
		s.scan(s.tail[:s.held])
	}
	end := s.tail[:s.held]
	if n < len(p) {
		end = p
	}
	s.held = copy(s.tail[:digestLen-1], end[max(0, len(end)-digestLen+1):])
}

func (s *Scanner) scan(b []byte) {
	at := window(b, 0, 0)
	for at >= 0 {
		if word, bit := begin(b[at:]); s.begins[word]&bit != 0 {
			s.lookUp(b[at : at+digestLen])
		}
		at = window(b, at+1, at+digestLen)
	}
}

func (s *Scanner) lookUp(digest []byte) {
	if paths, ok := s.candidates[string(digest)]; ok {
		s.found = append(s.found, paths...)
		delete(s.candidates, string(digest))
	}
}

// Found returns the candidates that were found so far, sorted.
func (s *Scanner) Found() []store.Path { return store.SortPaths(append([]store.Path(nil), s.found...)) }
