package eval_test

import (
	"testing"

	"cairn/derivation/eval"
)

// TestPathsAreThoseOfNix compares with what nix 2.8 gave for the same objects in the same store directory.
func TestPathsAreThoseOfNix(t *testing.T) {
	dir := folder(t, map[string]string{"a.txt": "aaa\n", "main.star": `
text = plain_file("greeting", "HELLO!\n")
file = local_file("a.txt")
refers = plain_file("refers", text + " x\n")
_env = {"outputHashMode": "recursive", "outputHashAlgo": "sha256", "text": text}
floating = derivation("floating", "/bin/sh", args = ["-c", "echo hi > $out"], env = _env)
placed = derivation("placed", "/bin/sh", outputs = ["out", "dev"], env = {"t": text, "f": file, "outputs": "out dev"}, input_addressed = True)
dev = placed.dev
fixed = derivation("fixed", "/bin/sh", hash = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=", hash_mode = "recursive")
`})
	_, m, err := run(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"text":     "/cairn/store/csf1xx1j0gq64ni25vqn00xik717pip9-greeting",
		"file":     "/cairn/store/vwznm0m2m0xifmpvbj4c2xllvzgfmdd0-a.txt",
		"refers":   "/cairn/store/bbkwnyy3d0g6d4ycffwsvrns76vs7sfg-refers",
		"floating": "/1g7x20h4isgviv37nk0sh3syr01xqydmb1x9gp23zzkcbnaa74x6",
		"placed":   "/cairn/store/27246x25njfx590mzz2rvmsj9h3g12sb-placed",
		"dev":      "/cairn/store/gyws6lfffaczdhdfq9sf4q5kwfv6jw80-placed-dev",
		"fixed":    "/cairn/store/sj572ffbxn5mwl0jxf5yrzd48ldwh35f-fixed",
	} {
		if got, err := m.Globals[name].(*eval.Object).Path(); err != nil || got != want {
			t.Errorf("%s is %s (%v), nix gave %s", name, got, err, want)
		}
	}
	if drv, _, _ := m.Globals["placed"].(*eval.Object).Output(); drv.String() != "/cairn/store/dqxnpnq2m75fad2q0d048i8ckv943x9y-placed.drv" {
		t.Errorf("derivation of placed is %s", drv)
	}
}
