package layerfs

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A layer of at most so many files and directories, and bytes, is written out file by file: syncfs would wait for
// whatever others have written to the same filesystem. A larger one takes long itself, and each file then costs more
// than it does in syncfs.
const (
	smallObjects = 32
	smallBytes   = 64 << 20
	syncWorkers  = 8
)

// syncSmall writes out a directory with all below it, of at most about smallObjects files and directories, and the file
// blob, which may be nil.
func syncSmall(at int, name string, blob *os.File) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var collect func(at int, name string, dir bool) error
	collect = func(at int, name string, dir bool) error {
		flags := uint64(unix.O_RDONLY | unix.O_NONBLOCK)
		if dir {
			flags |= unix.O_DIRECTORY
		}
		fd, err := openBeneath(at, name, flags)
		if err != nil {
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		f := os.NewFile(uintptr(fd), name)
		files = append(files, f)
		if !dir {
			startWrite(fd)
			return nil
		}
		ents, err := f.ReadDir(-1)
		if err != nil {
			return err
		}
		for _, e := range ents {
			// What is neither is in its directory.
			if e.IsDir() || e.Type().IsRegular() {
				if err := collect(fd, e.Name(), e.IsDir()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if blob != nil {
		startWrite(int(blob.Fd()))
	}
	if err := collect(at, name, true); err != nil {
		return err
	}
	// All are being written by now. The first fsync commits a journal for all of them; the others find that done, but
	// each still flushes the disk's cache, which the kernel does once for those that come together.
	var wg sync.WaitGroup
	errs := make([]error, syncWorkers+1)
	for w := range syncWorkers {
		wg.Go(func() {
			for i := w; i < len(files) && errs[w] == nil; i += syncWorkers {
				errs[w] = files[i].Sync()
			}
		})
	}
	if blob != nil {
		errs[syncWorkers] = blob.Sync()
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// syncEvery is how many bytes are written before they are on their way to the disk. Without that the disk would have
// nothing to do until a layer is complete, and then everything at once.
const syncEvery = 128 << 20

// A syncer writes out the store's filesystem, for all layers that are being made together: a sync takes whatever has
// been written by anyone, so two at a time are one too many. It works in rounds of one syncfs each.
//
// An error of a write that went wrong is reported by one syncfs only (one for each open file, Linux 5.8), so a round that fails fails every
// layer that was in the making.
type syncer struct {
	fd   int
	mu   sync.Mutex
	cond sync.Cond
	// Guarded by mu.
	running      bool  // a goroutine does rounds
	waiting      bool  // somebody needs another
	written      int64 // bytes since the last round began
	began, ended uint64
	failed       uint64 // rounds
	err          error  // of the last one that failed
}

func newSyncer(fd int) *syncer {
	y := &syncer{fd: fd}
	y.cond.L = &y.mu
	return y
}

// begin is called before anything of a layer is written. Its result is for sync.
func (y *syncer) begin() uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.failed
}

// wrote counts what was written.
func (y *syncer) wrote(n int64) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.written += n
	y.work()
}

// sync returns when all that was written before it was called is on the disk.
func (y *syncer) sync(begin uint64) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	round := y.began + 1
	y.waiting = true
	y.work()
	for y.ended < round {
		y.cond.Wait()
	}
	if y.failed != begin {
		return os.NewSyscallError("syncfs", y.err)
	}
	return nil
}

// work starts the rounds, where there is a reason.
func (y *syncer) work() {
	if y.running || !y.waiting && y.written < syncEvery {
		return
	}
	y.running = true
	go func() {
		y.mu.Lock()
		defer y.mu.Unlock()
		for y.waiting || y.written >= syncEvery {
			y.waiting, y.written = false, 0
			y.began++
			y.mu.Unlock()
			err := unix.Syncfs(y.fd)
			y.mu.Lock()
			if err != nil {
				y.failed++
				y.err = err
			}
			y.ended++
			y.cond.Broadcast()
		}
		y.running = false
		y.cond.Broadcast()
	}()
}

// close waits for the last round, whose result nobody wants any more.
func (y *syncer) close() {
	y.mu.Lock()
	defer y.mu.Unlock()
	for y.running {
		y.cond.Wait()
	}
}

// startWrite lets the kernel begin to write; fsync says whether that went well.
func startWrite(fd int) { _ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) }
