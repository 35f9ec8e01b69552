package nsexec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// kept is a detached container with a log, whose files are in dir.
type kept struct {
	dir       string
	d         *Detached
	keeper    int // pidfd
	pid       int
	keeperPID int
}

type keptOptions struct {
	dir      string // of the log and the record; empty means a new one
	maxSize  int64
	maxFiles int
	block    bool
	stdin    bool // a FIFO
	change   func(*specs.Spec)
	hold     bool // do not let it go
	note     *os.File
}

func startKept(t testing.TB, l *Launcher, o keptOptions, args ...string) *kept {
	t.Helper()
	k := &kept{dir: o.dir}
	if k.dir == "" {
		k.dir = t.TempDir()
	}
	open := func(name string, flags int) *os.File {
		f, err := os.OpenFile(filepath.Join(k.dir, name), flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return r, w
	}
	check(t, os.MkdirAll(filepath.Join(k.dir, "log"), 0o700))
	record := open("keeper", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	check(t, PrepareRecord(record))
	out, stdout := pipe()
	errs, stderr := pipe()
	log := &Log{
		Dir: open("log", os.O_RDONLY), File: open("log/0", os.O_WRONLY|os.O_CREATE|os.O_TRUNC), Sequence: 1<<40 | 1,
		MaxSize: o.maxSize, MaxFiles: o.maxFiles, Block: o.block, Stdout: out, Stderr: errs,
	}
	opts := &Options{Log: log, Keeper: &Keeper{Record: record, Note: o.note}}
	stdio := &Stdio{Stdout: stdout, Stderr: stderr}
	s := newSpec(newRoot(t), args...)
	if o.change != nil {
		o.change(s)
	}
	if o.stdin {
		for _, name := range []string{"stdin", "control"} {
			check(t, unix.Mkfifo(filepath.Join(k.dir, name), 0o600))
		}
		opts.Input = &Input{Control: open("control", os.O_RDWR), Stdin: open("stdin", os.O_RDWR)}
		if !s.Process.Terminal {
			stdio.Stdin, opts.Input.Pipe = pipe()
		}
	}
	if s.Process.Terminal {
		log.Stdout, log.Stderr, stdio.Stdout, stdio.Stderr = nil, nil, nil, nil
	}
	prog, err := Compile(s, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	k.d, err = l.StartDetached(t.Context(), prog, stdio)
	for _, f := range []*os.File{out, errs, stdout, stderr, stdio.Stdin} {
		if f != nil {
			f.Close()
		}
	}
	if opts.Input != nil {
		opts.Input.Control.Close()
		opts.Input.Stdin.Close()
		if opts.Input.Pipe != nil {
			opts.Input.Pipe.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	k.pid, k.keeperPID = k.d.PID(), k.d.KeeperPID()
	k.keeper, err = unix.PidfdOpen(k.keeperPID, 0)
	if err != nil {
		t.Fatalf("keeper %d: %v", k.keeperPID, err)
	}
	t.Cleanup(func() {
		unix.PidfdSendSignal(k.keeper, unix.SIGKILL, nil, 0)
		k.ended(t)
		unix.Close(k.keeper)
	})
	if !o.hold {
		check(t, k.d.Release())
	}
	return k
}

// ended waits for the keeper's end.
func (k *kept) ended(t testing.TB) {
	t.Helper()
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(k.keeper), Events: unix.POLLIN}}, 60_000)
	}
	if err != nil || n != 1 {
		t.Fatalf("the keeper did not end: %v", err)
	}
}

// record waits for the end and returns what the keeper left.
func (k *kept) record(t testing.TB) Record {
	t.Helper()
	k.ended(t)
	f, err := os.Open(filepath.Join(k.dir, "keeper"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := ReadRecord(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type logRecord struct {
	stream  byte
	seq     uint64
	time    time.Time
	payload []byte
}

// log reads a file of the log strictly, but for the record that a keeper may be writing.
func (k *kept) log(t testing.TB, name string) (list []logRecord) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.dir, "log", name))
	if err != nil {
		t.Fatal(err)
	}
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(k.keeper), Events: unix.POLLIN}}, 0)
	running := n == 0
	for at := 0; at < len(b); {
		if running && (len(b)-at < logHeaderSize || len(b)-at-logHeaderSize < int(binary.LittleEndian.Uint32(b[at+8:]))) {
			break
		}
		if len(b)-at < logHeaderSize || string(b[at:at+4]) != "CLR1" {
			t.Fatalf("no record at %d of %d: %q", at, len(b), b[at:min(len(b), at+8)])
		}
		h := b[at : at+logHeaderSize]
		n := int(binary.LittleEndian.Uint32(h[8:]))
		at += logHeaderSize
		if n > len(b)-at || h[5]|h[6]|h[7] != 0 || binary.LittleEndian.Uint32(h[12:]) != 0 {
			t.Fatalf("a bad header: % x", h)
		}
		list = append(list, logRecord{h[4], binary.LittleEndian.Uint64(h[16:]),
			time.Unix(int64(binary.LittleEndian.Uint64(h[24:])), int64(binary.LittleEndian.Uint64(h[32:]))), b[at : at+n]})
		at += n
	}
	return list
}

func stream(list []logRecord, stream byte) []byte {
	var b bytes.Buffer
	for _, r := range list {
		if r.stream == stream {
			b.Write(r.payload)
		}
	}
	return b.Bytes()
}

func TestKeeper(t *testing.T) {
	requireRoot(t)
	for name, change := range map[string]func(*specs.Spec){"own pid namespace": nil, "the host's pid namespace": sharesPIDs} {
		t.Run(name, func(t *testing.T) {
			l := &Launcher{}
			defer l.Close()
			before := time.Now()
			k := startKept(t, l, keptOptions{change: change}, "echo", "hello", ";", "errs", "oh no", ";", "flood", "200000", ";", "exit", "7")
			if k.pid == 0 || k.keeperPID == 0 {
				t.Errorf("process %d, keeper %d", k.pid, k.keeperPID)
			}
			r := k.record(t)
			if !r.Ended || r.Status.Code != 7 || r.Status.MaxRSS == 0 || r.Finished.Before(before) || r.Finished.After(time.Now()) {
				t.Errorf("the record is %+v", r)
			}
			list := k.log(t, "0")
			out := string(stream(list, logStdout))
			if !strings.HasPrefix(out, "hello\n") || len(out) != 6+200000 || out[6:6+251] != out[6+251:6+502] || string(stream(list, logStderr)) != "oh no\n" {
				t.Errorf("log: %d bytes of output, %q of errors", len(out), stream(list, logStderr))
			}
			for i, rec := range list {
				if rec.seq != 1<<40|uint64(i+1) || rec.time.Before(before.Add(-time.Millisecond)) || rec.time.After(r.Finished) {
					t.Errorf("record %d: number %x at %v", i, rec.seq, rec.time)
				}
			}
			if info, _ := os.Stat(filepath.Join(k.dir, "log/0")); r.LogOffset != info.Size() || r.LogSequence != 1<<40|uint64(len(list)+1) {
				t.Errorf("the log ends at %d with %x, the record says %d and %x", info.Size(), len(list), r.LogOffset, r.LogSequence)
			}
		})
	}
}

// TestKeeperIsNobodysChild: the importing program has nothing to reap, and nothing of the keeper is in its session.
func TestKeeperIsNobodysChild(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	k := startKept(t, l, keptOptions{stdin: true}, "wait")
	check(t, l.Close()) // does not wait for what was let go
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", k.keeperPID))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if f[1] == fmt.Sprint(os.Getpid()) || f[3] != fmt.Sprint(k.keeperPID) {
		t.Errorf("parent %s, session %s; the keeper is %d", f[1], f[3], k.keeperPID)
	}
	w, err := os.OpenFile(filepath.Join(k.dir, "control"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	time.Sleep(20 * time.Millisecond)
	if err := unix.Kill(k.pid, 0); err != nil {
		t.Errorf("the program ended before its input: %v", err)
	}
	message := make([]byte, ControlSize)
	message[0] = ControlCloseStdin
	w.Write(message)
	if r := k.record(t); !r.Ended || r.Status.Code != 0 {
		t.Errorf("the record is %+v", r)
	}
}

// TestKeeperNotLetGo: a container that the program has not noted does not outlive the program.
func TestKeeperNotLetGo(t *testing.T) {
	requireRoot(t)
	for name, change := range map[string]func(*specs.Spec){"own pid namespace": nil, "the host's pid namespace": sharesPIDs} {
		t.Run(name, func(t *testing.T) {
			l := &Launcher{}
			defer l.Close()
			k := startKept(t, l, keptOptions{stdin: true, hold: true, change: change}, "wait")
			defer k.d.l.live.Done()
			k.d.p.closeHandles() // as the program's end does
			r := k.record(t)
			if !r.Ended || r.Status.Signal != unix.SIGKILL {
				t.Errorf("the record is %+v", r)
			}
			gone(t, k.pid)
		})
	}
	t.Run("abandoned", func(t *testing.T) {
		l := &Launcher{}
		defer l.Close()
		k := startKept(t, l, keptOptions{stdin: true, hold: true}, "wait")
		k.d.Abandon()
		gone(t, k.pid)
		k.ended(t)
	})
}

// TestKeeperNoted: a program that dies after it has noted a container, and before it could let it go, leaves it running.
func TestKeeperNoted(t *testing.T) {
	requireRoot(t)
	for _, noted := range []bool{false, true} {
		t.Run(fmt.Sprint(noted), func(t *testing.T) {
			l := &Launcher{}
			defer l.Close()
			state := filepath.Join(t.TempDir(), "state")
			check(t, os.WriteFile(state, nil, 0o600))
			note, err := os.Open(state)
			check(t, err)
			defer note.Close()
			k := startKept(t, l, keptOptions{stdin: true, hold: true, note: note}, "wait")
			defer k.d.l.live.Done()
			if noted {
				check(t, os.WriteFile(state+".new", nil, 0o600))
				check(t, os.Rename(state+".new", state))
			}
			k.d.p.closeHandles() // as the program's end does
			if !noted {
				if r := k.record(t); !r.Ended || r.Status.Signal != unix.SIGKILL {
					t.Errorf("the record is %+v", r)
				}
				return
			}
			// It looks at messages when it was let go, not before.
			k.closeStdin(t)
			if r := k.record(t); !r.Ended || r.Status.Signal != 0 {
				t.Errorf("the record is %+v", r)
			}
		})
	}
}

// TestKeeperKilled: the container goes with its keeper, and nobody invents a status.
func TestKeeperKilled(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	k := startKept(t, l, keptOptions{stdin: true}, "wait")
	unix.PidfdSendSignal(k.keeper, unix.SIGKILL, nil, 0)
	if r := k.record(t); r.Ended {
		t.Errorf("the record is %+v", r)
	}
	gone(t, k.pid)
}

func TestKeeperFailedStart(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	s := newSpec(newRoot(t))
	s.Process.Args = []string{"/none"}
	prog, err := Compile(s, &Options{Keeper: &Keeper{}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	_, err = l.StartDetached(t.Context(), prog, nil)
	if e := (*ExecError)(nil); !errors.As(err, &e) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a program that does not exist: %v", err)
	}
	if _, err := l.Start(t.Context(), prog, nil); err == nil {
		t.Error("a detached program was started attached")
	}
}

func TestKeeperRotates(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	const lines = 20_000
	k := startKept(t, l, keptOptions{maxSize: 4096, maxFiles: 3}, "lines", fmt.Sprint(lines))
	r := k.record(t)
	entries, err := os.ReadDir(filepath.Join(k.dir, "log"))
	if err != nil || len(entries) != 3 {
		t.Fatalf("files of the log: %v, %v", entries, err)
	}
	var all []logRecord
	for _, name := range []string{"2", "1", "0"} {
		list := k.log(t, name)
		if info, _ := os.Stat(filepath.Join(k.dir, "log", name)); name != "0" && (info.Size() < 4096 || info.Size() > 4096+logReadSize+logHeaderSize) {
			t.Errorf("file %s has %d bytes", name, info.Size())
		}
		all = append(all, list...)
	}
	for i, rec := range all {
		if i > 0 && rec.seq != all[i-1].seq+1 {
			t.Errorf("%x follows %x", rec.seq, all[i-1].seq)
		}
	}
	if out := stream(all, logStdout); !bytes.HasSuffix(out, []byte(fmt.Sprintf("line %d\n", lines-1))) {
		t.Errorf("the log ends with %q", out[max(0, len(out)-20):])
	}
	if r.LogSequence != all[len(all)-1].seq+1 {
		t.Errorf("the record says %x, the last one is %x", r.LogSequence, all[len(all)-1].seq)
	}
}

// TestKeeperFullDisk: dropping says how much, blocking loses nothing, and the exit status is not lost either way.
func TestKeeperFullDisk(t *testing.T) {
	requireRoot(t)
	small := func(t *testing.T) string {
		dir := t.TempDir()
		check(t, unix.Mount("small", dir, "tmpfs", 0, "size=256k"))
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
		return dir
	}
	const flood = 1 << 20
	t.Run("drop", func(t *testing.T) {
		l := &Launcher{}
		defer l.Close()
		k := startKept(t, l, keptOptions{dir: small(t), stdin: true}, "flood", fmt.Sprint(flood), ";", "wait", ";", "echo", "again", ";", "exit", "3")
		live := func() Record {
			f, err := os.Open(filepath.Join(k.dir, "keeper"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			r, err := ReadRecord(f)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		written := func() int { return len(stream(k.log(t, "0"), logStdout)) }
		eventually(t, "all is written or dropped", func() bool { r := live(); return int(r.DroppedBytes)+written() == flood })
		if r := live(); !r.LogFull || r.Ended || r.DroppedBytes == 0 || r.DroppedReads == 0 {
			t.Errorf("the record of a running container is %+v", r)
		}
		lost := live().DroppedBytes
		// Room: the log goes on, and says what is missing.
		check(t, unix.Mount("small", k.dir, "tmpfs", unix.MS_REMOUNT, "size=8m"))
		k.closeStdin(t)
		r := k.record(t)
		if !r.Ended || r.Status.Code != 3 || r.LogFull || r.DroppedBytes != lost {
			t.Errorf("the record is %+v", r)
		}
		list := k.log(t, "0")
		if len(list) < 3 {
			t.Fatalf("%d records", len(list))
		}
		note, last := list[len(list)-2], list[len(list)-1]
		if before := list[len(list)-3]; note.seq != before.seq+r.DroppedReads+1 || last.seq != note.seq+1 {
			t.Errorf("numbers %x, %x, %x with %d reads dropped", before.seq, note.seq, last.seq, r.DroppedReads)
		}
		if string(last.payload) != "again\n" {
			t.Errorf("the last record is %q", last.payload)
		}
		if note.stream != logNote || len(note.payload) != 24 || note.payload[0] != noteDropped ||
			binary.LittleEndian.Uint64(note.payload[8:]) != lost || binary.LittleEndian.Uint64(note.payload[16:]) != r.DroppedReads {
			t.Errorf("the note is %+v, lost %d", note, lost)
		}
	})
	t.Run("block", func(t *testing.T) {
		l := &Launcher{}
		defer l.Close()
		k := startKept(t, l, keptOptions{dir: small(t), block: true}, "flood", fmt.Sprint(flood), ";", "exit", "4")
		eventually(t, "the disk is full", func() bool {
			f, err := os.Open(filepath.Join(k.dir, "keeper"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			r, err := ReadRecord(f)
			return err == nil && r.LogFull
		})
		check(t, unix.Kill(k.pid, 0))
		check(t, unix.Mount("small", k.dir, "tmpfs", unix.MS_REMOUNT, "size=8m"))
		r := k.record(t)
		if !r.Ended || r.Status.Code != 4 || r.DroppedBytes != 0 || r.LogFull {
			t.Errorf("the record is %+v", r)
		}
		list := k.log(t, "0")
		out := stream(list, logStdout)
		if len(out) != flood {
			t.Errorf("%d bytes of %d", len(out), flood)
		}
		for i, b := range out {
			if b != byte(i%251) {
				t.Fatalf("byte %d is %d", i, b)
			}
		}
		if notes := stream(list, logNote); len(notes) == 0 || notes[0] != noteBlocked {
			t.Errorf("notes: % x", notes)
		}
	})
	t.Run("killed while blocked", func(t *testing.T) {
		l := &Launcher{}
		defer l.Close()
		k := startKept(t, l, keptOptions{dir: small(t), block: true}, "flood", fmt.Sprint(flood))
		eventually(t, "it waits", func() bool {
			info, err := os.Stat(filepath.Join(k.dir, "log/0"))
			return err == nil && info.Size() > 200<<10
		})
		check(t, unix.Kill(k.pid, unix.SIGKILL))
		if r := k.record(t); !r.Ended || r.Status.Signal != unix.SIGKILL || !r.LogFull || r.DroppedBytes == 0 {
			t.Errorf("the record is %+v", r)
		}
		k.log(t, "0")
	})
}

func (k *kept) closeStdin(t testing.TB) {
	t.Helper()
	message := make([]byte, ControlSize)
	message[0] = ControlCloseStdin
	k.write(t, "control", message)
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not come to pass that %s", what)
		}
	}
}

// TestAttachedLog: a guard that is no keeper can write a log too, and dies with its program.
func TestAttachedLog(t *testing.T) {
	requireRoot(t)
	for name, change := range map[string]func(*specs.Spec){"own pid namespace": func(*specs.Spec) {}, "the host's pid namespace": sharesPIDs} {
		t.Run(name, func(t *testing.T) {
			l := &Launcher{}
			defer l.Close()
			k := &kept{dir: t.TempDir(), keeper: -1}
			check(t, os.Mkdir(filepath.Join(k.dir, "log"), 0o700))
			dir, err := os.Open(filepath.Join(k.dir, "log"))
			check(t, err)
			defer dir.Close()
			file, err := os.Create(filepath.Join(k.dir, "log/0"))
			check(t, err)
			defer file.Close()
			out, stdout, err := os.Pipe()
			check(t, err)
			in, stdin, err := os.Pipe()
			check(t, err)
			defer stdin.Close()
			s := newSpec(newRoot(t), "echo", "hello", ";", "wait", ";", "exit", "9")
			change(s)
			prog, err := Compile(s, &Options{Log: &Log{Dir: dir, File: file, Sequence: 1, Stdout: out}})
			check(t, err)
			defer prog.Close()
			p, err := l.Start(t.Context(), prog, &Stdio{Stdin: in, Stdout: stdout})
			in.Close()
			out.Close()
			stdout.Close()
			check(t, err)
			eventually(t, "it says hello", func() bool { return string(stream(k.log(t, "0"), logStdout)) == "hello\n" })
			stdin.Close()
			status, err := p.Wait(t.Context())
			if err != nil || status.Code != 9 {
				t.Errorf("status %v, %v", status, err)
			}
		})
	}
}

// TestKeeperMemory: a keeper that waits holds at most 64 kB.
func TestKeeperMemory(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	k := startKept(t, l, keptOptions{stdin: true}, "wait")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", k.keeperPID))
	check(t, err)
	var pss int
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			fmt.Sscan(v, &pss)
		}
	}
	t.Logf("%d kB", pss)
	if pss == 0 || pss > 64 {
		t.Errorf("the keeper holds %d kB:\n%s", pss, b)
	}
	k.closeStdin(t)
	k.record(t)
}

// TestKeeperTerminal: the keeper reads the terminal, types what comes through the FIFO, and resizes it.
func TestKeeperTerminal(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	defer l.Close()
	k := startKept(t, l, keptOptions{stdin: true, change: func(s *specs.Spec) { s.Process.Terminal = true }}, "typist")
	text := func() string { return string(stream(k.log(t, "0"), logStdout)) }
	eventually(t, "it says its size", func() bool { return text() == "size 0 0\r\n" })
	message := make([]byte, ControlSize)
	message[0] = ControlResize
	binary.LittleEndian.PutUint16(message[8:], 30)
	binary.LittleEndian.PutUint16(message[10:], 100)
	k.write(t, "control", message)
	k.write(t, "stdin", []byte("hello\n"))
	eventually(t, "it reads a line", func() bool { return strings.HasSuffix(text(), "hello\r\nsize 30 100, read \"hello\\n\"\r\n") })
	// More than a terminal holds, to a program that reads it all.
	long := strings.Repeat(strings.Repeat("x", 99)+"\n", 5000)
	k.write(t, "stdin", []byte(long))
	k.closeStdin(t)
	if r := k.record(t); !r.Ended || r.Status.Code != 0 {
		t.Errorf("the record is %+v", r)
	}
	if out := text(); !strings.HasSuffix(out, fmt.Sprintf("end: %d bytes\r\n", len(long)+len("hello\n"))) {
		t.Errorf("the last words: %q", out[max(0, len(out)-100):])
	}
}

func (k *kept) write(t testing.TB, name string, b []byte) {
	w, err := os.OpenFile(filepath.Join(k.dir, name), os.O_WRONLY, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		t.Error(err)
	}
}

// TestKeeperKilledBeforeRelease: a keeper can die before it is let go. Who has tried that may give up too.
func TestKeeperKilledBeforeRelease(t *testing.T) {
	requireRoot(t)
	l := &Launcher{}
	k := startKept(t, l, keptOptions{stdin: true, hold: true}, "wait")
	check(t, unix.PidfdSendSignal(k.keeper, unix.SIGKILL, nil, 0))
	k.ended(t)
	if err := k.d.Release(); !errors.Is(err, ErrDied) {
		t.Errorf("let go of a dead keeper: %v", err)
	}
	k.d.Abandon()
	k.d.Abandon()
	check(t, l.Close())
	gone(t, k.pid)
}

// TestBlockedGuardSeesItsProgramDie: where no pid namespace takes the container along, a guard that waits for a full disk
// still sees that its program has ended.
func TestBlockedGuardSeesItsProgramDie(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	check(t, unix.Mount("small", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
	check(t, os.Mkdir(filepath.Join(dir, "log"), 0o700))
	logDir, err := os.Open(filepath.Join(dir, "log"))
	check(t, err)
	defer logDir.Close()
	file, err := os.Create(filepath.Join(dir, "log/0"))
	check(t, err)
	defer file.Close()
	out, stdout, err := os.Pipe()
	check(t, err)
	s := newSpec(newRoot(t), "flood", fmt.Sprint(1<<20))
	sharesPIDs(s)
	prog, err := Compile(s, &Options{Log: &Log{Dir: logDir, File: file, Sequence: 1, Block: true, Stdout: out}})
	check(t, err)
	defer prog.Close()
	l := &Launcher{}
	p, err := l.Start(t.Context(), prog, &Stdio{Stdout: stdout})
	out.Close()
	stdout.Close()
	check(t, err)
	eventually(t, "it waits", func() bool {
		info, err := file.Stat()
		return err == nil && info.Size() > 200<<10
	})
	time.Sleep(300 * time.Millisecond) // several tries
	pid := p.PID()
	raw, err := p.report.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_RDWR) })) // as the program's end does
	check(t, err)
	defer l.Close()
	gone(t, pid)
}
