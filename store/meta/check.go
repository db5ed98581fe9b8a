package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/table"
)

// checkTables reads all tables that the manifest lists, before Badger does: it trusts offsets that it reads, in goroutines
// of its own, whose panics end the process. A database without manifest has no tables. While a database is open, tables that the
// manifest lists may have just been deleted. It returns the newest version that they have.
//
// A table is blocks, index (a flat buffer that says where each block is), length of the index u32, its checksum, length of that u32;
// a block is entries, their offsets, their number u32, checksum, length of that u32. All numbers are big-endian.
func checkTables(dir string, open bool) (newest uint64, err error) {
	listed, err := listTables(dir)
	if err != nil {
		return 0, err
	}
	ids := slices.Collect(maps.Keys(listed))
	versions := make([]uint64, len(ids))
	err = each(len(ids), func() func(int) error {
		var data bytes.Buffer
		return func(i int) (err error) {
			versions[i], err = checkListed(dir, ids[i], open, &data)
			return err
		}
	})
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	return slices.Max(versions), nil
}

// checkListed checks a table that the manifest lists.
func checkListed(dir string, id uint64, open bool, data *bytes.Buffer) (newest uint64, err error) {
	name := table.NewFilename(id, dir)
	newest, err = checkTable(name, data)
	if err != nil && open {
		// A table is first taken out of the manifest, then cut, then removed.
		now, listErr := listTables(dir)
		if listErr != nil {
			return 0, listErr
		}
		if _, still := now[id]; !still {
			return 0, nil
		}
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errTable) {
		return 0, fmt.Errorf("%w: table %s: %w", ErrDamaged, filepath.Base(name), err)
	}
	return newest, err
}

// listTables returns the tables that the manifest lists.
func listTables(dir string) (map[uint64]badger.TableManifest, error) {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, 0, badger.Options{})
	if err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	return manifest.Tables, nil
}

// errTable says that a table's bytes are not those that were written.
var errTable = errors.New("its bytes have changed")

// checkTable reads a table, a few MiB, into data.
func checkTable(name string, data *bytes.Buffer) (newest uint64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data.Reset()
	if _, err := data.ReadFrom(f); err != nil {
		return 0, err
	}
	defer func() {
		if r := recover(); r != nil { // an index with a right checksum and wrong contents
			err = fmt.Errorf("%w: index: %v", errTable, r)
		}
	}()
	body, sum, err := cutChecksum(data.Bytes())
	if err != nil {
		return 0, err
	}
	if len(body) < 4 {
		return 0, errTable
	}
	body, size := body[:len(body)-4], int(binary.BigEndian.Uint32(body[len(body)-4:]))
	if size < 8 || size > len(body) || checksum(body[len(body)-size:]) != sum {
		return 0, fmt.Errorf("%w: index", errTable)
	}
	blocks, index := body[:len(body)-size], fb.GetRootAsTableIndex(body[len(body)-size:], 0)
	var at fb.BlockOffset
	for i := range index.OffsetsLength() {
		if !index.Offsets(&at, i) {
			return 0, errTable
		}
		start, end := uint64(at.Offset()), uint64(at.Offset())+uint64(at.Len())
		if end > uint64(len(blocks)) {
			return 0, fmt.Errorf("%w: offset of block %d", errTable, i)
		}
		block, sum, err := cutChecksum(blocks[start:end])
		if err != nil || checksum(block) != sum {
			return 0, fmt.Errorf("%w: block %d", errTable, i)
		}
	}
	return index.MaxVersion(), nil
}

// cutChecksum splits what ends with a checksum and its length.
func cutChecksum(b []byte) (rest []byte, sum uint64, err error) {
	if len(b) < 4 {
		return nil, 0, errTable
	}
	b, size := b[:len(b)-4], uint64(binary.BigEndian.Uint32(b[len(b)-4:]))
	if size > 16 || size > uint64(len(b)) {
		return nil, 0, errTable
	}
	sum, err = decodeChecksum(b[uint64(len(b))-size:])
	return b[:uint64(len(b))-size], sum, err
}

// decodeChecksum decodes Badger's protobuf message Checksum: 1 is the algorithm, left out when it is 0, CRC-32C; 2 is the sum.
func decodeChecksum(b []byte) (sum uint64, err error) {
	if len(b) == 0 {
		return 0, nil // a sum of 0
	}
	if b[0] != 2<<3 {
		return 0, errTable
	}
	sum, n := binary.Uvarint(b[1:])
	if n != len(b)-1 {
		return 0, errTable
	}
	return sum, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint64 { return uint64(crc32.Checksum(b, castagnoli)) }

// checkCount compares a number of objects with what the last transaction knew. Older databases know none.
func checkCount(txn *badger.Txn, objects int64) error {
	item, err := txn.Get(settingKey(commitName))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return item.Value(func(v []byte) error {
		if len(v) != 16 {
			return errRecord
		}
		if known := int64(binary.LittleEndian.Uint64(v[8:])); known != objects {
			return fmt.Errorf("%w: it has the rows of %d objects, and should have %d", ErrDamaged, objects, known)
		}
		return nil
	})
}
