package build

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/base32"
)

// world is a set of facts in memory.
type world struct {
	objects map[store.Path]bool
	drvs    map[store.Path]*derivation.Derivation
	built   map[store.DrvOutput]store.Path
	asked   int
}

func (w *world) valid(p store.Path) bool { w.asked++; return w.objects[p] }

func (w *world) derivation(p store.Path) (*derivation.Derivation, error) {
	w.asked++
	if d := w.drvs[p]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("derivation %s: %w", p, store.ErrNotValid)
}

func (w *world) realised(id store.DrvOutput) (store.Path, bool) { p, ok := w.built[id]; return p, ok }

func (w *world) identity(d *derivation.Derivation, output string) (store.DrvOutput, error) {
	return store.DrvOutput{Drv: store.SHA256.Sum([]byte(d.Name)), Output: output}, nil
}

func pathOf(name string) store.Path {
	digest := store.SHA256.Sum([]byte(name)).Bytes()
	p, err := store.ParsePath("/nix/store/" + base32.Encode(digest[:20]) + "-" + name)
	if err != nil {
		panic(err)
	}
	return p
}

func (w *world) offered(p store.Path) ([]store.Path, bool, bool) { return nil, false, true }

func (w *world) traced(id store.DrvOutput) (store.Path, bool, bool) { return store.Path{}, false, true }

// newWorld reads lines "name[*|?] output[!]… < input[:output]… source…": * is floating, ? deferred, an output with ! is valid.
// An input that starts with / is a source, with /! a valid one.
func newWorld(text string) *world {
	w := &world{objects: map[store.Path]bool{}, drvs: map[store.Path]*derivation.Derivation{}, built: map[store.DrvOutput]store.Path{}}
	for line := range strings.Lines(text) {
		left, right, _ := strings.Cut(line, "<")
		words := strings.Fields(left)
		if len(words) == 0 {
			continue
		}
		name := strings.TrimRight(words[0], "*?")
		d := &derivation.Derivation{Name: name, Outputs: map[string]derivation.Output{}, InputDrvs: map[store.Path][]string{}}
		w.drvs[pathOf(name+".drv")] = d
		for _, o := range words[1:] {
			o, valid := strings.CutSuffix(o, "!")
			out := pathOf(name + "-" + o)
			w.objects[out] = valid
			switch {
			case strings.HasSuffix(words[0], "*"):
				d.Outputs[o] = derivation.Output{Method: store.Recursive, Algo: store.SHA256}
			case strings.HasSuffix(words[0], "?"):
				d.Outputs[o] = derivation.Output{}
			default:
				d.Outputs[o] = derivation.Output{Path: out}
			}
			if valid {
				id, _ := w.identity(d, o)
				w.built[id] = out
			}
		}
		for _, in := range strings.Fields(right) {
			if src, ok := strings.CutPrefix(in, "/"); ok {
				src, valid := strings.CutPrefix(src, "!")
				d.InputSrcs = append(d.InputSrcs, pathOf(src))
				w.objects[pathOf(src)] = valid
				continue
			}
			n, o, ok := strings.Cut(in, ":")
			if !ok {
				o = "out"
			}
			d.InputDrvs[pathOf(n+".drv")] = append(d.InputDrvs[pathOf(n+".drv")], o)
		}
	}
	return w
}

func TestPlan(t *testing.T) {
	for _, c := range []struct{ name, world, targets, want string }{
		{"nothing to do", "a out! < b\nb out", "a!out", ""},
		{"one", "a out", "a!out", "a"},
		{"inputs first", "a out < b c\nb out < c\nc out", "a!out", "c b a"},
		{"valid input", "a out < b\nb out! < c\nc out", "a!out", "a"},
		{"wanted output is valid", "a out < b\nb out! dev < c\nc out", "a!out", "a"},
		{"other output is wanted, too", "a out < b c\nc out < b:dev\nb out! dev", "a!out", "b c a"},
		{"output of no interest", "a out! dev", "a!out", ""},
		{"all outputs", "a out! dev", "a!*", "a"},
		{"missing source", "a out < /s /!t", "a!out", "a | s"},
		{"source of what is there", "a out < b\nb out! < /s", "a!out", "a"},
		{"object", "", "x", "| x"},
		{"floating, known", "a* out! < b\nb out", "a!out", ""},
		{"floating, unknown", "a* out < b\nb* out!", "a!out", "a"},
		{"deferred", "a? out < b\nb* out", "a!out", "b a"},
		{"diamond", "a out < b c\nb out < d\nc out < d\nd out", "a!out", "d b c a"},
		{"two targets", "a out < c\nb out < c\nc out", "a!out b!out", "c a b"},
		{"cycle", "a out < b\nb out < c\nc out < b", "a!out", "error: derivation b.drv depends on itself: b.drv → c.drv → b.drv"},
		{"self", "a out < a", "a!out", "error: derivation a.drv depends on itself: a.drv → a.drv"},
		{"cycle of floating ones", "a* out < b\nb* out < a", "a!out", "error: derivation a.drv depends on itself: a.drv → b.drv → a.drv"},
		{"no such output", "a out dev", "a!doc", `error: derivation a.drv has no output "doc"; it has dev, out`},
		{"input has no such output", "a out < b:doc\nb out", "a!out", `error: derivation b.drv has no output "doc"; it has out`},
		{"no derivation", "a out < b", "a!out", "error: derivation b.drv: path is not valid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(c.world)
			short := map[string]string{}
			var targets []protocol.Target
			for _, s := range strings.Fields(c.targets) {
				name, outputs, drv := strings.Cut(s, "!")
				if !drv {
					targets = append(targets, protocol.Target{Path: pathOf(name)})
					continue
				}
				targets = append(targets, protocol.Target{Path: pathOf(name + ".drv"), Outputs: strings.Split(outputs, ",")})
			}
			for p := range w.drvs {
				short[p.String()] = p.Name()
			}
			short[pathOf("b.drv").String()] = "b.drv"
			got := ""
			p, err := makePlan(w, targets, Normal, 0)
			if err != nil {
				got = "error: " + err.Error()
				for long, s := range short {
					got = strings.ReplaceAll(got, long, s)
				}
			} else {
				var words []string
				for _, n := range p.nodes {
					words = append(words, n.drv.Name)
				}
				if len(p.unknown) > 0 {
					words = append(words, "|")
				}
				for _, u := range p.unknown {
					words = append(words, u.Name())
				}
				got = strings.Join(words, " ")
			}
			// Siblings come in the order of their digests: any order with inputs first will do.
			if got != c.want && !permuted(p, got, c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func permuted(p *plan, got, want string) bool {
	if p == nil || len(got) != len(want) {
		return false
	}
	for _, w := range strings.Fields(want) {
		if !strings.Contains(got, w) {
			return false
		}
	}
	seen := map[*node]bool{}
	for _, n := range p.nodes {
		for _, in := range n.inputs {
			if !seen[in] {
				return false
			}
		}
		seen[n] = true
	}
	return true
}

// TestPlanIsLinear counts questions for chains and for layers that all depend on each other.
func TestPlanIsLinear(t *testing.T) {
	chain := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "n%d out < n%d\n", i, i+1)
		}
		fmt.Fprintf(&b, "n%d out\n", n)
		return b.String()
	}
	per := map[int]float64{}
	for _, n := range []int{100, 2000, 20000} {
		w := newWorld(chain(n))
		w.asked = 0
		start := time.Now()
		p, err := makePlan(w, []protocol.Target{{Path: pathOf("n0.drv"), Outputs: []string{"out"}}}, Normal, 0)
		if err != nil || len(p.nodes) != n+1 {
			t.Fatal(err)
		}
		per[n] = float64(w.asked) / float64(n)
		t.Logf("%d derivations: %.2f questions and %v each", n, per[n], time.Since(start)/time.Duration(n))
	}
	if per[20000] > per[100]*1.1 {
		t.Errorf("questions for each derivation grow: %v", per)
	}
}

// FuzzAttributes checks that what we write is JSON of the same value and that the shell text is built for anything.
func FuzzAttributes(f *testing.F) {
	f.Add(`{"a":"b\n\u0001\u2028é\"\\","l":[1,2.5,null,true],"m":{"k":{}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		a := &attempt{job: &job{}, drv: &derivation.Derivation{Env: map[string]string{"__json": text}}}
		attrs, err := a.structured()
		if err != nil {
			return
		}
		var one, two strings.Builder
		one.Write(jsonOf(attrs))
		a.drv.Env["__json"] = one.String()
		again, err := a.structured()
		if err != nil {
			t.Fatalf("%q became %q: %v", text, one.String(), err)
		}
		two.Write(jsonOf(again))
		if one.String() != two.String() {
			t.Fatalf("%q became %q and then %q", text, one.String(), two.String())
		}
		shellText(attrs)
	})
}
