package remote_test

import (
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"cairn/client/peer"
	"cairn/daemon/remote"
)

func files(name string) ([]byte, error) {
	f := map[string]string{
		"/machines": "# ours\nssh://a x86_64-linux,i686-linux /root/key 4 2.5 kvm,big-parallel benchmark # fast\n\n@/more ; c\n",
		"/more":     "ssh-ng://b",
		"/circle":   "@/circle",
	}
	if s, ok := f[name]; ok {
		return []byte(s), nil
	}
	return nil, fs.ErrNotExist
}

func TestParseMachines(t *testing.T) {
	const hostKey = "c3NoLWVkMjU1MTkgQUFBQSBob3N0" // ssh-ed25519 AAAA host
	machine := func(name string, a peer.Address) remote.Machine {
		return remote.Machine{Name: name, Address: a, Systems: []string{"s"}, MaxJobs: 1, Speed: 1}
	}
	a := remote.Machine{
		Name: "ssh://a", Address: peer.Address{Scheme: peer.SSH, Host: "a", Key: "/root/key"}, Systems: []string{"x86_64-linux", "i686-linux"},
		MaxJobs: 4, Speed: 2.5, Features: []string{"kvm", "big-parallel"}, Mandatory: []string{"benchmark"},
	}
	b := machine("ssh-ng://b", peer.Address{Scheme: peer.SSHNG, Host: "b"})
	c := machine("c", peer.Address{Scheme: peer.SSH, Host: "c"})
	for _, x := range []struct {
		text string
		want []remote.Machine
	}{
		{"", nil},
		{" # nobody\n", nil},
		{"@/machines", []remote.Machine{a, b, c}},
		{"@/missing\nc", []remote.Machine{c}},
		{"c;ssh-ng://b", []remote.Machine{c, b}},
		{"c - - - - - -", []remote.Machine{c}},
		{"root@c:22 - - - - - - " + hostKey, []remote.Machine{machine("root@c:22", peer.Address{Scheme: peer.SSH, User: "root", Host: "c", Port: 22, HostKey: "ssh-ed25519 AAAA"})}},
		{"ssh://c?remote-program=x%20y&ssh-key=/k", []remote.Machine{machine("ssh://c?remote-program=x%20y&ssh-key=/k", peer.Address{Scheme: peer.SSH, Host: "c", Program: "x y", Key: "/k"})}},
		{"unix:///s", []remote.Machine{machine("unix:///s", peer.Address{Scheme: peer.Socket, Path: "/s"})}},
	} {
		got, err := remote.ParseMachines(x.text, "s", files)
		if err != nil || !reflect.DeepEqual(got, x.want) {
			t.Errorf("%q: got %+v, %v\nwant %+v", x.text, got, err, x.want)
		}
	}
	for text, want := range map[string]string{
		"c - - x":                  `number of jobs "x" is not between`,
		"c - - -1":                 "number of jobs",
		"c - - 1 0":                `speed factor "0"`,
		"c - - 1 NaN":              "speed factor",
		"c 1 2 3 4 5 6 7 8":        "it has 9 fields",
		"ssh://-oProxyCommand=":    "is not a host name",
		"ftp://c":                  `scheme "ftp"`,
		"c - - - - - - !":          "host key",
		"@/circle":                 "in a circle",
		strings.Repeat("c;", 2000): "more than 1000 machines",
	} {
		if _, err := remote.ParseMachines(text, "s", files); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %q", text, err, want)
		}
	}
}

func FuzzParseMachines(f *testing.F) {
	for _, s := range []string{"@/machines", "a b c 1 2 d e", "root@[::1]:22 - - 1;unix:///s", "ssh://h?compress=1#x", "c - - - - - - c3NoLWVkMjU1MTkgQUFBQSBob3N0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := remote.ParseMachines(text, "s", files)
		if err != nil {
			return
		}
		for _, m := range list {
			if m.MaxJobs < 0 || !(m.Speed > 0) || len(m.Systems) == 0 || strings.HasPrefix(m.Address.Host, "-") || strings.HasPrefix(m.Address.User, "-") {
				t.Errorf("%q gives %+v", text, m)
			}
			again, err := peer.ParseAddress(m.Address.String())
			if err != nil || fmt.Sprint(again) != fmt.Sprint(m.Address) {
				t.Errorf("%q: address %q is read as %+v, %v", text, m.Address, again, err)
			}
		}
	})
}
