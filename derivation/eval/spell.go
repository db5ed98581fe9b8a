package eval

import "strings"

// Nearest returns the candidate that a misspelt word most likely meant, or "".
// A candidate may differ by a third of the word's length in edits, and two at most for words below nine letters.
func Nearest(word string, candidates []string) string {
	best, limit := "", max(1, min(len(word)/3, 3))
	folded := fold.Replace(strings.ToLower(word))
	for _, c := range candidates {
		if d := distance(folded, fold.Replace(strings.ToLower(c))); d <= limit && c != word {
			best, limit = c, d-1
		}
	}
	return best
}

// fold drops what people leave out or write in another way.
var fold = strings.NewReplacer("_", "", "-", "", "?", "")

// distance is the number of insertions, deletions, substitutions and swaps of neighbours
// that turn a into b, no part edited twice (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var before, last, row [65]int
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
