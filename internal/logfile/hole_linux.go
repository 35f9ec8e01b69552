package logfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// nextData returns where the data at or behind off begins, or off if nobody knows. Nobody else uses the file's position.
func nextData(f *os.File, off int64) int64 {
	at, err := f.Seek(off, unix.SEEK_DATA)
	switch {
	case err == nil:
		return at
	case errors.Is(err, unix.ENXIO): // a hole up to the end
		if end, err := f.Seek(0, unix.SEEK_END); err == nil {
			return max(end, off)
		}
	}
	return off
}
