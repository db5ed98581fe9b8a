package protocol_test

import (
	"bufio"
	"bytes"
	"io"
	"testing"

	"cairn/archive"
	"cairn/daemon/protocol"
)

func FuzzLimit(f *testing.F) {
	for _, v := range []archive.Verbs{archive.All, archive.Ordinary, archive.Connect, archive.Repair | archive.Pin} {
		var b bytes.Buffer
		if err := protocol.WriteLimit(&b, v); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), uint16(v))
	}
	f.Add([]byte("cxin\x00\x00\x00\x00"), uint16(0))
	f.Add([]byte("mili"), uint16(1))
	f.Fuzz(func(t *testing.T, data []byte, verbs uint16) {
		if most, err := protocol.ReadLimit(bufio.NewReader(bytes.NewReader(data))); err != nil && most != 0 || most&^archive.All != 0 {
			t.Errorf("%q limits to %s, %v", data, most, err)
		}
		v := archive.Verbs(verbs) & archive.All
		var b bytes.Buffer
		if err := protocol.WriteLimit(&b, v); err != nil {
			t.Fatal(err)
		}
		b.WriteString("what follows")
		r := bufio.NewReader(&b)
		most, err := protocol.ReadLimit(r)
		rest, _ := io.ReadAll(r)
		if (err != nil) != (v == 0) || err == nil && (most != v || string(rest) != "what follows") {
			t.Errorf("%s comes back as %s, %v, and %q follows", v, most, err, rest)
		}
	})
}
