package protocol

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"cairn/archive"
	"cairn/archive/wire"
)

// limitMagic begins what a client of ours may say before the handshake:
//
//	u64 limitMagic, text verbs
//
// The session may do nothing else, whoever the client is. Who passes a connection on to somebody else says this first.
const limitMagic = 0x63616972_6e6c696d

// maxLimit bounds the text.
const maxLimit = 1 << 10

// WriteLimit writes which rights a session has at most.
func WriteLimit(w io.Writer, most archive.Verbs) error {
	e := wire.NewWriter(w)
	e.Uint64(limitMagic)
	e.String(most.String())
	return e.Flush()
}

// ReadLimit reads which rights the session has at most, if the client says so; none if it does not.
func ReadLimit(r *bufio.Reader) (archive.Verbs, error) {
	head, err := r.Peek(8)
	if err != nil || binary.LittleEndian.Uint64(head) != limitMagic {
		return 0, nil // the handshake will say what is wrong
	}
	d := wire.NewReader(r)
	d.Uint64()
	text, err := d.String(maxLimit)
	if err != nil {
		return 0, fmt.Errorf("read limit of rights: %w", err)
	}
	most, err := archive.ParseVerbs(text)
	if err == nil && most == 0 {
		err = fmt.Errorf("a session without rights is none")
	}
	return most, err
}
