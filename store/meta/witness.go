package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// witnessName is the file that says up to which version all transactions were acknowledged: version u64, CRC-32C u32. It is written before
// each transaction, which also tells whether the file system can be written; it is flushed at most once a second, a second after
// a transaction at the latest, and when the database is closed.
const witnessName = "acknowledged"

// witnessDelay is between a transaction and the flush that makes its acknowledgement durable.
const witnessDelay = time.Second

// readWitness returns 0 for one that says nothing: a power cut may have left a part of the first.
func readWitness(dir string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(dir, witnessName))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(b) != 12 || crc32.Checksum(b[:8], castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return 0, nil
	}
	return binary.LittleEndian.Uint64(b), nil
}

// openWitness opens the file. Without room for it, there is none until there is some.
func (d *DB) openWitness() error {
	f, err := os.OpenFile(filepath.Join(d.dir, witnessName), os.O_CREATE|os.O_WRONLY, 0o600)
	if full(err) {
		return nil
	}
	d.witness = f
	return err
}

// writeWitness writes down what has been acknowledged.
func (d *DB) writeWitness() error {
	b := binary.LittleEndian.AppendUint64(nil, d.acknowledged.Load())
	_, err := d.witness.WriteAt(binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), 0)
	return err
}

// writable reports whether the database's file system takes writes at all. Badger would learn by SIGBUS that it does not, or
// when a row is already in its memory.
func (d *DB) writable() error {
	if d.witness == nil {
		if err := d.openWitness(); err != nil || d.witness == nil {
			return err
		}
	}
	if err := d.writeWitness(); err != nil && !full(err) { // room is another question, which has been asked
		return fmt.Errorf("the database cannot be written: %w; mend the file system, or mount it writable", err)
	}
	return nil
}

// flushWitness makes durable what the witness says, so that the loss even of the last transaction is noticed.
func (d *DB) flushWitness() error {
	if d.witness == nil {
		return nil
	}
	if err := d.writeWitness(); err != nil {
		return err
	}
	for {
		if err := unix.Fdatasync(int(d.witness.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// flushLoop is the goroutine that flushes the witness.
func (d *DB) flushLoop() {
	defer close(d.flushed)
	for range d.committed {
		if d.opts.NoSync {
			continue
		}
		select {
		case <-time.After(witnessDelay):
		case <-d.done:
			return
		}
		if err := d.flushWitness(); err != nil {
			d.opts.Logger.Warn("the last transactions have no witness", "dir", d.dir, "error", err)
		}
	}
}
