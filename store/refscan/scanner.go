package refscan

import (
	"encoding/binary"
	"io"

	"cairn/store"
)

// Index is a set of paths that many streams are scanned for. It is never changed.
type Index struct {
	paths  map[string][]store.Path // by digest
	begins [1 << 12]uint64         // bit set of how digests begin
}

// NewIndex returns an index of paths.
func NewIndex(paths []store.Path) *Index {
	x := &Index{paths: make(map[string][]store.Path, len(paths))}
	for _, p := range paths {
		x.paths[p.Digest()] = append(x.paths[p.Digest()], p)
		word, bit := begin([]byte(p.Digest()))
		x.begins[word] |= bit
	}
	return x
}

// Scanner finds which of a set of paths a stream refers to.
type Scanner struct {
	dst   io.Writer
	index *Index
	seen  map[string]struct{} // digests that were found
	found []store.Path
	tail  [2 * digestLen]byte // the last bytes seen, and room for the next ones
	held  int                 // how many
}

// NewScanner returns a scanner for candidates. What is written to it goes on to w unless that is nil.
func NewScanner(w io.Writer, candidates []store.Path) *Scanner {
	return NewIndex(candidates).Scanner(w)
}

// Scanner returns a scanner for what is in the index. What is written to it goes on to w unless that is nil.
func (x *Index) Scanner(w io.Writer) *Scanner {
	return &Scanner{dst: w, index: x, seen: map[string]struct{}{}}
}

// begin returns the place in a bit set of a hash of the first 8 digits.
func begin(digest []byte) (word int, bit uint64) {
	h := binary.LittleEndian.Uint64(digest) * 0x9e3779b97f4a7c15
	return int(h >> 52), 1 << (h >> 46 & 63)
}

// Write scans p.
func (s *Scanner) Write(p []byte) (int, error) {
	if len(s.seen) < len(s.index.paths) {
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
		if word, bit := begin(b[at:]); s.index.begins[word]&bit != 0 {
			s.lookUp(b[at : at+digestLen])
		}
		at = window(b, at+1, at+digestLen)
	}
}

func (s *Scanner) lookUp(digest []byte) {
	paths, ok := s.index.paths[string(digest)]
	if _, seen := s.seen[string(digest)]; ok && !seen {
		s.found = append(s.found, paths...)
		s.seen[string(digest)] = struct{}{}
	}
}

// Found returns the candidates that were found so far, sorted.
func (s *Scanner) Found() []store.Path { return store.SortPaths(append([]store.Path(nil), s.found...)) }
