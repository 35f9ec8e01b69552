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

// startWrite lets the kernel begin to write; fsync says whether that went well.
func startWrite(fd int) { _ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) }
