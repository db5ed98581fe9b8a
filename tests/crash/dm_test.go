package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device mapper, as linux/dm-ioctl.h has it, for hosts without dmsetup.
const (
	dmHeader      = 312
	dmCreate      = 3
	dmRemove      = 4
	dmResume      = 6
	dmLoad        = 9
	dmMessage     = 14
	dmNameAt      = 48
	dmDeviceAt    = 40
	dmTargetLen   = 40
	dmTypeAt      = 24
	dmMessageHead = 8
)

// dm does one request; payload follows the header. It returns the number of the device.
func dm(command uintptr, name string, targets uint32, payload []byte) (uint64, error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer control.Close()
	b := make([]byte, dmHeader, dmHeader+len(payload))
	b = append(b, payload...)
	le := binary.LittleEndian
	le.PutUint32(b[0:], 4) // version of the interface
	le.PutUint32(b[12:], uint32(len(b)))
	le.PutUint32(b[16:], dmHeader)
	le.PutUint32(b[20:], targets)
	copy(b[dmNameAt:], name)
	request := uintptr(3<<30 | dmHeader<<16 | 0xfd<<8 | command)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return 0, fmt.Errorf("device mapper: request %d for %s: %w", command, name, errno)
	}
	return le.Uint64(b[dmDeviceAt:]), nil
}

// mapDevice makes a device of one target and returns its name below /dev.
func mapDevice(name string, sectors int64, kind, parameters string) (string, error) {
	device, err := dm(dmCreate, name, 0, nil)
	if err != nil {
		return "", err
	}
	target := make([]byte, dmTargetLen)
	binary.LittleEndian.PutUint64(target[8:], uint64(sectors))
	copy(target[dmTypeAt:], kind)
	target = append(append(target, parameters...), 0)
	for len(target)%8 != 0 {
		target = append(target, 0)
	}
	if _, err := dm(dmLoad, name, 1, target); err != nil {
		return "", errors.Join(err, unmapDevice(name))
	}
	if _, err := dm(dmResume, name, 0, nil); err != nil {
		return "", errors.Join(err, unmapDevice(name))
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(device)), nil
}

func unmapDevice(name string) error {
	_, err := dm(dmRemove, name, 0, nil)
	return err
}

// messageDevice sends a message, words without spaces between them, to the first target of a device.
func messageDevice(name, message string) error {
	_, err := dm(dmMessage, name, 0, append(append(make([]byte, dmMessageHead), message...), 0))
	return err
}

// entry is an entry of a log of dm-log-writes.
type entry struct {
	sector, sectors int64 // of 512 bytes
	flags           uint64
	data            int64  // where the data are in the log, in bytes
	mark            string // of a mark
}

const (
	logMagic   = 0x6a736677736872
	logFlush   = 1 << 0
	logFUA     = 1 << 1
	logDiscard = 1 << 2
	logMark    = 1 << 3

	sectorSize = 512
)

// readLog reads all entries of a log. What completed before a flush began comes before the flush.
func readLog(log io.ReaderAt) ([]entry, error) {
	head := make([]byte, sectorSize)
	if _, err := log.ReadAt(head, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint64(head) != logMagic || le.Uint64(head[8:]) != 1 || le.Uint32(head[24:]) != sectorSize {
		return nil, fmt.Errorf("no log of writes: %x", head[:28])
	}
	var list []entry
	at := int64(sectorSize)
	for range le.Uint64(head[16:]) {
		if _, err := log.ReadAt(head, at); err != nil {
			return nil, err
		}
		at += sectorSize
		e := entry{sector: int64(le.Uint64(head)), sectors: int64(le.Uint64(head[8:])), flags: le.Uint64(head[16:]), data: at}
		if e.flags&logMark != 0 {
			e.mark = string(head[32 : 32+min(le.Uint64(head[24:]), sectorSize-32)])
		}
		if e.flags&logDiscard == 0 {
			at += e.sectors * sectorSize
		}
		list = append(list, e)
	}
	return list, nil
}
