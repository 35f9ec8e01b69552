package powerloss

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The part of the FUSE protocol that one file of a fixed size needs: include/uapi/linux/fuse.h, version 7.31.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseStatfs      = 17
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseDestroy     = 38
	fuseBatchForget = 42
	fuseFallocate   = 43

	fuseRootID = 1
	fuseDiskID = 2

	fuseFlagAsyncRead = 1 << 0
	fuseFlagBigWrites = 1 << 5
	fuseFlagMaxPages  = 1 << 22
	fuseOpenDirectIO  = 1 << 0

	fuseMaxWrite = 1 << 20
)

// fuseHeader is fuse_in_header.
type fuseHeader struct {
	Len, Opcode    uint32
	Unique, NodeID uint64
	UID, GID, PID  uint32
	_              uint32
}

type fuseAttr struct {
	Ino, Size, Blocks                    uint64
	Atime, Mtime, Ctime                  uint64
	AtimeNsec, MtimeNsec, CtimeNsec      uint32
	Mode, Nlink, UID, GID, Rdev, BlkSize uint32
	Flags                                uint32
}

// backend is the disk. Its methods are called one at a time.
type backend interface {
	size() int64
	read(p []byte, off int64)
	write(p []byte, off int64) error
	zero(off, n int64) error
	flush() error
}

// serveFUSE answers the kernel on an open /dev/fuse until the filesystem is unmounted.
func serveFUSE(fd int, name string, disk backend) error {
	buf := make([]byte, fuseMaxWrite+4096)
	for {
		n, err := unix.Read(fd, buf)
		switch err {
		case nil:
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: an interrupted request was taken back
			continue
		case unix.ENODEV:
			return nil
		default:
			return fmt.Errorf("read /dev/fuse: %w", err)
		}
		var h fuseHeader
		if _, err := binary.Decode(buf[:n], binary.NativeEndian, &h); err != nil {
			return fmt.Errorf("FUSE request of %d bytes: %w", n, err)
		}
		reply, err := answer(&h, buf[binary.Size(h):n], name, disk)
		if err == errNoReply {
			continue
		}
		var errno unix.Errno
		if err != nil && !errors.As(err, &errno) {
			return err
		}
		if err := respond(fd, h.Unique, errno, reply); err != nil {
			return err
		}
	}
}

var errNoReply = errors.New("no reply")

func respond(fd int, unique uint64, errno unix.Errno, reply []byte) error {
	head := make([]byte, 16, 16+len(reply))
	binary.NativeEndian.PutUint32(head, uint32(16+len(reply)))
	binary.NativeEndian.PutUint32(head[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(head[8:], unique)
	_, err := unix.Write(fd, append(head, reply...))
	if err == unix.ENOENT { // interrupted meanwhile
		err = nil
	}
	if err != nil {
		return fmt.Errorf("write /dev/fuse: %w", err)
	}
	return nil
}

func answer(h *fuseHeader, body []byte, name string, disk backend) ([]byte, error) {
	word := func(at int) int64 { return int64(binary.NativeEndian.Uint64(body[at:])) }
	switch h.Opcode {
	case fuseInit:
		return encode(struct {
			Major, Minor, MaxReadahead, Flags uint32
			MaxBackground, Congestion         uint16
			MaxWrite, TimeGran                uint32
			MaxPages, MapAlignment            uint16
			Flags2                            uint32
			Unused                            [7]uint32
		}{Major: 7, Minor: 31, Flags: fuseFlagAsyncRead | fuseFlagBigWrites | fuseFlagMaxPages,
			MaxBackground: 64, Congestion: 48, MaxWrite: fuseMaxWrite, TimeGran: 1, MaxPages: fuseMaxWrite / 4096}), nil
	case fuseLookup:
		if h.NodeID != fuseRootID || string(bytes.TrimRight(body, "\x00")) != name {
			return nil, unix.ENOENT
		}
		return encode(struct {
			NodeID, Generation, EntryValid, AttrValid uint64
			EntryValidNsec, AttrValidNsec             uint32
			Attr                                      fuseAttr
		}{NodeID: fuseDiskID, EntryValid: 1 << 30, AttrValid: 1 << 30, Attr: attrOf(fuseDiskID, disk)}), nil
	case fuseGetattr:
		return encode(struct {
			Valid     uint64
			ValidNsec uint32
			Dummy     uint32
			Attr      fuseAttr
		}{Valid: 1 << 30, Attr: attrOf(h.NodeID, disk)}), nil
	case fuseOpen:
		if h.NodeID != fuseDiskID {
			return nil, unix.EISDIR
		}
		// Without the page cache every write of the loop driver arrives here, in its size and before it is confirmed.
		return encode(struct {
			FH           uint64
			Flags, Unset uint32
		}{Flags: fuseOpenDirectIO}), nil
	case fuseRead:
		off, n := word(8), int64(binary.NativeEndian.Uint32(body[16:]))
		n = max(0, min(n, disk.size()-off))
		p := make([]byte, n)
		disk.read(p, off)
		return p, nil
	case fuseWrite:
		off, data := word(8), body[40:]
		if off+int64(len(data)) > disk.size() {
			return nil, unix.ENOSPC
		}
		if err := disk.write(data, off); err != nil {
			return nil, err
		}
		return encode(struct{ Size, Unset uint32 }{Size: uint32(len(data))}), nil
	case fuseFallocate: // discard and write-zeroes of the loop driver
		off, n, mode := word(8), word(16), binary.NativeEndian.Uint32(body[24:])
		if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 || off+n > disk.size() {
			return nil, unix.EOPNOTSUPP
		}
		return nil, disk.zero(off, n)
	case fuseFsync:
		return nil, disk.flush()
	case fuseStatfs:
		return encode(struct {
			Blocks, Free, Avail, Files, FilesFree uint64
			BSize, NameLen, FrSize, Unset         uint32
			Spare                                 [6]uint32
		}{Blocks: uint64(disk.size() / 4096), Files: 1, BSize: 4096, NameLen: 255, FrSize: 4096}), nil
	case fuseFlush, fuseRelease:
		return nil, nil
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return nil, errNoReply
	case fuseDestroy:
		return nil, nil
	}
	return nil, unix.ENOSYS
}

func attrOf(node uint64, disk backend) fuseAttr {
	a := fuseAttr{Ino: node, Nlink: 2, Mode: unix.S_IFDIR | 0o700, BlkSize: 4096}
	if node == fuseDiskID {
		a.Nlink, a.Mode = 1, unix.S_IFREG|0o600
		a.Size, a.Blocks = uint64(disk.size()), uint64(disk.size()/512)
	}
	return a
}

func encode(v any) []byte {
	b, err := binary.Append(nil, binary.NativeEndian, v)
	if err != nil {
		panic(err) // a struct above has no fixed size
	}
	return b
}
