package nsexec_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/nsexec"
)

// A process in namespaces of its own, in ten lines.
func Example() {
	ctx, root := context.Background(), exampleRoot()
	defer os.RemoveAll(root)
	spec := nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = root, []string{"/hello"}
	prog, err := nsexec.Compile(spec, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	var launcher nsexec.Launcher
	defer launcher.Close()
	p, err := launcher.Start(ctx, prog, &nsexec.Stdio{Stdout: os.Stdout})
	if err != nil {
		log.Fatal(err)
	}
	status, err := p.Wait(ctx)
	fmt.Println(status, err)
	// Output:
	// hello
	// exit status 0 <nil>
}

// exampleRoot makes a root filesystem with one program.
func exampleRoot() string {
	root, err := os.MkdirTemp("", "nsexec-example-")
	if err != nil {
		log.Fatal(err)
	}
	for _, dir := range []string{"dev", "proc", "sys"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			log.Fatal(err)
		}
	}
	b, err := hello().ELF()
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "hello"), b, 0o755); err != nil {
		log.Fatal(err)
	}
	return root
}

func hello() *nsexec.Plan {
	p := &nsexec.Plan{}
	p.Syscall("greet", unix.SYS_WRITE, nsexec.Const(1), p.Str("hello\n"), nsexec.Const(6))
	p.Syscall("exit", unix.SYS_EXIT_GROUP, nsexec.Const(0))
	return p
}

// A plan is a program by itself.
func ExamplePlan() {
	fmt.Print(hello())
	// Output:
	//    0  write(1, "hello\n", 6) or exit                                                           # greet
	//    1  exit_group(0) or exit                                                                    # exit
}

// Results feed later steps through slots.
func ExampleSlot() {
	p := &nsexec.Plan{}
	pid := p.NewSlot("pid")
	p.Syscall("ask", unix.SYS_GETPID).Into(pid)
	p.Syscall("exit with it", unix.SYS_EXIT_GROUP, pid.Value())
	fmt.Print(p)
	// Output:
	//    0  $pid = getpid() or exit                                                                  # ask
	//    1  exit_group($pid) or exit                                                                 # exit with it
}

// A branch on the errno of a call.
func ExampleLabel() {
	p := &nsexec.Plan{}
	result, missing := p.NewSlot("result"), p.NewLabel()
	p.Syscall("enter", unix.SYS_CHDIR, p.Str("/data")).Into(result).Ignore()
	p.Branch(result.Value(), nsexec.Equal, nsexec.Errno(unix.ENOENT), missing)
	p.Syscall("exit", unix.SYS_EXIT_GROUP, nsexec.Const(0))
	p.Place(missing)
	p.Syscall("make", unix.SYS_MKDIRAT, nsexec.Int(unix.AT_FDCWD), p.Str("/data"), nsexec.Const(0o755))
	fmt.Print(p)
	// Output:
	//    0  $result = chdir("/data") or go on                                                        # enter
	//    1  if $result == -ENOENT goto L1
	//    2  exit_group(0) or exit                                                                    # exit
	// L1:
	//    3  mkdirat(AT_FDCWD, "/data", 493) or exit                                                  # make
}

func ExampleArg() {
	p := &nsexec.Plan{}
	p.Syscall("detach", unix.SYS_UMOUNT2, p.Str("."), nsexec.Const(unix.MNT_DETACH).As("MNT_DETACH"))
	fmt.Print(p)
	// Output:
	//    0  umount2(".", MNT_DETACH) or exit                                                         # detach
}

func ExampleCond() {
	p := &nsexec.Plan{}
	n, loop := p.NewSlot("n"), p.NewLabel()
	p.Place(loop)
	p.Add(n, n.Value(), nsexec.Const(1))
	p.Branch(n.Value(), nsexec.Below, nsexec.Const(10), loop)
	fmt.Print(p)
	// Output:
	// L1:
	//    0  $n = $n + 1
	//    1  if $n <u 10 goto L1
}

func ExampleStepRef() {
	p := &nsexec.Plan{}
	failed := p.NewLabel()
	p.Syscall("try", unix.SYS_FCHDIR, nsexec.Const(7)).Else(failed)
	p.Place(failed)
	p.Syscall("exit", unix.SYS_EXIT_GROUP, nsexec.Const(1)).Ignore()
	fmt.Print(p)
	// Output:
	//    0  fchdir(7) or goto L1                                                                     # try
	// L1:
	//    1  exit_group(1) or go on                                                                   # exit
}

func ExampleProgram() {
	spec := nsexec.DefaultSpec()
	spec.Root.Path = "/srv/rootfs"
	prog, err := nsexec.Compile(spec, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	fmt.Println(prog.Plan.Files())
	// Output: [report status]
}

func ExampleOptions() {
	group, err := os.Open(os.DevNull) // in truth the directory of a cgroup
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	spec := nsexec.DefaultSpec()
	spec.Root.Path = "/srv/rootfs"
	prog, err := nsexec.Compile(spec, &nsexec.Options{Cgroup: group})
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	fmt.Println(prog.Plan.Files())
	// Output: [report status cgroup]
}

func ExampleLauncher() {
	root := exampleRoot()
	defer os.RemoveAll(root)
	spec := nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = root, []string{"/missing"}
	prog, err := nsexec.Compile(spec, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	var launcher nsexec.Launcher
	defer launcher.Close()
	_, err = launcher.Start(context.Background(), prog, nil)
	var exec *nsexec.ExecError
	fmt.Println(errors.As(err, &exec), errors.Is(err, fs.ErrNotExist))
	// Output: true true
}

func ExampleProcess() {
	ctx, root := context.Background(), exampleRoot()
	defer os.RemoveAll(root)
	spec := nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = root, []string{"/hello"}
	prog, err := nsexec.Compile(spec, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	var launcher nsexec.Launcher
	defer launcher.Close()
	p, err := launcher.Start(ctx, prog, nil)
	if err != nil {
		log.Fatal(err)
	}
	<-p.Done()
	fmt.Println(errors.Is(p.Signal(syscall.SIGTERM), os.ErrProcessDone))
	// Output: true
}

func ExampleStepError() {
	root := exampleRoot()
	defer os.RemoveAll(root)
	spec := nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = root, []string{"/hello"}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/does/not/exist", Options: []string{"bind"}})
	prog, err := nsexec.Compile(spec, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	var launcher nsexec.Launcher
	defer launcher.Close()
	_, err = launcher.Start(context.Background(), prog, nil)
	var step *nsexec.StepError
	if errors.As(err, &step) {
		fmt.Println(step.Call, step.Errno)
	}
	// Output: open_tree no such file or directory
}

func ExampleExecError() {
	err := error(&nsexec.ExecError{Path: "/bin/tool", Errno: syscall.EACCES})
	fmt.Println(err)
	fmt.Println(errors.Is(err, fs.ErrPermission))
	// Output:
	// execute "/bin/tool": permission denied (not a regular file, without the execute permission, or on a noexec mount)
	// true
}

func ExampleStatus() {
	fmt.Println(nsexec.Status{Code: 3})
	fmt.Println(nsexec.Status{Code: -1, Signal: syscall.SIGSEGV, CoreDump: true})
	// Output:
	// exit status 3
	// signal: segmentation fault (core dumped)
}

func ExampleStdio() {
	ctx, root := context.Background(), exampleRoot()
	defer os.RemoveAll(root)
	spec := nsexec.DefaultSpec()
	spec.Root.Path, spec.Process.Args = root, []string{"/hello"}
	prog, err := nsexec.Compile(spec, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer prog.Close()
	r, w, err := os.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	var launcher nsexec.Launcher
	defer launcher.Close()
	if _, err := launcher.Start(ctx, prog, &nsexec.Stdio{Stdout: w}); err != nil {
		log.Fatal(err)
	}
	w.Close() // the process has its own
	b := make([]byte, 16)
	n, err := r.Read(b)
	fmt.Printf("%q %v\n", b[:n], err)
	// Output: "hello\n" <nil>
}
