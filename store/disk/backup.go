package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cairn/store/failpoint"
	"cairn/store/meta"
)

// backupSuffix ends the names of backups, which begin with their sequence in 20 digits: "00000000000000000007.backup".
const backupSuffix = ".backup"

// BackupOptions say when the database is backed up; the zero value: only when somebody calls Backup.
type BackupOptions struct {
	Interval time.Duration // 0: never
	Keep     int           // how many there are; default 4
}

// Backup is a file from which Rebuild remakes the database.
type Backup struct {
	File string
	meta.BackupHeader
}

func backupDir(l Layout) string { return filepath.Join(l.StateDir, "backups") }

// Backups returns the backups of a store, the newest first. Those that cannot be read are left out.
func Backups(l Layout) ([]Backup, error) {
	entries, err := os.ReadDir(backupDir(l))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var list []Backup
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), backupSuffix) {
			continue
		}
		b := Backup{File: filepath.Join(backupDir(l), e.Name())}
		h, err := readBackupHeader(b.File)
		if err != nil {
			continue
		}
		b.BackupHeader = *h
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b Backup) int { return cmp.Compare(b.Sequence, a.Sequence) })
	return list, nil
}

func readBackupHeader(name string) (*meta.BackupHeader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return meta.ReadBackupHeader(f)
}

// Backup writes a backup of the database, durable when it returns, and deletes old ones. It does nothing, and returns nil, when
// there has been no change since the last one.
func (s *Store) Backup() (*Backup, error) {
	s.backups.Lock()
	defer s.backups.Unlock()
	b, err := s.backup()
	if err != nil {
		return nil, fmt.Errorf("back up: %w", noSpace(err))
	}
	return b, nil
}

func (s *Store) backup() (*Backup, error) {
	if s.isClosed() {
		return nil, ErrClosed
	}
	old, err := Backups(s.layout)
	if err != nil {
		return nil, err
	}
	if len(old) > 0 && old[0].Database == s.db.Name() && old[0].Version == s.db.Version() {
		return nil, nil
	}
	sequence, err := s.db.LastBackup()
	if err != nil {
		return nil, err
	}
	if sequence++; len(old) > 0 {
		sequence = max(sequence, old[0].Sequence+1)
	}
	if err := s.Room(); err != nil {
		return nil, err
	}
	if err := makeDir(backupDir(s.layout), 0o700); err != nil {
		return nil, err
	}
	b, err := s.writeBackup(sequence)
	if err != nil {
		return nil, err
	}
	for _, o := range old[min(len(old), max(0, cmp.Or(s.opts.Backups.Keep, 4)-1)):] {
		if err := os.Remove(o.File); err != nil {
			return nil, err
		}
		failpoint.Hit("disk/backup/deleted")
	}
	return b, nil
}

// writeBackup writes a backup below a temporary name and renames it.
func (s *Store) writeBackup(sequence uint64) (*Backup, error) {
	b := &Backup{File: filepath.Join(backupDir(s.layout), fmt.Sprintf("%020d%s", sequence, backupSuffix))}
	f, err := os.OpenFile(filepath.Join(backupDir(s.layout), "new"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	failpoint.Hit("disk/backup/begun")
	h, err := s.db.Backup(f, sequence)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	b.BackupHeader = *h
	failpoint.Hit("disk/backup/written")
	if err := os.Rename(f.Name(), b.File); err != nil {
		return nil, err
	}
	failpoint.Hit("disk/backup/renamed")
	return b, meta.SyncDir(backupDir(s.layout))
}

// backupLoop is the goroutine that backs the database up when it is time to.
func (s *Store) backupLoop() {
	for {
		timer := time.NewTimer(max(s.untilBackup(), time.Minute))
		select {
		case <-timer.C:
			s.backUpNow()
		case <-s.stop:
			timer.Stop()
			return
		}
	}
}

// untilBackup returns how long it is until the next backup is due.
func (s *Store) untilBackup() time.Duration {
	list, err := Backups(s.layout)
	if err != nil || len(list) == 0 {
		return 0
	}
	age := time.Since(list[0].Created)
	if age < 0 { // the clock was wrong once
		return 0
	}
	return s.opts.Backups.Interval - age
}

// backUpNow makes a backup for nobody who could be told of its error.
func (s *Store) backUpNow() {
	switch b, err := s.Backup(); {
	case err != nil && !errors.Is(err, ErrClosed):
		s.log.Error("no backup of the database could be made", "error", err)
	case b != nil:
		s.log.Info("made a backup of the database", "file", b.File)
	}
}

// checkAge refuses a database that does not know of a backup that was made of it: it has lost its last rows.
func (s *Store) checkAge() error {
	list, err := Backups(s.layout)
	if err != nil || len(list) == 0 || list[0].Database != s.db.Name() {
		return err
	}
	last, err := s.db.LastBackup()
	if err != nil || last >= list[0].Sequence {
		return err
	}
	return fmt.Errorf("%w: it is older than its own backup %s, and would not know the objects that came since", meta.ErrDamaged, list[0].File)
}
