package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/store"
)

// entry is one of an archive: "name" with contents, "name -> target", "name => hard link", or "name/".
func tarOf(entries ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e, Typeflag: tar.TypeReg, Mode: 0o755, Size: 2}
		if name, target, ok := strings.Cut(e, " -> "); ok {
			h = &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
		} else if name, target, ok := strings.Cut(e, " => "); ok {
			h = &tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
		} else if strings.HasSuffix(e, "/") {
			h = &tar.Header{Name: e, Typeflag: tar.TypeDir, Mode: 0o700}
		} else if strings.HasSuffix(e, "|") {
			h = &tar.Header{Name: e, Typeflag: tar.TypeFifo}
		}
		w.WriteHeader(h)
		if h.Size > 0 {
			w.Write([]byte("x\n"))
		}
	}
	w.Close()
	return b.Bytes()
}

// TestUnpackChannel unpacks archives, good ones and ones that want to be written elsewhere.
func TestUnpackChannel(t *testing.T) {
	r := newRig(t, nil)
	outside := filepath.Join(t.TempDir(), "outside")
	os.MkdirAll(outside, 0o777)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(tarOf("top/", "top/a"))
	z.Close()
	for n, c := range []struct {
		name string
		data []byte
		want []string // what is in the channel; nil: an error with text
		text string
	}{
		{"plain", tarOf("./", "./top/", "./top/a", "./top/d/b", "top/l -> d/b", "top/h => top/a", "top/p|"), []string{"a", "d", "d/b", "h", "l"}, ""},
		{"gzip", zipped.Bytes(), []string{"a"}, ""},
		{"absolute", tarOf("/top/a"), []string{"a"}, ""},
		{"dots", tarOf("../../top/a"), []string{"a"}, ""},
		{"link out and through", tarOf("top/l -> "+outside, "top/l/evil"), nil, "escapes"},
		{"relative link out", tarOf("top/l -> ../../../../../..", "top/l"+outside+"/evil"), nil, "escapes"},
		{"hard link out", tarOf("top/l => ../../../../../../etc/passwd"), nil, "no such file"},
		{"two", tarOf("one", "two"), nil, "contains more than one file"},
		{"nothing", tarOf(), nil, "contains more than one file"},
		{"cut", tarOf("top/a", "top/b")[:1100], nil, "unexpected EOF"},
		{"no archive", []byte("text"), nil, "unexpected EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := r.addText(fmt.Sprintf("src-%d", n), string(c.data))
			d := r.add(drv{name: "channel", builder: "builtin:unpack-channel", system: "builtin", inputs: map[string]store.Path{"src": src}, env: map[string]string{"channelName": "ch", "src": "@src@"}})
			res := r.result(d)
			if entries, _ := os.ReadDir(outside); len(entries) > 0 {
				t.Fatalf("written outside: %v", entries)
			}
			if c.want == nil {
				if res.Status.OK() || !strings.Contains(res.Error, c.text) {
					t.Errorf("%v %s", res.Status, res.Error)
				}
				return
			}
			if !res.Status.OK() {
				t.Fatalf("%v %s", res.Status, res.Error)
			}
			var got []string
			root := filepath.Join(r.store.RealPath(res.Outputs["out"].OutPath), "ch")
			filepath.WalkDir(root, func(p string, _ os.DirEntry, _ error) error {
				if rel, _ := filepath.Rel(root, p); rel != "." {
					got = append(got, rel)
				}
				return nil
			})
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v", got)
			}
		})
	}
	for _, name := range []string{"", ".", "..", "a/b"} {
		d := r.add(drv{name: "channel", builder: "builtin:unpack-channel", system: "builtin", inputs: map[string]store.Path{"src": r.addText("src-0", "x")}, env: map[string]string{"channelName": name, "src": "@src@"}})
		if res := r.result(d); res.Status.OK() || !strings.Contains(res.Error, "which is no file name") {
			t.Errorf("%q: %v %s", name, res.Status, res.Error)
		}
	}
}
