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
	offers  map[store.Path][]store.Path
	secret  map[store.Path]bool // nobody has been asked for them
	traces  map[store.DrvOutput]store.Path
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

func (w *world) offered(p store.Path) ([]store.Path, bool, bool) {
	refs, ok := w.offers[p]
	return refs, ok, !w.secret[p]
}

func (w *world) traced(id store.DrvOutput) (store.Path, bool, bool) {
	p, ok := w.traces[id]
	return p, ok, !w.secret[pathOf(id.Output)]
}

// newWorld reads lines "name[*|?] output[!]… < input[:output]… source…": * is floating, ? deferred, an output with ! is valid.
// An input that starts with / is a source, with /! a valid one.
//
// "= object reference…" is what caches have, "~ name output object" where they say that an output is, "! object…" is valid, and
// of "? object…" they have not been asked, nor of an output of that name.
func newWorld(text string) *world {
	w := &world{objects: map[store.Path]bool{}, drvs: map[store.Path]*derivation.Derivation{}, built: map[store.DrvOutput]store.Path{}}
	for line := range strings.Lines(text) {
		if w.special(strings.Fields(line)) {
			continue
		}
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

// special reads a line that is no derivation.
func (w *world) special(words []string) bool {
	if len(words) == 0 || !strings.Contains("=~!?", words[0]) {
		return false
	}
	var paths []store.Path
	for _, n := range words[1:] {
		paths = append(paths, pathOf(n))
	}
	switch words[0] {
	case "=":
		if w.offers == nil {
			w.offers = map[store.Path][]store.Path{}
		}
		w.offers[paths[0]] = paths[1:]
	case "~":
		id, _ := w.identity(&derivation.Derivation{Name: words[1]}, words[2])
		w.traces = map[store.DrvOutput]store.Path{id: paths[2]}
	case "!":
		for _, p := range paths {
			w.objects[p] = true
		}
	case "?":
		w.secret = map[store.Path]bool{}
		for _, p := range paths {
			w.secret[p] = true
		}
	}
	return true
}

// TestPlanFetch: "+" objects are fetched, "?" ones asked for, "?!" outputs asked for, "drv" derivations needed first.
func TestPlanFetch(t *testing.T) {
	for _, c := range []struct{ name, world, targets, want string }{
		{"object", "= x", "x", "+x"},
		{"references first", "= x y z\n= y z\n= z", "x", "+z +y +x"},
		{"reference is valid", "= x y\n! y", "x", "+x"},
		{"reference to itself", "= x x", "x", "+x"},
		{"reference is nowhere", "= x y", "x", "| x"},
		{"circle", "= x y\n= y x", "x", "| x"},
		{"output", "a out < b\nb out\n= a-out", "a!out", "+a-out"},
		{"input", "a out < b\nb out\n= b-out", "a!out", "+b-out a"},
		{"closure is incomplete, so it is built", "a out < b\nb out\n= a-out q", "a!out", "b a"},
		{"all wanted outputs or none", "a out dev\n= a-out", "a!*", "a"},
		{"wanted output alone", "a out dev\n= a-out", "a!out", "+a-out"},
		{"output that is wanted later", "a out < b c\nc out < b:dev\nb out dev\n= b-out", "a!out", "b c a"},
		{"source", "a out < /s\n= s", "a!out", "+s a"},
		{"derivation", "= d.drv", "d!out", "drv d.drv"},
		{"floating", "a* out < b\nb* out\n~ a out x\n= x", "a!out", "+x"},
		{"floating, and the object is here", "a* out\n~ a out x\n! x", "a!out", "="},
		{"floating, and the object is nowhere", "a* out\n~ a out x", "a!out", "a"},
		{"not asked", "? x", "x", "?x"},
		{"not asked, so what is below is left alone", "a out < b\nb out\n? a-out b-out", "a!out", "?a-out"},
		{"output not asked", "a* out\n? out", "a!out", "?!a"},
		{"reference not asked", "a out < b\nb out\n= a-out x\n? x", "a!out", "?x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var targets []protocol.Target
			for _, s := range strings.Fields(c.targets) {
				name, outputs, drv := strings.Cut(s, "!")
				if drv {
					targets = append(targets, protocol.Target{Path: pathOf(name + ".drv"), Outputs: strings.Split(outputs, ",")})
				} else {
					targets = append(targets, protocol.Target{Path: pathOf(name)})
				}
			}
			p, err := makePlan(newWorld(c.world), targets, Normal, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := planText(p); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func planText(p *plan) string {
	var words []string
	for _, d := range p.drvs {
		words = append(words, "drv "+d.Name())
	}
	for _, a := range p.asks {
		words = append(words, "?"+a.Name())
	}
	for _, a := range p.traces {
		words = append(words, "?!"+strings.TrimSuffix(a.drv.Name(), ".drv"))
	}
	if !p.complete() {
		return strings.Join(words, " ") // the rest is not to be relied on
	}
	for _, f := range p.fetches {
		words = append(words, "+"+f.Name())
	}
	for _, n := range p.nodes {
		words = append(words, n.drv.Name)
	}
	for _, u := range p.unknown {
		words = append(words, "| "+u.Name())
	}
	if len(words) == 0 && len(p.fetched) > 0 {
		words = []string{"="} // nothing but what is to be recorded
	}
	return strings.Join(words, " ")
}

// TestPlanAhead asks for what is below in the same round, when told to.
func TestPlanAhead(t *testing.T) {
	w := newWorld("a out < b\nb out < c\nc out < d\nd out\n? a-out b-out c-out d-out")
	for ahead, want := range []string{"?a-out", "?a-out ?b-out", "?a-out ?b-out ?c-out"} {
		p, err := makePlan(w, []protocol.Target{{Path: pathOf("a.drv"), Outputs: []string{"out"}}}, Normal, ahead)
		if err != nil || planText(p) != want {
			t.Errorf("%d ahead: got %s, want %s; %v", ahead, planText(p), want, err)
		}
	}
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
