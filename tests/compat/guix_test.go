package compat

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// guixScript talks as Guix's client does where "guix build" and "guix gc" need packages or a network.
const guixScript = `(use-modules (guix store) (guix derivations))
(define s (open-connection))
(set-build-options s #:use-substitutes? #f #:print-build-trace #f)
(define text (add-text-to-store s "text" "some text\n"))
(define tree (add-to-store s "tree" #t "sha256" "tree"))
(define low (derivation s "low" "/bin/sh" '("-c" "read x < $input; echo $x > $out; echo building low") #:sources (list text) #:env-vars (list (cons "input" text))))
(define high (derivation s "high" "/bin/sh" '("-c" "echo ${low} > $out") #:inputs (list (derivation-input low)) #:env-vars (list (cons "low" (derivation->output-path low)))))
(define bad (derivation s "bad" "/bin/sh" '("-c" "exit 4")))
(define (show . l) (for-each (lambda (x) (display x) (display " ")) l) (newline))
(show "built" (build-derivations s (list high)))
(define out (derivation->output-path high))
(show "valid" (valid-path? s out) (valid-path? s text) (valid-path? s tree))
(show "references" (references s out))
(show "referrers" (length (referrers s (derivation->output-path low))))
(show "size" (path-info-nar-size (query-path-info s out)))
(show "requisites" (length (requisites s (list out))))
(show "deriver" (valid-derivers s out))
(show "substitutes" (has-substitutes? s out))
(show "verified" (verify-store s #:check-contents? #t))
(show "failed" (catch #t (lambda () (build-derivations s (list bad))) (lambda l "as it must")))
(show "live" (length (live-paths s)))
(call-with-output-file "exported" (lambda (p) (export-paths s (list out) p #:sign? #f)))
(close-connection s)
`

// TestGuix serves Guix's client, with the store directory and the state that are its own.
func TestGuix(t *testing.T) {
	t.Parallel()
	need(t)
	system := nix234.need(t)
	root, err := os.MkdirTemp(scratch, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(root) })
	w := &world{gen: nix234, root: root, dir: filepath.Join(root, "unused")}
	s := w.side(t, "cairn", strings.Replace(conf, "sandbox = false", "sandbox = true", 1))
	w.ours, w.dir = s, "/gnu/store"
	s.dir, s.root, s.real, s.conn = w.dir, system, filepath.Join(root, "cairn", "store"), filepath.Join(root, "s")
	w.startDaemon(t)
	lib := filepath.Join(root, "lib")
	// Guix's modules load libraries by the names that only development packages have.
	found, _ := filepath.Glob(filepath.Join(system, "usr/lib/*/libgcrypt.so.*"))
	if len(found) == 0 || os.Mkdir(lib, 0o755) != nil || os.Symlink(strings.TrimPrefix(found[0], system), filepath.Join(lib, "libgcrypt.so")) != nil {
		t.Fatalf("no libgcrypt: %v", found)
	}
	s.env = append(s.env, "NIX_STORE_DIR="+w.dir, "GUIX_DAEMON_SOCKET="+s.conn, "LD_LIBRARY_PATH="+lib, "GUIX_STATE_DIRECTORY="+s.state)
	if err := os.MkdirAll(filepath.Join(s.work, "tree", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.work, "t.scm"), []byte(guixScript), 0o644); err != nil {
		t.Fatal(err)
	}
	o := s.try(nil, "guix", "repl", "t.scm")
	for _, want := range []string{
		"built #t", "valid #t #t #t", "references (/gnu/store/", "referrers 1", "size ", "requisites 2", "-high.drv)", "substitutes #f", "verified #t", "failed as it must", "live ",
	} {
		if !strings.Contains(o.out, want) {
			t.Fatalf("%q is missing: %d\n%s\n%s", want, o.code, o.out, o.err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.work, "exported")); err != nil {
		t.Error(err)
	}
	expr := `(begin (use-modules (guix) (guix derivations)) (with-store s (set-build-options s #:use-substitutes? #f) (derivation s "one" "/bin/sh" (list "-c" "echo built > $out"))))`
	out := s.run("guix", "build", "--no-substitutes", "--no-offload", "-e", expr, "-r", "result")
	if got := s.run("cat", out); got != "built" || !strings.HasPrefix(out, "/gnu/store/") {
		t.Errorf("%s has %q", out, got)
	}
	if live := s.run("guix", "gc", "--list-live"); !strings.Contains(live, out) {
		t.Errorf("a root does not count: %s", live)
	}
	if dead := s.run("guix", "gc", "--list-dead"); !strings.Contains(dead, "-high") {
		t.Errorf("dead: %s", dead)
	}
	s.run("guix", "gc")
	if dead := s.run("guix", "gc", "--list-dead"); dead != "" {
		t.Errorf("dead after a collection: %s", dead)
	}
	s.run("guix", "gc", "--verify=contents")
	os.Remove(filepath.Join(s.work, "result"))
	s.run("guix", "gc", "--delete", out)
	if o := s.try(nil, "cat", out); o.code == 0 {
		t.Error("it was not deleted")
	}
}
