package archive_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/archive"
)

func TestRights(t *testing.T) {
	acl, err := archive.ParseACL([]byte(`# who may do what
user:alice all # herself
uid:1001	add,build
@web        default,inspect
gid:50      gc
user:mallory none
*           connect
` + key(t, 0).Public().String() + " import\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		who  archive.Person
		want string
	}{
		{"by name", archive.Person{UID: 1000, Name: "alice"}, "all"},
		{"by number", archive.Person{UID: 1001, Name: "bob"}, "connect,add,build"},
		{"by group", archive.Person{UID: 1002, GIDs: []int{7, 8}, Groups: []string{"users", "web"}}, "connect,add,build,root,gc,verify,export,inspect"},
		{"by group's number", archive.Person{UID: 1002, GIDs: []int{7, 50}}, "connect,gc"},
		{"several", archive.Person{UID: 1001, GIDs: []int{50}}, "connect,add,build,gc"},
		{"nothing else", archive.Person{UID: 1003, Name: "mallory"}, "connect"},
		{"a group is no user", archive.Person{UID: 50, Name: "web"}, "connect"},
		{"no name is not the empty name", archive.Person{UID: 2}, "connect"},
	} {
		if got := acl.Rights(c.who); got.String() != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if keys := acl.Keys(archive.Import); len(keys) != 1 || keys[0] != key(t, 0).Public() {
		t.Errorf("keys: %v", keys)
	}
	var none *archive.ACL
	if none.Rights(archive.Person{}) != 0 || len(none.With().Rules()) != 0 {
		t.Error("no list allows something")
	}
}

func TestVerbs(t *testing.T) {
	for text, want := range map[string]archive.Verbs{
		"all": archive.All, "default": archive.Ordinary, "none": 0, "gc,gc,add": archive.GC | archive.Add, "default,gc": archive.Ordinary,
	} {
		v, err := archive.ParseVerbs(text)
		if err != nil || v != want {
			t.Errorf("%s: %s, %v", text, v, err)
		}
		again, err := archive.ParseVerbs(v.String())
		if err != nil || again != v {
			t.Errorf("%s comes back as %s, %v", v, again, err)
		}
		b, _ := json.Marshal(v)
		var j archive.Verbs
		if err := json.Unmarshal(b, &j); err != nil || j != v {
			t.Errorf("%s as JSON is %s, comes back as %s, %v", v, b, j, err)
		}
	}
	for text, want := range map[string]string{
		"biuld": `did you mean "build"?`, "repai": `did you mean "repair"?`, "zap": "there are connect,add,", "rubbish": "there are connect,add,", "": "unknown verb", "gc,": "unknown verb", "gc,none": "stands alone",
	} {
		if _, err := archive.ParseVerbs(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if archive.All.Has(0) {
		t.Error("everybody may do nothing in particular")
	}
	for _, v := range archive.All.Each() {
		if v.Doc() == "" {
			t.Errorf("%s has no doc", v)
		}
	}
}

func TestSubjects(t *testing.T) {
	k := key(t, 0).Public().String()
	for text, want := range map[string]string{
		"*": "*", "@wheel": "group:wheel", "group:wheel": "group:wheel", "user:a.b-c_d$": "user:a.b-c_d$", "uid:0": "uid:0", "gid:4294967295": "gid:4294967295", k: k,
		strings.Replace(k, k[:strings.Index(k, ":")], "user", 1): strings.Replace(k, k[:strings.Index(k, ":")], "user", 1), // a key may have that name
	} {
		s, err := archive.ParseSubject(text)
		if err != nil || s.String() != want {
			t.Errorf("%s: %s, %v", text, s, err)
		}
		if again, err := archive.ParseSubject(s.String()); err != nil || again != s {
			t.Errorf("%s comes back as %v, %v", s, again, err)
		}
	}
	for _, text := range []string{"", "alice", "user:", "@", "uid:x", "uid:-1", "uid:01", "uid:4294967296", "user:a,b", "user:a b", "user:*", "user:" + strings.Repeat("x", 65), "other:x", "user:ä"} {
		if s, err := archive.ParseSubject(text); err == nil {
			t.Errorf("%q is %s", text, s)
		}
	}
}

// TestChangeACL goes through a list's life: what is there stays as it is written.
func TestChangeACL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acl")
	if err := os.WriteFile(path, []byte("# ours\nuser:alice   add,build # dev\n\n@web gc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rule := func(subject, verbs string) archive.Rule {
		s, err := archive.ParseSubject(subject)
		if err != nil {
			t.Fatal(err)
		}
		v, err := archive.ParseVerbs(verbs)
		if err != nil {
			t.Fatal(err)
		}
		return archive.Rule{Subject: s, Verbs: v}
	}
	for _, c := range []struct {
		change, subject, verbs string
		changed                bool
		want                   string
	}{
		{"allow", "user:alice", "build", false, "# ours\nuser:alice   add,build # dev\n\n@web gc\n"},
		{"allow", "user:alice", "build,gc", true, "# ours\nuser:alice   add,build # dev\n\n@web gc\nuser:alice gc\n"},
		{"revoke", "user:alice", "add,gc", true, "# ours\nuser:alice build # dev\n\n@web gc\n"},
		{"revoke", "group:web", "all", true, "# ours\nuser:alice build # dev\n\n"},
		{"revoke", "group:web", "all", false, "# ours\nuser:alice build # dev\n\n"},
		{"revoke", "user:alice", "all", true, "# ours\n\n"},
		{"allow", "*", "build", false, "# ours\n\n"},
		{"allow", "*", "inspect", true, "# ours\n\n* connect,add,build,root,gc,verify,export,inspect\n"},
		{"revoke", "*", "default", true, "# ours\n\n* inspect\n"},
		{"revoke", "*", "all", true, "# ours\n\n* none\n"},
		{"allow", "*", "connect", true, "# ours\n\n* none\n* connect\n"},
		{"revoke", "*", "connect", true, "# ours\n\n* none\n"},
	} {
		change := archive.Allow
		if c.change == "revoke" {
			change = archive.Revoke
		}
		changed, err := change(path, rule(c.subject, c.verbs))
		got, _ := os.ReadFile(path)
		if err != nil || changed != c.changed || string(got) != c.want {
			t.Fatalf("%s %s %s: changed %v, %v\n got %q\nwant %q", c.change, c.subject, c.verbs, changed, err, got, c.want)
		}
	}
	fresh := filepath.Join(t.TempDir(), "acl")
	if changed, err := archive.Revoke(fresh, rule("*", "build")); err != nil || !changed {
		t.Fatal(err)
	}
	acl, err := archive.LoadACL(fresh)
	if want := archive.Ordinary &^ archive.Build; err != nil || acl.Rights(archive.Person{UID: 1}) != want {
		t.Errorf("everybody may %s, want %s, %v", acl.Rights(archive.Person{UID: 1}), want, err)
	}
	if err := os.WriteFile(path, []byte("* nonsense\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Allow(path, rule("user:x", "gc")); err == nil || !strings.Contains(err.Error(), path+": access list: line 1: ") {
		t.Errorf("change of a broken list: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "* nonsense\n" {
		t.Errorf("a broken list became %q", got)
	}
}

func TestACLWith(t *testing.T) {
	acl, err := archive.ParseACL([]byte("user:a gc\n"))
	if err != nil {
		t.Fatal(err)
	}
	more := acl.With(archive.Rule{Subject: archive.Everybody, Verbs: archive.Ordinary})
	if !more.Names(archive.Everybody) || acl.Names(archive.Everybody) {
		t.Error("With changes what it is called on, or nothing")
	}
	if !slices.Equal(more.Rules()[:1], acl.Rules()) {
		t.Error("With loses rules")
	}
}
