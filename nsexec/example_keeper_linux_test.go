package nsexec_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/nsexec"
)

// exampleKept starts "/hello" so that it outlives this program, with its files in dir.
func exampleKept(ctx context.Context, launcher *nsexec.Launcher, root, dir string) *nsexec.Detached {
	open := func(name string, flags int) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), flags, 0o600)
		if err != nil {
			log.Fatal(err)
		}
		return f
	}
	record, logFile, logDir := open("record", os.O_RDWR|os.O_CREATE), open("0", os.O_WRONLY|os.O_CREATE), open(".", os.O_RDONLY)
	if err := nsexec.PrepareRecord(record); err != nil {
		log.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		for _, f := range []*os.File{record, logFile, logDir, out, stdout} {
			f.Close() // the keeper has its own
		}
	}()
	spec := nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = root, []string{"/hello"}
	prog, err := nsexec.Compile(spec, &nsexec.Options{
		Keeper: &nsexec.Keeper{Record: record},
		Log:    &nsexec.Log{Dir: logDir, File: logFile, Sequence: 1, MaxSize: 1 << 20, MaxFiles: 2, Stdout: out},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	d, err := launcher.StartDetached(ctx, prog, &nsexec.Stdio{Stdout: stdout})
	if err != nil {
		log.Fatal(err)
	}
	return d
}

// exampleRecord waits until the keeper has left its record.
func exampleRecord(dir string) nsexec.Record {
	f, err := os.Open(filepath.Join(dir, "record"))
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	for {
		r, err := nsexec.ReadRecord(f)
		if err != nil {
			log.Fatal(err)
		}
		if r.Ended {
			return r
		}
		time.Sleep(time.Millisecond)
	}
}

// A process that this program starts and does not wait for. Its keeper writes down what it says and how it ends.
func ExampleKeeper() {
	ctx, root := context.Background(), exampleRoot()
	defer os.RemoveAll(root)
	dir, err := os.MkdirTemp("", "nsexec-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var launcher nsexec.Launcher
	d := exampleKept(ctx, &launcher, root, dir)
	if err := d.Release(); err != nil { // somebody knows of it: it may live
		log.Fatal(err)
	}
	launcher.Close() // does not concern it any more

	fmt.Println(exampleRecord(dir).Status)
	b, err := os.ReadFile(filepath.Join(dir, "0"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", b[40:]) // behind the header of the record
	// Output:
	// exit status 0
	// hello
}

// Until it is let go, a detached process ends with the program that started it.
func ExampleDetached() {
	ctx, root := context.Background(), exampleRoot()
	defer os.RemoveAll(root)
	dir, err := os.MkdirTemp("", "nsexec-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var launcher nsexec.Launcher
	defer launcher.Close()
	d := exampleKept(ctx, &launcher, root, dir)
	fmt.Println("kept by a process of its own:", d.KeeperPID() != 0)
	d.Abandon()
	fmt.Println("gone:", d.KeeperPID() == 0)
	// Output:
	// kept by a process of its own: true
	// gone: true
}

// A record that nobody has filled in: the program runs, or its keeper was killed.
func ExampleRecord() {
	f, err := os.CreateTemp("", "nsexec-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := nsexec.PrepareRecord(f); err != nil {
		log.Fatal(err)
	}
	r, err := nsexec.ReadRecord(f)
	fmt.Println(r.Ended, err)
	// Output: false <nil>
}

// A log takes a directory, its current file and the ends of pipes that a guard reads.
func ExampleLog() {
	out, stdout, err := os.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	defer out.Close()
	defer stdout.Close()
	spec := nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = "/", []string{"/hello"}
	prog, err := nsexec.Compile(spec, &nsexec.Options{Log: &nsexec.Log{Dir: os.Stdin, File: os.Stdout, Sequence: 1, Stdout: out}})
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	fmt.Println(prog.Plan.Files()[:4])
	// Output: [report log directory log output]
}

// A message that changes the size of a program's terminal.
func ExampleInput() {
	dir, err := os.MkdirTemp("", "nsexec-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := unix.Mkfifo(filepath.Join(dir, "control"), 0o600); err != nil {
		log.Fatal(err)
	}
	control, err := os.OpenFile(filepath.Join(dir, "control"), os.O_RDWR, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer control.Close()
	input := &nsexec.Input{Control: control} // what Options.Input gets

	var m [nsexec.ControlSize]byte
	binary.NativeEndian.PutUint32(m[:], nsexec.ControlResize)
	binary.NativeEndian.PutUint16(m[8:], 24)  // rows
	binary.NativeEndian.PutUint16(m[10:], 80) // columns
	n, err := input.Control.Write(m[:])
	fmt.Println(n, err)
	// Output: 16 <nil>
}
