package ship

import (
	"fmt"
	"testing"

	"cairn/store"
)

func paths(t *testing.T, n int) []store.Path {
	t.Helper()
	list := make([]store.Path, n)
	for i := range list {
		var err error
		if list[i], err = store.DefaultDir.Path(fmt.Sprintf("00000000000000000000000000000000-p%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

func TestBundles(t *testing.T) {
	for _, test := range []struct {
		name string
		size int64 // of each
		n    int
		want []int
	}{
		{"one", 1, 1, []int{1}},
		{"a full one", 1, bundleObjects, []int{bundleObjects}},
		{"one more", 1, bundleObjects + 1, []int{bundleObjects, 1}},
		{"many", 1, 2*bundleObjects + 5, []int{bundleObjects, bundleObjects, 5}},
		{"large objects", bundleBytes/2 + 1, 5, []int{2, 2, 1}},
		{"larger than a bundle", 3 * bundleBytes, 2, []int{1, 1}},
	} {
		c := &Cargo{Missing: paths(t, test.n), sizes: map[store.Path]int64{}}
		for _, p := range c.Missing {
			c.sizes[p] = test.size
		}
		next := 0
		var got []int
		for _, b := range c.bundles() {
			got = append(got, len(b))
			for _, p := range b {
				if p != c.Missing[next] {
					t.Fatalf("%s: bundle %d has %s, want %s", test.name, len(got), p, c.Missing[next])
				}
				next++
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%s: got bundles of %v, want %v", test.name, got, test.want)
		}
	}
}

// SetMost makes the bundles of a cargo have n objects, for tests that cannot make thousands.
func (c *Cargo) SetMost(n int) { c.most = n }
