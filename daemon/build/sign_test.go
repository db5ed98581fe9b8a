package build_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
)

// TestSecretKeyFiles builds an input-addressed output, and one addressed by its contents that uses it, with two keys.
func TestSecretKeyFiles(t *testing.T) {
	r := newRig(t, nil)
	set := settings.Defaults()
	var keys []archive.PublicKey
	for _, name := range []string{"first-1", "second-1"} {
		k, err := archive.GenerateKey(name)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), name)
		if err := k.WriteFile(file); err != nil {
			t.Fatal(err)
		}
		if name == "second-1" { // as "nix key generate-secret > FILE" makes it
			if err := os.Chmod(file, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		set.SecretKeyFiles = append(set.SecretKeyFiles, file)
		keys = append(keys, k.Public())
	}
	base := r.add(drv{name: "base", kind: derivation.Floating, script: "echo base > $out"})
	top := r.add(drv{name: "top", script: "cat @base@ > $out; echo @base@ >> $out", inputs: map[string]store.Path{"base": base}})
	list, err := r.build.With(set).Build(t.Context(), all(base, top), build.Normal, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, res := range list {
		if !res.Status.OK() {
			t.Fatalf("%s: %s", res.Target, res.Error)
		}
		out := res.Outputs["out"]
		info, err := r.store.Info(t.Context(), out.OutPath)
		if err != nil {
			t.Fatal(err)
		}
		if !info.Ultimate || len(info.Signatures) != len(keys) {
			t.Errorf("%s: ultimate %v, signatures %q", out.OutPath, info.Ultimate, info.Signatures)
		}
		real, err := r.store.Realisation(out.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if _, ok := archive.VerifyInfo(info, []archive.PublicKey{k}); !ok {
				t.Errorf("%s is not signed by %s: %q", out.OutPath, k.Name(), info.Signatures)
			}
			if _, ok := archive.VerifyRealisation(real, []archive.PublicKey{k}); !ok {
				t.Errorf("%s is not signed by %s: %q", real.ID, k.Name(), real.Signatures)
			}
		}
	}
	set = set.Clone()
	set.SecretKeyFiles = []string{"/nonexistent/key"}
	late := r.add(drv{name: "late", script: "echo > $out; echo it ran"})
	list, err = r.build.With(set).Build(t.Context(), all(late), build.Normal, nil)
	if err != nil {
		t.Fatal(err)
	}
	if list[0].Status == protocol.Built || !strings.Contains(list[0].Error, "setting 'secret-key-files': read secret key: open /nonexistent/key") {
		t.Errorf("without the key: %v %s", list[0].Status, list[0].Error)
	}
}
