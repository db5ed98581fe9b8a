package disk_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"cairn/store/disk"
)

// TestScrub reads slowly, is stopped in the middle, goes on, and finds a damaged object, which is then repaired.
func TestScrub(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	paths := addTwins(t, s, 4)
	size := s.Size(nil)
	closeStore(t, s)
	damage(t, filepath.Join(l.RealPath(paths[2]), "dir", "own")) // equal files of others are one with it
	const every = 30 * time.Minute                               // not days: Badger looks around twenty times in each second of the test's clock
	opts := &disk.Options{Scrub: disk.ScrubOptions{Interval: every, Rate: size / 400}}
	synctest.Test(t, func(t *testing.T) {
		start := func() *disk.Store {
			s, err := disk.Open(t.Context(), l, opts)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := start()
		if st := s.Scrub(); st.Running || st.Finished.IsZero() || st.Paths != 0 {
			t.Errorf("a new store's scrub: %+v", st)
		}
		time.Sleep(every + 250*time.Second)
		half := s.Scrub()
		if half.Paths < 1 || half.Paths > 3 || !half.Finished.IsZero() || !half.Running || half.LeftPaths != 4-half.Paths || half.LeftBytes <= 0 || half.Speed <= 0 {
			t.Errorf("in the middle: %+v", half)
		}
		s.Close()
		s = start()
		time.Sleep(350 * time.Second)
		st := s.Scrub()
		if st.Paths != 4 || st.Finished.IsZero() || !st.Began.Equal(half.Began) {
			t.Errorf("at the end: %+v", st)
		}
		if len(st.Findings) != 1 || st.Findings[0].Path != paths[2] || st.Findings[0].Kind != disk.Modified {
			t.Fatalf("findings %+v", st.Findings)
		}
		s.Close()
		s = start()
		if st := s.Scrub(); len(st.Findings) != 1 {
			t.Errorf("findings after a restart: %+v", st.Findings)
		}
		if err := s.Replace(t.Context(), paths[2], bytes.NewReader(twins(t, "twin2"))); err != nil {
			t.Error(err)
		}
		if st := s.Scrub(); len(st.Findings) != 0 {
			t.Errorf("findings after a repair: %+v", st.Findings)
		}
		time.Sleep(every + every/2)
		if st := s.Scrub(); st.Paths != 4 || st.Finished.IsZero() || !st.Began.After(half.Began) || len(st.Findings) != 0 {
			t.Errorf("the next one: %+v", st)
		}
		s.Close()
	})
	if err := os.WriteFile(filepath.Join(l.StateDir, "scrub.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), l, opts)
	if err != nil {
		t.Fatalf("a damaged state: %v", err)
	}
	closeStore(t, s)
}

// TestScrubByHand starts, pauses, resumes and waits for scrubs of a store that begins none by itself.
func TestScrubByHand(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	addTwins(t, s, 4)
	size := s.Size(nil)
	closeStore(t, s)
	opts := &disk.Options{Scrub: disk.ScrubOptions{Rate: size / 400}}
	synctest.Test(t, func(t *testing.T) {
		var s *disk.Store
		start := func() {
			var err error
			if s, err = disk.Open(t.Context(), l, opts); err != nil {
				t.Fatal(err)
			}
		}
		do := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		start()
		time.Sleep(time.Hour)
		if st := s.Scrub(); st.Running || st.Paths != 0 || st.Finished.IsZero() {
			t.Errorf("nobody has started it: %+v", st)
		}
		do(s.WaitScrub(t.Context()))
		do(s.PauseScrub())
		do(s.StartScrub())
		time.Sleep(150 * time.Second)
		half := s.Scrub()
		if !half.Running || half.Paths < 1 || half.Paths > 2 {
			t.Errorf("when it runs: %+v", half)
		}
		do(s.PauseScrub())
		if st := s.Scrub(); st.Running || !st.Paused || st.Paths != half.Paths {
			t.Errorf("when it is paused: %+v", st)
		}
		s.Close()
		start()
		time.Sleep(time.Hour)
		if st := s.Scrub(); st.Running || !st.Paused || st.Paths != half.Paths {
			t.Errorf("paused, after a restart: %+v", st)
		}
		do(s.ResumeScrub())
		s.Close()
		start()
		do(s.WaitScrub(t.Context()))
		if st := s.Scrub(); st.Running || st.Finished.IsZero() || st.Paths != 4 || st.LeftPaths != 0 || !st.Began.Equal(half.Began) {
			t.Errorf("at the end: %+v", st)
		}
		time.Sleep(time.Hour)
		if st := s.Scrub(); st.Running || !st.Began.Equal(half.Began) {
			t.Errorf("long afterwards: %+v", st)
		}
		s.Close()
	})
}
