package logfile

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// smallDisk mounts a filesystem of 1 MB and returns a directory in it, and what fills the disk and makes room again.
func smallDisk(t *testing.T) (dir string, fill, free func()) {
	testutil.RequireRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("coracle-log-test", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	dir = filepath.Join(disk, "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	fill = func() {
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for {
			if _, err := f.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}
	return dir, fill, func() { os.Remove(ballast) }
}

func TestFullDiskDrops(t *testing.T) {
	dir, fill, free := smallDisk(t)
	for _, size := range []int64{0, 8 << 10} { // the new file finds no room either
		os.RemoveAll(filepath.Join(dir, "0"))
		w := newWriter(t, dir, WriterOptions{MaxSize: size})
		r := open(t, dir, nil)
		line := string(bytes.Repeat([]byte("x"), 999)) + "\n"
		var sent uint64
		for range 3 {
			write(t, w, Stdout, line)
			sent++
		}
		fill()
		for n := uint64(0); n < 10; _, n = w.Dropped() {
			write(t, w, Stdout, line)
			sent++
		}
		off, _, err := End(w.f)
		if info, statErr := w.f.Stat(); err != nil || statErr != nil || info.Size() != off {
			t.Errorf("torn: size %v, last whole record ends at %d", info.Size(), off)
		}
		free()
		write(t, w, Stderr, "after\n")
		sent++
		var got, missed uint64
		var notes []Note
		for {
			rec, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			missed += rec.Missed
			if rec.Stream == Notes {
				notes = append(notes, ParseNote(rec.Data))
			} else {
				got++
			}
		}
		if len(notes) != 1 || notes[0].Kind != NoteDropped || notes[0].Reads != sent-got || missed != sent-got || notes[0].Bytes != 1000*(sent-got) || got < 4 {
			t.Errorf("sent %d, got %d, missed %d, notes %+v", sent, got, missed, notes)
		}
		if bytes, reads := w.Dropped(); bytes != 0 || reads != 0 {
			t.Errorf("%d bytes are still to be told", bytes)
		}
		w.Close()
		r.Close()
	}
}

func TestFullDiskBlocks(t *testing.T) {
	dir, fill, free := smallDisk(t)
	w := newWriter(t, dir, WriterOptions{Block: true, Pause: time.Millisecond})
	r := open(t, dir, nil)
	fill()
	const records = 20
	done := make(chan error)
	go func() {
		for range records {
			if err := w.Write(Stdout, make([]byte, 1000)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		t.Fatalf("does not block: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	free()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got, notes := 0, 0
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil || rec.Missed != 0 {
			t.Fatal(rec.Missed, err)
		}
		if rec.Stream == Notes && ParseNote(rec.Data).Kind == NoteBlocked {
			notes++
		} else {
			got++
		}
	}
	if got != records || notes != 1 {
		t.Errorf("%d records, %d notes", got, notes)
	}

	fill()
	go func() {
		for {
			if err := w.Write(Stdout, make([]byte, 1000)); err != nil {
				done <- err
				return
			}
		}
	}()
	time.Sleep(20 * time.Millisecond)
	w.Stop()
	if err := <-done; !full(err) {
		t.Errorf("stopped: %v", err)
	}
}
