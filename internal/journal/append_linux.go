package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// append writes the bytes of a record to where it counts.
func (j *Journal) append(b []byte) error {
	// Each round finds that others have filled a whole generation meanwhile. The bound is for filesystems that do not
	// tell where they have appended.
	for range 100 {
		ok, err := j.writable()
		if err != nil {
			return err
		}
		if !ok {
			if err := j.next(); err != nil {
				return err
			}
			continue
		}
		start, err := j.write(b)
		if err != nil {
			return err
		}
		if start < j.format.FileSize {
			return nil
		}
	}
	return errors.New("others are faster at filling files")
}

// writable says whether there is an open generation that has room and is still in its directory.
func (j *Journal) writable() (bool, error) {
	if j.file == nil {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(j.file.Fd()), &st); err != nil {
		return false, err
	}
	return st.Nlink > 0 && st.Size < j.format.FileSize, nil
}

// write makes one system call of a record, and returns where it begins.
func (j *Journal) write(b []byte) (start int64, err error) {
	fd := int(j.file.Fd())
	n, err := unix.Write(fd, b)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Write(fd, b)
	}
	if err != nil {
		return 0, err
	}
	if n < len(b)-1 { // the last newline may be that of the next record
		return 0, fmt.Errorf("%d of %d bytes written: %w", n, len(b), unix.ENOSPC)
	}
	end, err := unix.Seek(fd, 0, io.SeekCurrent)
	return end - int64(n), err
}

// next opens the last generation, or makes one after it where it is full or there is none.
func (j *Journal) next() error {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
	list, err := j.generations()
	if err != nil {
		return err
	}
	if j.format == nil || len(list) == 0 {
		if j.format, err = j.bounds(true); err != nil {
			return err
		}
	}
	if len(list) == 0 {
		return j.begin(func() error {
			if list, err := j.generations(); err != nil || len(list) > 0 {
				return err
			}
			// The clock tells it from the generations of a journal that was removed.
			return j.create(uint64(max(time.Now().UnixMilli(), 1)))
		})
	}
	return j.goOn(list[len(list)-1])
}

// goOn opens the generation that was the last one when they were listed, or makes one after it where it is full. The file
// stays nil if there is a later one by now: append comes here again.
func (j *Journal) goOn(last uint64) error {
	err := j.open(last, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // taken away by a pruning since it was listed
	}
	if err != nil {
		return err
	}
	if ok, err := j.writable(); err != nil {
		return err
	} else if ok {
		_, err := j.stillLast()
		return err
	}
	// The kernel shows what is appended page by page: the last record may be there in part, and its writer be at the rest.
	// Whoever appends waits for that, and who reads finds it whole when there is a later generation. What follows a full one
	// is no record, and that it could not be written does not matter.
	unix.Write(int(j.file.Fd()), []byte{'\n'})
	return j.create(last + 1)
}

// create makes a generation and removes those that are too old. That it exists already is as good.
func (j *Journal) create(gen uint64) error {
	err := j.open(gen, os.O_CREATE|os.O_EXCL)
	if errors.Is(err, fs.ErrExist) {
		j.file = nil
		return nil
	}
	if err != nil {
		return err
	}
	list, err := j.stillLast()
	if err != nil {
		return err
	}
	for len(list) > j.format.Files {
		if err := os.Remove(j.path(list[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		list = list[1:]
	}
	return nil
}

// stillLast lists the generations, and closes the one that has just been opened if there is a later one: others have filled it
// since, or we or whoever made it were stopped for so long that it had come and gone before. To such a one nobody writes,
// no reader looks for records there, and it goes with the next pruning.
func (j *Journal) stillLast() ([]uint64, error) {
	list, err := j.generations()
	if err == nil && len(list) > 0 && list[len(list)-1] > j.gen {
		j.file.Close()
		j.file = nil
	}
	return list, err
}

func (j *Journal) open(gen uint64, flags int) error {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
	f, err := os.OpenFile(j.path(gen), os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK|flags, 0o600)
	if err != nil {
		return err
	}
	j.file, j.gen = f, gen
	return nil
}
