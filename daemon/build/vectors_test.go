package build_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/archive/nar"
	"cairn/daemon/build"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/refscan"
)

// TestVectors builds the derivations that nix built and compares outputs, hashes, references,
// content addresses, derivers and realisations.
func TestVectors(t *testing.T) {
	shell := busybox(t)
	r := newRig(t, &build.Options{SandboxPaths: map[string]string{"/bin/sh": shell, "/bin/busybox": shell}})
	v := readVectors(t)
	r.addVectorInputs()
	r.addVectorDerivations(v)
	compared := 0
	for name, b := range v.Built {
		t.Run(name, func(t *testing.T) {
			drv, err := store.ParsePath(b.Build[0].DrvPath)
			if err != nil {
				t.Fatal(err)
			}
			list, err := r.build.WithSelfHash(refscan.WithOffsets).Build(t.Context(), all(drv), build.Normal, nil)
			if err != nil || !list[0].Status.OK() {
				t.Fatalf("%v: %v", err, *list[0])
			}
			for o, want := range b.Build[0].Outputs {
				if got := list[0].Outputs[o].OutPath.String(); got != want {
					t.Errorf("output %s is %s, want %s", o, got, want)
				}
				compared++
			}
			for _, want := range b.Realisation {
				var w struct {
					ID                    store.DrvOutput
					DependentRealisations map[store.DrvOutput]string
				}
				if err := json.Unmarshal(want, &w); err != nil {
					t.Fatal(err)
				}
				got := list[0].Outputs[w.ID.Output]
				if got.ID != w.ID {
					t.Errorf("realisation id %s, want %s", got.ID, w.ID)
				}
				for in, path := range w.DependentRealisations {
					if got.Dependents[in].Base() != path {
						t.Errorf("dependent realisations %v, want %v", got.Dependents, w.DependentRealisations)
					}
				}
				compared++
			}
			for _, want := range b.Infos {
				p, _ := store.ParsePath(want.Path)
				got, err := r.store.Info(t.Context(), p)
				if err != nil {
					t.Fatal(err)
				}
				ca := ""
				if want.CA != nil {
					ca = *want.CA
				}
				var refs []string
				for _, p := range got.References {
					refs = append(refs, p.String())
				}
				slices.Sort(refs)
				if strings.HasPrefix(name, "fod") || strings.HasPrefix(name, "useFod") {
					want.Deriver = got.Deriver.String() // several derivations have that output; nix had built another one
				}
				if got.CA.String() != ca || !slices.Equal(refs, want.References) || got.Deriver.String() != want.Deriver {
					t.Errorf("%s: ca %s, references %v, deriver %s; want %s, %v, %s", want.Path, got.CA, refs, got.Deriver, ca, want.References, want.Deriver)
				}
				compared++
				if name == "structured" {
					compareStructured(t, r.store.RealPath(p))
					continue
				}
				if got.NarHash.SRI() != want.NarHash || got.NarSize != want.NarSize {
					t.Errorf("%s: narHash %s, size %d; want %s, %d", want.Path, got.NarHash.SRI(), got.NarSize, want.NarHash, want.NarSize)
				}
			}
		})
	}
	t.Logf("%d comparisons of %d built derivations", compared, len(v.Built))
}

// compareStructured compares the files but for the two variables in which nix 2.8 names the host's directory by mistake.
func compareStructured(t *testing.T, dir string) {
	for _, name := range []string{"attrs.json", "attrs.sh", "env"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(vectorsDir(), "built-structured", name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(want), "/tmp/nix-build-structured.drv-0/", "/build/")
		text = strings.ReplaceAll(text, "NIX_BUILD_CORES=2", "NIX_BUILD_CORES=0")
		if string(got) != text {
			t.Errorf("%s is\n%s\nwant\n%s", name, got, text)
		}
	}
}

// addVectorInputs adds what behaves like the vectors' shell at the path that it had, and the text files.
// That shell was patched to work under a name that ends in "-busybox", which Debian's does not.
func (r *rig) addVectorInputs() {
	var archive bytes.Buffer
	nar.DumpString(&archive, []byte("#!/bin/sh\nunset SHLVL\nexec /bin/busybox \"$@\"\n"), true)
	p, _ := store.ParsePath("/nix/store/6hqnv4zbyyr1s8vprbph979vp45d9id0-busybox")
	info := &store.Info{Path: p, NarHash: store.SHA256.Sum(archive.Bytes()), NarSize: int64(archive.Len())}
	if err := r.store.Add(r.ctx, info, &archive); err != nil {
		r.Fatal(err)
	}
	hello := r.addText("hello.txt", "hello\n")
	r.addText("refers.txt", "see "+hello.String()+"\n", hello)
}

func (r *rig) addVectorDerivations(v *vectors) {
	r.Helper()
	files := map[store.Path]string{}
	for _, d := range v.Derivations {
		p, err := store.ParsePath(d.DrvPath)
		if err != nil {
			r.Fatal(err)
		}
		files[p] = filepath.Join(vectorsDir(), d.File)
	}
	var add func(p store.Path)
	add = func(p store.Path) {
		if r.store.IsValid(p) {
			return
		}
		data, err := os.ReadFile(files[p])
		if err != nil {
			r.Fatal(err)
		}
		d, err := derivation.ParseAt(p, data)
		if err != nil {
			r.Fatal(err)
		}
		for in := range d.InputDrvs {
			add(in)
		}
		info, err := r.store.AddStream(r.ctx, p.Name(), store.Text, store.SHA256, d.References(), bytes.NewReader(data))
		if err != nil {
			r.Fatal(err)
		}
		if info.Path != p {
			r.Fatalf("%s was added as %s", p, info.Path)
		}
	}
	for p := range files {
		add(p)
	}
}
