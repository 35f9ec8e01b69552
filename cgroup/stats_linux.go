package cgroup

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OOMKills returns how many processes of the group were killed for want of memory, by its own limit or that of the host,
// without those of its children. It is 0 where memory is not accounted.
func (g *Group) OOMKills() (uint64, error) {
	if g.none {
		return 0, nil
	}
	if t := g.h.tree("memory"); t != nil && t.v2 && g.parent == "" {
		// In version 2 a group's events are also those of all groups below it.
		if fd, err := t.dir(); err == nil && g.place(t, fd) != g.name {
			n, err := g.ownOOMKills(fd)
			if err != nil {
				return 0, fmt.Errorf("cgroup: count OOM kills: %w", &fs.PathError{Op: "read", Path: path.Join(t.where(), g.name), Err: err})
			}
			return n, nil
		}
	}
	f, err := g.MemoryEvents()
	if err != nil || f == nil {
		return 0, err
	}
	defer f.Close()
	var b [1024]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return 0, fmt.Errorf("cgroup: count OOM kills: %w", err)
	}
	return ParseOOMKills(b[:n]), nil
}

// MemoryEvents opens the file that counts what happened to the group for want of memory: memory.events, or
// memory.oom_control in version 1. It is nil where memory is not accounted. [ParseOOMKills] understands it. In version 2
// it counts what happened to children too; OOMKills tells them apart while the group exists.
func (g *Group) MemoryEvents() (*os.File, error) {
	t := g.h.tree("memory")
	if t == nil || g.none {
		return nil, nil
	}
	dir, err := t.dir()
	if err != nil {
		return nil, nil
	}
	file := g.name + "/memory.events"
	if !t.v2 {
		file = g.name + "/memory.oom_control"
	}
	name := path.Join(t.where(), file)
	fd, err := retryOpen(dir, file, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("cgroup: count OOM kills: %w", &fs.PathError{Op: "open", Path: name, Err: err})
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ParseOOMKills returns how many processes were killed for want of memory, by what [Group.MemoryEvents] contained.
func ParseOOMKills(events []byte) uint64 { return field(events, "oom_kill") }

// field returns the number after a name at the beginning of a line, or 0.
func field(data []byte, name string) uint64 {
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			return n
		}
	}
	return 0
}

// Stats reads what the group uses and has used. It returns an error that matches [fs.ErrNotExist] if there is no such
// group.
func (g *Group) Stats() (*Stats, error) {
	s := &Stats{Time: time.Now()}
	if g.none {
		return s, nil
	}
	if g.h.gone(g.name) {
		return nil, fmt.Errorf("cgroup: statistics of group %q: %w", g.name, fs.ErrNotExist)
	}
	r := statReader{g: g}
	s.CPU, s.Memory, s.PIDs, s.IO = r.cpu(), r.memory(), r.pids(), r.io()
	s.Hugepage, s.Pressure = r.hugepages(), r.pressure()
	if r.err != nil {
		return nil, fmt.Errorf("cgroup: statistics of group %q: %w", g.name, r.err)
	}
	return s, nil
}

// statReader reads files of a group, and keeps the first error that is more than a file that is not there.
type statReader struct {
	g   *Group
	err error
}

// read returns a file of the group in the hierarchy of a controller; "" stands for the v2 hierarchy.
func (r *statReader) read(controller, file string) []byte {
	t := r.g.h.tree(controller)
	if t == nil {
		return nil
	}
	dir, err := t.dir()
	if err != nil {
		return nil
	}
	data, err := readAt(dir, r.g.name+"/"+file)
	// EOPNOTSUPP: there is a file, but not what it would show (pressure, with psi=0).
	if err != nil && err != unix.ENOENT && err != unix.EOPNOTSUPP && r.err == nil {
		r.err = &fs.PathError{Op: "read", Path: path.Join(t.where(), r.g.name, file), Err: err}
	}
	return data
}

// number reads a file of one number; "max", and what v1 has for it, is 0.
func (r *statReader) number(controller, file string) uint64 {
	n, _ := strconv.ParseUint(string(bytes.TrimSpace(r.read(controller, file))), 10, 64)
	if n >= math.MaxInt64-1<<20 { // v1: the largest number of whole pages
		return 0
	}
	return n
}

func (r *statReader) cpu() *CPUStats {
	if r.g.h.legacy("cpuacct") {
		if r.g.h.tree("cpuacct") == nil {
			return nil
		}
		ns := func(file string) time.Duration { return time.Duration(r.number("cpuacct", file)) }
		data := r.read("cpu", "cpu.stat")
		return &CPUStats{
			Usage: ns("cpuacct.usage"), User: ns("cpuacct.usage_user"), System: ns("cpuacct.usage_sys"),
			Periods: field(data, "nr_periods"), Throttled: field(data, "nr_throttled"),
			ThrottledTime: time.Duration(field(data, "throttled_time")),
		}
	}
	// The times are there without the controller, too.
	data := r.read("", "cpu.stat")
	if data == nil {
		return nil
	}
	us := func(name string) time.Duration { return time.Duration(field(data, name)) * time.Microsecond }
	return &CPUStats{
		Usage: us("usage_usec"), User: us("user_usec"), System: us("system_usec"),
		Periods: field(data, "nr_periods"), Throttled: field(data, "nr_throttled"), ThrottledTime: us("throttled_usec"),
	}
}

func (r *statReader) memory() *MemoryStats {
	data := r.read("memory", "memory.stat")
	if data == nil {
		return nil
	}
	if r.g.h.legacy("memory") {
		s := &MemoryStats{
			Usage:    r.number("memory", "memory.usage_in_bytes"),
			MaxUsage: r.number("memory", "memory.max_usage_in_bytes"),
			Limit:    r.number("memory", "memory.limit_in_bytes"),
			Swap:     field(data, "total_swap"),
			Anon:     field(data, "total_rss"), File: field(data, "total_cache"),
			InactiveFile: field(data, "total_inactive_file"), Shmem: field(data, "total_shmem"),
			PageFaults: field(data, "total_pgfault"), MajorFaults: field(data, "total_pgmajfault"),
			LimitHits: r.number("memory", "memory.failcnt") + r.number("memory", "memory.memsw.failcnt"),
			OOMKills:  field(r.read("memory", "memory.oom_control"), "oom_kill"),
		}
		// v1 has a limit of both together.
		if both := r.number("memory", "memory.memsw.limit_in_bytes"); both > 0 && s.Limit > 0 {
			s.SwapLimit = both - min(both, s.Limit)
		}
		return s
	}
	events := r.read("memory", "memory.events")
	return &MemoryStats{
		Usage:    r.number("memory", "memory.current"),
		MaxUsage: r.number("memory", "memory.peak"), // since Linux 5.19
		Limit:    r.number("memory", "memory.max"),
		Swap:     r.number("memory", "memory.swap.current"), SwapLimit: r.number("memory", "memory.swap.max"),
		Anon: field(data, "anon"), File: field(data, "file"), InactiveFile: field(data, "inactive_file"),
		Kernel: field(data, "kernel"), Shmem: field(data, "shmem"),
		PageFaults: field(data, "pgfault"), MajorFaults: field(data, "pgmajfault"),
		LimitHits: field(events, "max"), OOMKills: field(events, "oom_kill"),
	}
}

func (r *statReader) pids() *PIDStats {
	if r.g.h.tree("pids") == nil {
		return nil
	}
	return &PIDStats{
		Current: r.number("pids", "pids.current"), Limit: r.number("pids", "pids.max"),
		// Before Linux 6.11 a refusal counts in the group of who was refused, not in that of the limit.
		LimitHits: field(r.read("pids", "pids.events"), "max") + field(r.read("", leafName+"/pids.events"), "max"),
	}
}

func (r *statReader) hugepages() []HugepageStats {
	if r.g.h.tree("hugetlb") == nil {
		return nil
	}
	sizes, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		return nil
	}
	var list []HugepageStats
	for _, e := range sizes {
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		size := itoa(kb) + "KB"
		switch {
		case kb >= 1<<20:
			size = itoa(kb>>20) + "GB"
		case kb >= 1<<10:
			size = itoa(kb>>10) + "MB"
		}
		at := "hugetlb." + size
		s := HugepageStats{PageSize: size}
		if r.g.h.legacy("hugetlb") {
			s.Usage, s.Limit = r.number("hugetlb", at+".usage_in_bytes"), r.number("hugetlb", at+".limit_in_bytes")
			s.LimitHits = r.number("hugetlb", at+".failcnt")
		} else {
			s.Usage, s.Limit = r.number("hugetlb", at+".current"), r.number("hugetlb", at+".max")
			s.LimitHits = field(r.read("hugetlb", at+".events"), "max")
		}
		list = append(list, s)
	}
	return list
}

func (r *statReader) pressure() *PressureStats {
	var s PressureStats
	any := false
	for file, p := range map[string]*Pressure{"cpu.pressure": &s.CPU, "memory.pressure": &s.Memory, "io.pressure": &s.IO} {
		data := r.read("", file)
		any = any || len(data) > 0
		*p = parsePressure(string(data))
	}
	if !any {
		return nil
	}
	return &s
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same for "full".
func parsePressure(data string) Pressure {
	var p Pressure
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		to := &p.Some
		if f[0] == "full" {
			to = &p.Full
		}
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			n, _ := strconv.ParseFloat(value, 64)
			switch key {
			case "avg10":
				to.Avg10 = n
			case "avg60":
				to.Avg60 = n
			case "avg300":
				to.Avg300 = n
			case "total":
				us, _ := strconv.ParseInt(value, 10, 64)
				to.Total = time.Duration(us) * time.Microsecond
			}
		}
	}
	return p
}

func (r *statReader) io() []IOStats {
	var list []IOStats
	device := func(number string) *IOStats {
		major, minor, ok := strings.Cut(number, ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		if !ok || err1 != nil || err2 != nil {
			return nil
		}
		i := slices.IndexFunc(list, func(s IOStats) bool { return s.Major == a && s.Minor == b })
		if i < 0 {
			i = len(list)
			list = append(list, IOStats{Major: a, Minor: b})
		}
		return &list[i]
	}
	if !r.g.h.legacy("blkio") {
		// "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6"
		for line := range strings.Lines(string(r.read("io", "io.stat"))) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			s := device(f[0])
			if s == nil {
				continue
			}
			for _, kv := range f[1:] {
				key, value, _ := strings.Cut(kv, "=")
				n, _ := strconv.ParseUint(value, 10, 64)
				switch key {
				case "rbytes":
					s.ReadBytes = n
				case "wbytes":
					s.WriteBytes = n
				case "rios":
					s.Reads = n
				case "wios":
					s.Writes = n
				}
			}
		}
		return list
	}
	// "8:0 Read 1", "8:0 Write 2", ..., "Total 3"
	for _, file := range []string{"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"} {
		count := strings.Contains(file, "serviced")
		for line := range strings.Lines(string(r.read("blkio", file))) {
			f := strings.Fields(line)
			if len(f) != 3 || f[1] != "Read" && f[1] != "Write" {
				continue
			}
			s := device(f[0])
			if s == nil {
				continue
			}
			n, _ := strconv.ParseUint(f[2], 10, 64)
			switch {
			case f[1] == "Read" && count:
				s.Reads = n
			case f[1] == "Read":
				s.ReadBytes = n
			case count:
				s.Writes = n
			default:
				s.WriteBytes = n
			}
		}
	}
	return list
}
