package archive

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// errLzip says that a stream is not of lzip.
var errLzip = errors.New("damaged lzip file")

// lzip reads the members of an lzip file: LZIP, version, dictionary size, LZMA stream with end marker, CRC of the data,
// data size, member size.
type lzip struct {
	r    *counted
	buf  *bufio.Reader
	data *lzma // of the current member; nil between members
	crc  uint32
	size int64
	from int64 // where the member begins
	any  bool  // there was a member
}

// counted counts what a buffered reader read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func newLzip(r io.Reader) *lzip {
	c := &counted{r: r}
	return &lzip{r: c, buf: bufio.NewReader(c)}
}

// at returns how many bytes were used.
func (z *lzip) at() int64 { return z.r.n - int64(z.buf.Buffered()) }

func (z *lzip) Read(p []byte) (int, error) {
	for {
		if z.data == nil {
			if err := z.begin(); err != nil {
				return 0, err
			}
		}
		n, err := z.data.Read(p)
		z.crc = crc32.Update(z.crc, crc32.IEEETable, p[:n])
		z.size += int64(n)
		if n > 0 || err == nil {
			return n, nil
		}
		if err != io.EOF {
			return 0, err
		}
		if err := z.end(); err != nil {
			return 0, err
		}
	}
}

// begin reads a member's header, or returns io.EOF behind the last member.
func (z *lzip) begin() error {
	z.from = z.at()
	if _, err := z.buf.Peek(1); err != nil {
		if err == io.EOF && !z.any {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	var head [6]byte
	if _, err := io.ReadFull(z.buf, head[:]); err != nil {
		return fmt.Errorf("header: %w", io.ErrUnexpectedEOF)
	}
	if string(head[:5]) != "LZIP\x01" {
		return fmt.Errorf("header: %w", errLzip)
	}
	size := uint32(1) << (head[5] & 0x1f)
	size -= size / 16 * uint32(head[5]>>5)
	if head[5]&0x1f < 12 || head[5]&0x1f > 29 {
		return fmt.Errorf("dictionary size: %w", errLzip)
	}
	const properties = (2*5+0)*9 + 3
	data, err := newLZMA(z.buf, properties, size, -1)
	z.data, z.crc, z.size, z.any = data, 0, 0, true
	return err
}

// end checks a member's trailer.
func (z *lzip) end() error {
	var tail [20]byte
	if _, err := io.ReadFull(z.buf, tail[:]); err != nil {
		return fmt.Errorf("trailer: %w", io.ErrUnexpectedEOF)
	}
	if binary.LittleEndian.Uint32(tail[:]) != z.crc ||
		binary.LittleEndian.Uint64(tail[4:]) != uint64(z.size) ||
		binary.LittleEndian.Uint64(tail[12:]) != uint64(z.at()-z.from) {
		return fmt.Errorf("checksum or size: %w", errLzip)
	}
	z.data = nil
	return nil
}

// newLZMAAlone reads the format of ".lzma" files: properties, dictionary size, size or all ones, stream.
func newLZMAAlone(r io.Reader) (io.Reader, error) {
	buf := bufio.NewReader(r)
	var head [13]byte
	if _, err := io.ReadFull(buf, head[:]); err != nil {
		return nil, fmt.Errorf("header: %w", io.ErrUnexpectedEOF)
	}
	size := int64(binary.LittleEndian.Uint64(head[5:]))
	if size < -1 {
		return nil, fmt.Errorf("size: %w", errLZMA)
	}
	return newLZMA(buf, head[0], binary.LittleEndian.Uint32(head[1:]), size)
}
