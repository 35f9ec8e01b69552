package cgroup

import (
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deviceFilters are the programs that were loaded, by their instructions: containers have the same rules as a rule.
type deviceFilters struct {
	mu       sync.Mutex
	programs map[string]int
}

// maxFilters bounds the programs that are kept.
const maxFilters = 16

// use calls f with the descriptor of the program.
func (d *deviceFilters) use(program []byte, f func(fd int) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fd, ok := d.programs[string(program)]
	if !ok {
		var err error
		if fd, err = loadDeviceFilter(program); err != nil {
			return err
		}
		if d.programs == nil {
			d.programs = make(map[string]int)
		}
		if len(d.programs) == maxFilters {
			for key, fd := range d.programs { // any one
				unix.Close(fd)
				delete(d.programs, key)
				break
			}
		}
		d.programs[string(program)] = fd
	}
	return f(fd)
}

func (d *deviceFilters) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fd := range d.programs {
		unix.Close(fd)
	}
	d.programs = nil
}

// bpf calls bpf(2). The size is that of the part of union bpf_attr that the command uses.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR, unix.EAGAIN: // the verifier gives way to signals
			continue
		}
		return -1, errno
	}
}

// loadDeviceFilter loads a program. The kernel closes descriptors of programs on exec.
func loadDeviceFilter(program []byte) (int, error) {
	license := []byte("Apache-2.0\x00")
	attr := struct {
		progType, insnCount     uint32
		insns, license          uint64
		logLevel, logSize       uint32
		logBuf                  uint64
		kernVersion, progFlags  uint32
		name                    [16]byte
		ifindex, expectedAttach uint32
	}{
		progType:       unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCount:      uint32(len(program) / 8),
		insns:          uint64(uintptr(unsafe.Pointer(unsafe.SliceData(program)))),
		license:        uint64(uintptr(unsafe.Pointer(unsafe.SliceData(license)))),
		expectedAttach: unix.BPF_CGROUP_DEVICE,
	}
	copy(attr.name[:], "coracle_devices")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	return fd, err
}

// attachDeviceFilter makes the program the only one of the group; those of the groups above are asked as well.
func attachDeviceFilter(dir, program int, replace bool) error {
	attr := struct {
		targetFD, attachFD, attachType, flags, replaceFD uint32
	}{targetFD: uint32(dir), attachFD: uint32(program), attachType: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if replace {
		old, err := deviceFilterOf(dir)
		if err != nil {
			return err
		}
		if old >= 0 {
			defer unix.Close(old)
			attr.flags |= unix.BPF_F_REPLACE
			attr.replaceFD = uint32(old)
		}
	}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err == unix.EEXIST && replace {
		return nil // it is this very program
	}
	return err
}

// deviceFilterOf returns a descriptor of the program of the group, or -1.
func deviceFilterOf(dir int) (int, error) {
	var ids [16]uint32
	query := struct {
		targetFD, attachType, flags, attachFlags uint32
		ids                                      uint64
		count, _                                 uint32
	}{targetFD: uint32(dir), attachType: unix.BPF_CGROUP_DEVICE, count: uint32(len(ids)),
		ids: uint64(uintptr(unsafe.Pointer(&ids)))}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&query), unsafe.Sizeof(query))
	runtime.KeepAlive(&ids)
	if err != nil || query.count == 0 {
		return -1, err
	}
	get := struct{ id, next, flags uint32 }{id: ids[0]}
	return bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&get), unsafe.Sizeof(get))
}
