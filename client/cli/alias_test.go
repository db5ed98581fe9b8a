package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestInstallNixNames(t *testing.T) {
	dir, nix := t.TempDir(), t.TempDir()
	var out bytes.Buffer
	env := &Env{Stdout: &out, Getenv: func(string) string { return dir + ":/nonexistent" }}
	for range 2 { // the second time changes nothing
		if err := installNixNames(env, dir, "/x/cairn"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"nix-daemon", "nix-store"} {
		if to, err := os.Readlink(filepath.Join(dir, name)); err != nil || to != "/x/cairn" || strings.Count(out.String(), name) != 1 {
			t.Errorf("%s leads to %q, %v; output %q", name, to, err, out.String())
		}
	}
	if err := os.WriteFile(filepath.Join(nix, "nix-store"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	env.Getenv = func(string) string { return nix }
	if err := installNixNames(env, other, "/x/cairn"); err == nil || !strings.Contains(err.Error(), filepath.Join(nix, "nix-store")+" is there already") {
		t.Errorf("got %v", err)
	}
}

func TestNixOptions(t *testing.T) {
	o, err := parseNixOptions("nix-daemon", strings.Fields("--stdio -vv --option a b --store unix:///s -j 4 --no-substitute --keep-failed --force-untrusted --cores 2"))
	if err != nil || !o.stdio || !o.forceUntrusted || o.store != "unix:///s" || o.other != "" {
		t.Errorf("got %+v, %v", o, err)
	}
	if want := []string{"a=b", "max-jobs=4", "substitute=false", "keep-failed=true", "cores=2"}; !slices.Equal(o.options, want) {
		t.Errorf("options %q, want %q", o.options, want)
	}
	if o, err = parseNixOptions("nix-store", []string{"-qR", "/x"}); err != nil || o.other != "-qR" {
		t.Errorf("got %+v, %v", o, err)
	}
	if _, err = parseNixOptions("nix-store", []string{"--option", "a"}); err == nil {
		t.Error("an option without a value")
	}
}

func TestChooseStore(t *testing.T) {
	for _, c := range []struct{ uri, root, socket, fails string }{
		{"", "", "", ""},
		{"daemon", "", "", ""},
		{"unix:///s", "", "/s", ""},
		{"unix://", "", "", ""},
		{"/r", "/r", "", ""},
		{"local?root=/r", "/r", "", ""},
		{"local?root=r", "", "", "parameters"},
		{"local?state=/x", "", "", "parameters"},
		{"ssh://host", "", "", "not one of this machine"},
	} {
		env := &Env{Getenv: func(string) string { return "" }}
		err := env.chooseStore(c.uri)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%q: got %v, want %q", c.uri, err, c.fails)
			}
			continue
		}
		if err != nil || env.Root != c.root || env.Getenv("NIX_DAEMON_SOCKET_PATH") != c.socket {
			t.Errorf("%q: root %q, socket %q, %v", c.uri, env.Root, env.Getenv("NIX_DAEMON_SOCKET_PATH"), err)
		}
	}
}
