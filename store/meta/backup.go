package meta

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"

	"cairn/archive"
	"cairn/store"
)

// ErrBackup says that a backup is damaged, or none.
var ErrBackup = errors.New("backup is damaged")

const (
	backupMagic = "cairn backup 1\n"
	maxHeader   = 8 << 10
	maxRow      = 64 << 20 // of the value of a row in a backup
)

// kept are the tables that backups have; the others follow from them, settings are the database's own.
var kept = []byte{tableObjects, tableRealisations, tableOutputs, tableLeases}

// BackupHeader says what a backup is of.
type BackupHeader struct {
	Dir      store.Dir
	Database [16]byte // the name that the database has been given when it was made, a random one
	Sequence uint64   // grows with each backup of a store
	Version  uint64   // of the database; it has another one after each change
	Created  time.Time
}

func (h *BackupHeader) encode() []byte {
	b, _ := appendString(nil, string(h.Dir))
	b = append(b, h.Database[:]...)
	b = binary.LittleEndian.AppendUint64(b, h.Sequence)
	b = binary.LittleEndian.AppendUint64(b, h.Version)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Created.Unix()))
	head := append([]byte(backupMagic), binary.LittleEndian.AppendUint16(nil, uint16(len(b)))...)
	return binary.LittleEndian.AppendUint32(append(head, b...), crc32.Checksum(b, castagnoli))
}

// ReadBackupHeader reads what a backup begins with, and no more.
func ReadBackupHeader(r io.Reader) (*BackupHeader, error) {
	h, _, err := readHeader(r)
	return h, err
}

// readHeader also returns the bytes that it read.
func readHeader(r io.Reader) (*BackupHeader, []byte, error) {
	head := make([]byte, len(backupMagic)+2)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(backupMagic)]) != backupMagic {
		return nil, nil, fmt.Errorf("%w: it does not begin like one", ErrBackup)
	}
	size := int(binary.LittleEndian.Uint16(head[len(backupMagic):]))
	if size > maxHeader {
		return nil, nil, fmt.Errorf("%w: header of %d bytes", ErrBackup, size)
	}
	rest := make([]byte, size+4)
	if _, err := io.ReadFull(r, rest); err != nil {
		return nil, nil, fmt.Errorf("%w: header: %w", ErrBackup, err)
	}
	b := rest[:size]
	if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(rest[size:]) {
		return nil, nil, fmt.Errorf("%w: checksum of its header", ErrBackup)
	}
	col := reader{b: b}
	dir, err := store.ParseDir(col.string())
	h := &BackupHeader{Dir: dir, Database: [16]byte(col.bytes(16)), Sequence: col.u64(), Version: col.u64()}
	h.Created = time.Unix(int64(col.u64()), 0)
	if end := col.end(); err != nil || end != nil {
		return nil, nil, fmt.Errorf("%w: header", ErrBackup)
	}
	return h, append(head, rest...), nil
}

// Backup writes all that a database cannot be remade without to w, as it is at one moment. The sequence must be greater than that
// of every backup before; the database remembers it.
//
// # Format
//
//	"cairn backup 1\n"  header: u16 length, bytes, CRC-32C u32  zstd frame  SHA-256 of all before
//
// The header is logical store directory, name of the database [16], sequence u64, version u64, Unix seconds i64. The frame has rows
// of the tables 0x02, 0x03, 0x05 and 0x07 in order of their keys, each as key: u16 length, bytes, record: u32 length, bytes; then an
// empty key and the number of rows u64.
func (d *DB) Backup(w io.Writer, sequence uint64) (*BackupHeader, error) {
	if _, err := checkTables(d.dir, true); err != nil { // a scan would end early, and what it has not seen would be lost
		return nil, fmt.Errorf("back up database: %w", err)
	}
	var b Batch
	b.put(settingKey("backup"), binary.LittleEndian.AppendUint64(nil, sequence))
	if err := d.Commit(&b); err != nil {
		return nil, fmt.Errorf("back up database: %w", err)
	}
	h := &BackupHeader{Dir: d.store, Database: d.name, Sequence: sequence, Created: time.Now()}
	err := d.view(func(txn *badger.Txn) error {
		h.Version = txn.ReadTs()
		return writeBackup(w, h, txn)
	})
	if err != nil {
		return nil, fmt.Errorf("back up database: %w", err)
	}
	return h, nil
}

func writeBackup(w io.Writer, h *BackupHeader, txn *badger.Txn) error {
	sum := sha256.New()
	file := io.MultiWriter(w, sum)
	if _, err := file.Write(h.encode()); err != nil {
		return err
	}
	frame, err := archive.NewCompressor(file, archive.Zstd)
	if err != nil {
		return err
	}
	buffer := bufio.NewWriterSize(frame, 64<<10)
	if err = writeRows(buffer, txn); err == nil {
		err = buffer.Flush()
	}
	if err := errors.Join(err, frame.Close()); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

func writeRows(w *bufio.Writer, txn *badger.Txn) (err error) {
	var head []byte
	rows := uint64(0)
	for _, t := range kept {
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: false, Prefix: []byte{t}})
		for it.Rewind(); it.ValidForPrefix([]byte{t}) && err == nil; it.Next() {
			item := it.Item()
			err = item.Value(func(v []byte) error {
				head = binary.LittleEndian.AppendUint16(head[:0], uint16(len(item.Key())))
				head = append(head, item.Key()...)
				head = binary.LittleEndian.AppendUint32(head, uint32(len(v)))
				w.Write(head)
				_, err := w.Write(v)
				return err
			})
			rows++
		}
		it.Close()
		if t == tableObjects && err == nil {
			err = checkCount(txn, int64(rows)) // which come first
		}
		if err != nil {
			return err
		}
	}
	w.Write(make([]byte, 2))
	_, err = w.Write(binary.LittleEndian.AppendUint64(nil, rows))
	return err
}

// Copy copies the database in the directory from, which nobody has open, to the directory to.
func Copy(to, from string) error {
	entries, err := os.ReadDir(from)
	if err == nil {
		err = os.MkdirAll(to, 0o700)
	}
	for _, e := range entries {
		if err == nil && e.Type().IsRegular() && e.Name() != ballastName {
			err = copyFile(filepath.Join(to, e.Name()), filepath.Join(from, e.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("copy database: %w", err)
	}
	return nil
}

// copyFile leaves holes where there are zeros: journals are mostly that.
func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	size := int64(0)
	for block := make([]byte, 64<<10); err == nil; {
		var n int
		if n, err = io.ReadFull(r, block); len(trimZeros(block[:n])) > 0 {
			if _, err := w.WriteAt(block[:n], size); err != nil {
				return errors.Join(err, w.Close())
			}
		}
		size += int64(n)
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = w.Truncate(size)
	}
	return errors.Join(err, w.Close())
}

// Version changes with each change of the database.
func (d *DB) Version() uint64 { return d.badger.MaxVersion() }

// Name returns the name that a database has been given when it was made, a random one.
func (d *DB) Name() [16]byte { return d.name }

// LastBackup returns the sequence of the last backup that was begun, or 0.
func (d *DB) LastBackup() (uint64, error) {
	v, err := d.get(settingKey("backup"))
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err == nil && len(v) != 8 {
		err = errRecord
	}
	if err != nil {
		return 0, fmt.Errorf("read number of the last backup: %w", err)
	}
	return binary.LittleEndian.Uint64(v), nil
}

// readName reads the name of the database, or gives it one.
func (d *DB) readName() error {
	v, err := d.get(settingKey("name"))
	if errors.Is(err, ErrNotFound) {
		v = make([]byte, len(d.name))
		rand.Read(v)
		err = d.transact(func(txn *badger.Txn, _ *int64) error { return txn.Set(settingKey("name"), v) })
	}
	if err == nil && len(v) != len(d.name) {
		err = errRecord
	}
	copy(d.name[:], v)
	return err
}

// Rows is who takes the rows of a backup, in the order of the fields. They are only lent. Functions may be nil.
type Rows struct {
	Object      func(Digest, *Object) error
	Realisation func(*store.Realisation) error
	Output      func(drv Digest, o *Output) error
	Lease       func(*Lease) error
}

// ReadBackup checks a backup as a whole, and only then gives its rows to rows.
func ReadBackup(f io.ReadSeeker, rows *Rows) (*BackupHeader, error) {
	var h *BackupHeader
	for _, take := range []*Rows{{}, rows} {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		var err error
		if h, err = readBackup(bufio.NewReaderSize(f, 64<<10), take); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func readBackup(r io.Reader, rows *Rows) (*BackupHeader, error) {
	h, head, err := readHeader(r)
	if err != nil {
		return nil, err
	}
	body := &hashed{r: r, sum: sha256.New()}
	body.sum.Write(head)
	frame, err := archive.NewDecompressor(body, archive.Zstd)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	defer frame.Close()
	plain := bufio.NewReaderSize(frame, 64<<10)
	if err := readRows(plain, h.Dir, rows); err != nil {
		return nil, err
	}
	if _, err := plain.ReadByte(); err != io.EOF {
		return nil, fmt.Errorf("%w: something follows its rows", ErrBackup)
	}
	if !body.whole() {
		return nil, fmt.Errorf("%w: checksum", ErrBackup)
	}
	return h, nil
}

// hashed reads all but the last 32 bytes of a stream and hashes what it reads.
type hashed struct {
	r    io.Reader
	sum  hash.Hash
	held []byte
	end  bool
}

func (h *hashed) Read(p []byte) (int, error) {
	for !h.end && len(h.held) <= sha256.Size {
		b := make([]byte, 64<<10)
		n, err := h.r.Read(b)
		h.held = append(h.held, b[:n]...)
		if err == io.EOF {
			h.end = true
		} else if err != nil {
			return 0, err
		}
	}
	n := copy(p, h.held[:max(0, len(h.held)-sha256.Size)])
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	h.sum.Write(p[:n])
	h.held = h.held[n:]
	return n, nil
}

// whole reports, at the end, whether the last bytes are the hash of the others.
func (h *hashed) whole() bool {
	io.Copy(io.Discard, h)
	return bytes.Equal(h.held, h.sum.Sum(nil))
}

func readRows(r *bufio.Reader, dir store.Dir, rows *Rows) error {
	var last []byte
	for n := uint64(0); ; n++ {
		key, value, err := readRow(r)
		if err != nil {
			return fmt.Errorf("%w: row %d: %w", ErrBackup, n, noEOF(err))
		}
		if key == nil {
			var count [8]byte
			if _, err := io.ReadFull(r, count[:]); err != nil || binary.LittleEndian.Uint64(count[:]) != n {
				return fmt.Errorf("%w: number of its rows", ErrBackup)
			}
			return nil
		}
		if bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("%w: order of its rows", ErrBackup)
		}
		last = key
		bad, err := rows.take(dir, key, value)
		if bad {
			err = fmt.Errorf("%w: row %d: %w", ErrBackup, n, err)
		}
		if err != nil {
			return err
		}
	}
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readRow returns no key at the end.
func readRow(r *bufio.Reader) (key, value []byte, err error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:2]); err != nil {
		return nil, nil, err
	}
	size := binary.LittleEndian.Uint16(n[:2])
	if size == 0 {
		return nil, nil, nil
	}
	key = make([]byte, size)
	if _, err := io.ReadFull(r, key); err != nil {
		return nil, nil, err
	}
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, nil, err
	}
	long := binary.LittleEndian.Uint32(n[:])
	if long > maxRow {
		return nil, nil, fmt.Errorf("record of %d bytes", long)
	}
	var b bytes.Buffer // grows with what is there, whatever the length says
	if _, err := io.CopyN(&b, r, int64(long)); err != nil {
		return nil, nil, err
	}
	return key, b.Bytes(), nil
}

// take gives a row to who wants it; bad says that the row is none.
func (t *Rows) take(dir store.Dir, key, value []byte) (bad bool, err error) {
	rest := key[1:]
	switch key[0] {
	case tableObjects:
		var o Object
		if err := decodeObject(dir, value, &o); err != nil || len(rest) != len(Digest{}) {
			return true, errRecord
		}
		return false, give(t.Object != nil, func() error { return t.Object(Digest(rest), &o) })
	case tableRealisations:
		if len(rest) < 32 {
			return true, errRecord
		}
		r, err := decodeRealisation(dir, store.DrvOutput{Drv: store.NewHash(store.SHA256, rest[:32]), Output: string(rest[32:])}, value)
		if err != nil {
			return true, err
		}
		return false, give(t.Realisation != nil, func() error { return t.Realisation(r) })
	case tableOutputs:
		if len(rest) < len(Digest{}) {
			return true, errRecord
		}
		o, err := decodeOutput(dir, string(rest[len(Digest{}):]), value)
		if err != nil {
			return true, err
		}
		return false, give(t.Output != nil, func() error { return t.Output(Digest(rest[:len(Digest{})]), &o) })
	case tableLeases:
		l, err := decodeLease(dir, string(rest), value)
		if err != nil {
			return true, err
		}
		return false, give(t.Lease != nil, func() error { return t.Lease(l) })
	}
	return true, errRecord
}

func give(wanted bool, fn func() error) error {
	if !wanted {
		return nil
	}
	return fn()
}
