package build_test

import (
	"fmt"
	"testing"

	"cairn/store"
)

// BenchmarkTrivial builds derivations that do nothing, one at a time.
func BenchmarkTrivial(b *testing.B) {
	for _, inputs := range []int{0, 100} {
		b.Run(fmt.Sprint("inputs=", inputs), func(b *testing.B) {
			r := newRig(b, nil)
			in := map[string]store.Path{}
			for i := range inputs {
				in[fmt.Sprint(i)] = r.addText(fmt.Sprint("in", i), "x")
			}
			var drvs []store.Path
			for i := range 200 {
				drvs = append(drvs, r.add(drv{name: fmt.Sprint("d", i), script: "echo x > $out", inputs: in}))
			}
			i := 0
			for b.Loop() {
				if i == len(drvs) {
					b.StopTimer()
					for range 200 {
						drvs = append(drvs, r.add(drv{name: fmt.Sprint("d", len(drvs)), script: "echo x > $out", inputs: in}))
					}
					b.StartTimer()
				}
				r.realise(drvs[i])
				i++
			}
		})
	}
}
