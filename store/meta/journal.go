package meta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Badger's journals (NNNNN.mem) hold the newest rows until they are in tables. A journal is 20 bytes of header, all transactions since it was
// begun, one behind the other, and zeros. A transaction is its entries and an entry that ends it, and is there only as a whole. An entry is
//
//	flags u8 (0x40 of a transaction, 0x01 deletes the row, 0x80 ends a transaction)  0x00
//	length of key, length of value, 0: varints
//	key: the row's, and the transaction's version as u64, big-endian, inverted
//	value (of what ends a transaction: its version in digits)
//	CRC-32C of all before, big-endian
//
// For Badger the first entry that is not whole is the end. But a transaction is begun when the one before is on the disk, so a power cut leaves at
// most pieces of one transaction behind the last whole one, in any order, and zeros. Anything else is damage:
//
//   - two versions that are newer than the last whole transaction: the older one was acknowledged;
//   - a transaction, whole or in pieces, that says in its commit row (commitName) that one was acknowledged which is not there,
//     neither before it nor in the tables;
//   - the witness (witness.go) knows a later transaction than there is.
const (
	journalHeader = 20
	journalGlob   = "*.mem"

	entryDelete = 1 << 0
	entryOfTxn  = 1 << 6
	entryEnd    = 1 << 7
)

// endKey is the key of what ends a transaction.
var endKey = []byte("!badger!txn")

// commitName is the setting that each transaction writes: the version of the last one that was acknowledged before it, and the number of
// objects after it. As it is in each, the newest version of all tables is that of the last transaction in them.
const commitName = "commit"

// entry is an entry of a journal.
type entry struct {
	flags      byte
	key, value []byte
	version    uint64
	raw        []byte
}

// parseEntry returns the entry that b begins with, if it is whole.
func parseEntry(b []byte) (e entry, ok bool) {
	if len(b) < 2 || b[0] != entryOfTxn && b[0] != entryOfTxn|entryDelete && b[0] != entryEnd || b[1] != 0 {
		return e, false
	}
	at := 2
	var column [3]uint64
	for i := range column {
		v, n := binary.Uvarint(b[at:])
		if n <= 0 {
			return e, false
		}
		column[i], at = v, at+n
	}
	key, value := column[0], column[1]
	if key < 8 || key > math.MaxUint16 || value > math.MaxInt32 || column[2] != 0 {
		return e, false
	}
	end := uint64(at) + key + value
	if end+crc32.Size > uint64(len(b)) || crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return e, false
	}
	k := b[at : uint64(at)+key]
	version := math.MaxUint64 - binary.BigEndian.Uint64(k[key-8:])
	return entry{flags: b[0], key: k[:key-8], value: b[uint64(at)+key : end], version: version, raw: b[:end+crc32.Size]}, true
}

// ends reports whether an entry ends the transaction of its version.
func (e *entry) ends() bool {
	return e.flags == entryEnd && bytes.Equal(e.key, endKey) && string(e.value) == strconv.FormatUint(e.version, 10)
}

// before returns the version that a commit row says was acknowledged, 0 for other rows.
func (e *entry) before() uint64 {
	if len(e.value) != 16 || e.flags != entryOfTxn || !bytes.Equal(e.key, settingKey(commitName)) {
		return 0
	}
	return binary.LittleEndian.Uint64(e.value)
}

// transaction returns the entries of the transaction that b begins with, if it is whole.
func transaction(b []byte) (list []entry, size int) {
	for {
		e, ok := parseEntry(b[size:])
		if !ok || len(list) > 0 && e.version != list[0].version {
			return nil, 0
		}
		size += len(e.raw)
		if e.flags == entryEnd {
			if !e.ends() {
				return nil, 0
			}
			return list, size
		}
		list = append(list, e)
	}
}

// journals reads what journals say.
type journals struct {
	dir   string
	known uint64 // the version of the last transaction that is there
	end   string // where it ends, for people
	cuts  []cut
}

// cut is a journal, and where its last whole transaction ends.
type cut struct {
	name string
	at   int64
	torn bool // something follows
}

// checkJournals reads the journals of a database whose tables' newest version is known. Damaged ones are an error, and stay as they are.
func checkJournals(dir string, known uint64) (*journals, error) {
	j := &journals{dir: dir, known: known, end: "the tables"}
	for _, name := range journalNames(dir) {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := j.read(name, data); err != nil {
			return nil, err
		}
	}
	w, err := readWitness(dir)
	if err != nil {
		return nil, err
	}
	if w > j.known {
		return nil, fmt.Errorf("%w: transaction %d was acknowledged, but the last one that is there is %d, at the end of %s", ErrDamaged, w, j.known, j.end)
	}
	return j, nil
}

// journalNames returns the journals, the oldest first.
func journalNames(dir string) []string {
	names, _ := filepath.Glob(filepath.Join(dir, journalGlob))
	slices.SortFunc(names, func(a, b string) int { return journalNumber(a) - journalNumber(b) })
	return names
}

func journalNumber(name string) int {
	n, _ := strconv.Atoi(filepath.Base(name)[:len(filepath.Base(name))-len(".mem")])
	return n
}

func (j *journals) read(name string, data []byte) error {
	if len(data) < journalHeader {
		return nil
	}
	if binary.BigEndian.Uint64(data) != 0 { // the number of a key to decrypt it with
		return j.damage(name, 0, "its header is none")
	}
	at := journalHeader
	for {
		list, size := transaction(data[at:])
		if size == 0 {
			break
		}
		for _, e := range list {
			if e.before() > j.known {
				return j.damage(name, at, fmt.Sprintf("transaction %d, which came before, is missing", e.before()))
			}
		}
		if len(list) > 0 {
			j.known = max(j.known, list[0].version)
		}
		at += size
		j.end = fmt.Sprintf("%s, byte %d", filepath.Base(name), at)
	}
	tail := trimZeros(data[at:])
	j.cuts = append(j.cuts, cut{name, int64(at), len(tail) > 0})
	return j.tail(name, tail, at)
}

// tail tells what a power cut may have left behind the last whole transaction from damage.
func (j *journals) tail(name string, tail []byte, end int) error {
	newer := uint64(0)
	for e := range entries(tail) {
		switch {
		case e.before() > j.known:
			return j.damage(name, end, fmt.Sprintf("transaction %d is not whole, but was acknowledged, as a later one says", e.before()))
		case e.version <= j.known: // of a file that the blocks once belonged to
		case newer == 0:
			newer = e.version
		case newer != e.version:
			return j.damage(name, end, fmt.Sprintf("transaction %d is not whole, but %d follows", min(newer, e.version), max(newer, e.version)))
		}
	}
	return nil
}

func (j *journals) damage(name string, at int, why string) error {
	return fmt.Errorf("%w: journal %s, byte %d: %s", ErrDamaged, name, at, why)
}

// entries finds whole entries, wherever they begin.
func entries(b []byte) func(yield func(entry) bool) {
	return func(yield func(entry) bool) {
		for at := 0; at < len(b); {
			e, ok := parseEntry(b[at:])
			if !ok {
				at++
				continue
			}
			if !yield(e) {
				return
			}
			at += len(e.raw)
		}
	}
}

// trimZeros cuts zeros off the end.
func trimZeros(b []byte) []byte {
	for len(b) >= 8 && binary.NativeEndian.Uint64(b[len(b)-8:]) == 0 {
		b = b[:len(b)-8]
	}
	return bytes.TrimRight(b, "\x00")
}

// cutOff ends each journal where its last whole transaction ends, durably, so that pieces of another do not come back after the next power
// cut, behind transactions of the next journal; and frees what had been allocated. It reports whether there were any.
func (j *journals) cutOff() (torn bool, err error) {
	for _, c := range j.cuts {
		torn = torn || c.torn
		if err := cutFile(c); err != nil {
			return torn, err
		}
	}
	return torn, nil
}

func cutFile(c cut) error {
	f, err := os.OpenFile(c.name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(c.at); err != nil {
		return err
	}
	if !c.torn {
		return nil
	}
	return f.Sync()
}

// bytes returns how much is in the journals.
func (j *journals) bytes() (sum int64) {
	for _, c := range j.cuts {
		sum += c.at
	}
	return sum
}
