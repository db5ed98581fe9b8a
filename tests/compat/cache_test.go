package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/client/cli"
	"cairn/store"
	"cairn/tests/s3"
)

// cairn runs our command line on the side's store.
func (s *side) cairn(args ...string) string {
	s.t.Helper()
	var out, errs bytes.Buffer
	if code := cli.Run(s.t.Context(), s.cliEnv(&out, &errs), args); code != 0 {
		s.t.Fatalf("cairn %s: exit status %d\n%s%s", strings.Join(args, " "), code, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String())
}

func (s *side) cliEnv(out, errs io.Writer) *cli.Env {
	getenv := func(name string) string {
		value := ""
		for _, e := range s.env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				value = v
			}
		}
		return value
	}
	return &cli.Env{Stdin: strings.NewReader(""), Stdout: out, Stderr: errs, Getenv: getenv, Dir: s.work}
}

// readAll reads everything that a cache in a folder has, through a cache that is given, and checks it.
func readAll(t *testing.T, c cache.Cache, dir store.Dir, folder string) {
	t.Helper()
	files, _ := filepath.Glob(folder + "/*.narinfo")
	if len(files) == 0 {
		t.Errorf("no narinfos in %s", folder)
	}
	for _, f := range files {
		n, err := cache.ByDigest(t.Context(), c, strings.TrimSuffix(filepath.Base(f), ".narinfo"))
		if err != nil {
			t.Error(err)
			continue
		}
		r, err := c.NAR(t.Context(), n)
		if err != nil {
			t.Error(err)
			continue
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Error(err)
			continue
		}
		want, err := nar.List(bytes.NewReader(data))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := os.Stat(strings.TrimSuffix(f, ".narinfo") + ".ls"); err != nil {
			continue
		}
		if got, err := cache.Listing(t.Context(), c, n.Path); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("listing of %s: %v", n.Path, err)
		}
	}
}

// keys makes a key of nix.
func (w *world) keys(t *testing.T) (secretFile, public string) {
	t.Helper()
	secretFile = filepath.Join(w.root, "cache-key")
	public = w.theirs.run("sh", "-c", "umask 077; nix key generate-secret --key-name cache-1 > "+secretFile+" && nix key convert-secret-to-public < "+secretFile)
	return secretFile, public
}

// TestReadCachesOfNix reads what nix writes, in every compression that it has.
func TestReadCachesOfNix(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.file(t, "g.nix", graph())
		path := w.theirs.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link")
		for _, compression := range []string{"xz", "bzip2", "zstd", "gzip", "br", "lzip", "lz4", "lzma", "none"} {
			folder := filepath.Join(w.root, "cache-"+compression)
			o := w.theirs.try(nil, "nix", "copy", "--to", "file://"+folder+"?write-nar-listing=true&compression="+compression, path)
			if o.code != 0 {
				if compression != "lzma" {
					t.Errorf("%s: nix cannot: %s", compression, o.err)
				}
				continue
			}
			c, err := cache.Open("file://"+folder+"?compression=zstd", store.Dir(w.dir), nil)
			if err != nil {
				t.Fatal(err)
			}
			readAll(t, c, store.Dir(w.dir), folder)
		}
	})
}

// TestRealisationsOfNix reads realisations that nix writes, of both generations.
func TestRealisationsOfNix(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.file(t, "g.nix", graph())
		drv := w.theirs.run("nix-instantiate", "g.nix", "-A", "self")
		path := w.theirs.run("nix-build", "g.nix", "-A", "self", "--no-out-link")
		folder := filepath.Join(w.root, "cache")
		w.theirs.run("nix", "copy", "--to", "file://"+folder, "-f", "g.nix", "self")
		c, err := cache.Open(folder, store.Dir(w.dir), nil)
		if err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(folder + "/realisations/*.doi")
		if len(files) == 0 {
			t.Fatal("nix wrote no realisations")
		}
		for _, f := range files {
			id, err := store.ParseDrvOutput(strings.TrimSuffix(filepath.Base(f), ".doi"))
			if err != nil {
				t.Fatal(err)
			}
			if r, err := cache.Realisation(t.Context(), c, id); err != nil || r.OutPath.String() != path {
				t.Errorf("realisation %v, %v", r, err)
			}
		}
		// The same from our side: built by us, pushed by us, read by nix without building.
		if got := w.ours.run("nix-build", "g.nix", "-A", "self", "--no-out-link"); got != path {
			t.Fatalf("ours is %s, theirs %s", got, path)
		}
		mine := filepath.Join(w.root, "mine")
		secret, public := w.keys(t)
		w.ours.cairn("cache", "push", "--key", secret, mine, path)
		for _, name := range []string{"realisations/*.doi", "build-trace-v2/" + filepath.Base(drv) + "/out.doi"} {
			if files, _ := filepath.Glob(mine + "/" + name); len(files) == 0 {
				t.Errorf("we wrote no %s", name)
			}
		}
		w.theirs.run("nix-store", "--delete", path)
		o := w.theirs.try(nil, "nix-build", "g.nix", "-A", "self", "--no-out-link", "--max-jobs", "0", "--option", "substituters", "file://"+mine, "--option", "trusted-public-keys", public)
		if o.code != 0 || strings.TrimSpace(o.out) != path {
			t.Errorf("nix does not take our realisation: %d %s%s", o.code, o.out, o.err)
		}
	})
}

// TestPushForNix has nix read a cache that we wrote.
func TestPushForNix(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.file(t, "g.nix", graph())
		secret, public := w.keys(t)
		path := w.ours.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link")
		drv := w.ours.run("nix-store", "-q", "--deriver", path)
		for _, compression := range []string{"zstd", "gzip", "none"} {
			folder := filepath.Join(w.root, "mine-"+compression)
			uri := "file://" + folder + "?write-nar-listing=1&compression=" + compression
			w.ours.cairn("cache", "push", "--logs", "--key", secret, uri, path, drv)
			w.theirs.run("nix", "store", "verify", "--store", "file://"+folder, "-r", "--option", "trusted-public-keys", public, path)
			if log := w.theirs.run("nix", "log", "--store", "file://"+folder, drv); log != w.ours.run("nix-store", "--read-log", drv) {
				t.Errorf("log is %q", log)
			}
			w.theirs.run("nix", "copy", "--from", "file://"+folder, "--option", "trusted-public-keys", public, path)
			if w.theirs.run("cat", path) != w.ours.run("cat", path) {
				t.Error("contents differ")
			}
			w.theirs.run("nix-store", "--gc")
			c, err := cache.Open(folder, store.Dir(w.dir), nil)
			if err != nil {
				t.Fatal(err)
			}
			readAll(t, c, store.Dir(w.dir), folder)
			var theirs nar.Node
			if err := json.Unmarshal([]byte(w.theirs.run("nix", "store", "ls", "--json", "-R", "--store", "file://"+folder, path)), &theirs); err != nil {
				t.Fatal(err)
			}
			p, err := store.ParsePath(path)
			if err != nil {
				t.Fatal(err)
			}
			if ours, err := cache.Listing(t.Context(), c, p); err != nil || !reflect.DeepEqual(ours.Root, &theirs) {
				t.Errorf("nix lists %+v, we %+v, %v", theirs, ours, err)
			}
		}
	})
}

// TestServeForNix has nix substitute from our server.
func TestServeForNix(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.file(t, "g.nix", graph())
		secret, public := w.keys(t)
		path := w.ours.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link")
		self := w.ours.run("nix-build", "g.nix", "-A", "self", "--no-out-link")
		for _, compression := range []string{"zstd", "none"} {
			uri := w.ours.serve(t, "--key", secret, "--compression", compression)
			with := func(argv ...string) []string {
				return append(argv, "--max-jobs", "0", "--option", "substituters", uri, "--option", "trusted-public-keys", public)
			}
			w.theirs.run(with("nix-store", "-r", path)...)
			if w.theirs.run("cat", path) != w.ours.run("cat", path) {
				t.Error("contents differ")
			}
			w.theirs.run("nix-store", "--delete", path)
			if got := w.theirs.run(with("nix-build", "g.nix", "-A", "self", "--no-out-link")...); got != self {
				t.Errorf("nix made %s, we %s", got, self)
			}
			w.theirs.run("nix-store", "--gc")
			// And from each other: ours reads what we serve.
			c, err := cache.Open(uri, store.Dir(w.dir), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer cache.CloseIdle(c)
			p, err := store.ParsePath(path)
			if err != nil {
				t.Fatal(err)
			}
			n, err := c.NarInfo(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			r, err := c.NAR(t.Context(), n)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
}

var servedAt = regexp.MustCompile(`serving .* at (http://\S+)`)

// serve runs our server until the test ends.
func (s *side) serve(t *testing.T, args ...string) string {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r, w := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Run(ctx, s.cliEnv(io.Discard, w), append([]string{"cache", "serve", "--listen", "127.0.0.1:0"}, args...))
		w.Close()
	}()
	told := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			all.Write(buf[:n])
			if m := servedAt.FindStringSubmatch(all.String()); m != nil && cap(told) > len(told) {
				told <- m[1]
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		if code := <-ended; code != 0 {
			t.Errorf("cache serve: exit status %d", code)
		}
	})
	select {
	case uri := <-told:
		return uri
	case <-time.After(20 * time.Second):
		t.Fatal("cache serve does not listen")
	}
	return ""
}

// TestS3BothWays has nix and us read and write one bucket. Debian's nix 2.8 is built without S3, and 2.34 without
// signatures, so that the bucket is public.
func TestS3BothWays(t *testing.T) {
	t.Parallel()
	w := nix234.world(t)
	fake := s3.New()
	fake.Public = true
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	w.file(t, "g.nix", graph())
	secret, public := w.keys(t)
	credentials := []string{"AWS_ACCESS_KEY_ID=" + fake.Key, "AWS_SECRET_ACCESS_KEY=" + fake.Secret, "AWS_EC2_METADATA_DISABLED=true"}
	w.theirs.env = append(w.theirs.env, credentials...)
	w.ours.env = append(w.ours.env, credentials...)
	uri := "s3://" + fake.Bucket + "?scheme=http&region=" + fake.Region + "&endpoint=" + strings.TrimPrefix(server.URL, "http://")

	// We write, nix reads: contents, listings, packed narinfos.
	path := w.ours.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link")
	w.ours.cairn("cache", "push", "--key", secret, uri+"&narinfo-compression=gzip", path)
	w.theirs.run("nix", "copy", "--from", uri, "--option", "trusted-public-keys", public, path)
	if w.theirs.run("cat", path) != w.ours.run("cat", path) {
		t.Error("contents differ")
	}
	// Nix writes, we read.
	other := w.theirs.run("nix-build", "g.nix", "-A", "two", "--no-out-link")
	w.theirs.run("nix", "copy", "--to", uri+"&narinfo-compression=gzip&compression=xz&secret-key="+secret, other)
	opts := &cache.Options{Getenv: w.ours.cliEnv(nil, nil).Getenv}
	c, err := cache.Open(uri, store.Dir(w.dir), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.CloseIdle(c)
	for _, s := range []string{path, other} {
		p, err := store.ParsePath(s)
		if err != nil {
			t.Fatal(err)
		}
		n, err := c.NarInfo(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.NAR(t.Context(), n)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}
}
