package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"
	"syscall"
	"testing/fstest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/nsexec"
)

// exampleImages opens an engine on a temporary root with two images: "hello" says so and ends, "pause" waits for ever.
func exampleImages(ctx context.Context) (eng *coracle.Engine, done func()) {
	root, err := os.MkdirTemp("", "coracle-example-")
	if err != nil {
		log.Fatal(err)
	}
	eng, err = coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		log.Fatal(err)
	}
	hello := &nsexec.Plan{}
	const text = "hello from a container\n"
	hello.Syscall("greet", unix.SYS_WRITE, nsexec.Const(1), hello.Str(text), nsexec.Int(len(text)))
	hello.Syscall("exit", unix.SYS_EXIT_GROUP, nsexec.Const(0))
	pause := &nsexec.Plan{}
	pause.Syscall("wait", unix.SYS_PPOLL).Ignore()
	for name, program := range map[string]*nsexec.Plan{"hello": hello, "pause": pause} {
		b, err := program.ELF()
		if err != nil {
			log.Fatal(err)
		}
		files := fstest.MapFS{"program": {Data: b, Mode: 0o755}}
		if b, err = hello.ELF(); err != nil {
			log.Fatal(err)
		}
		files["bin/hello"] = &fstest.MapFile{Data: b, Mode: 0o755}
		_, err = eng.ImageFromFS(ctx, name, files, &coracle.ImageFSOptions{Config: coracle.ImageConfig{Entrypoint: []string{"/program"}}})
		if err != nil {
			log.Fatal(err)
		}
	}
	return eng, func() {
		eng.Close()
		os.RemoveAll(root)
	}
}

func ExampleEngine_Output() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	out, err := eng.Output(ctx, &coracle.ContainerSpec{Image: "hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	// Output: hello from a container
}

func ExampleEngine() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "greeter", Image: "hello", Stdout: os.Stdout})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	exit, err := c.Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(exit)
	if err := c.Remove(ctx, nil); err != nil {
		log.Fatal(err)
	}
	// Output:
	// hello from a container
	// exit status 0
}

func ExampleConfig() {
	root, err := os.MkdirTemp("", "coracle-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(root)
	eng, err := coracle.Open(context.Background(), coracle.Config{Root: root, CgroupParent: "/coracle"})
	if err != nil {
		log.Fatal(err)
	}
	defer eng.Close()
	fmt.Println(eng.Root() == root)
	// Output: true
}

func ExampleContainer() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "web", Image: "pause"})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	same, err := eng.Container(ctx, c.ID()[:12])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(same.Name())
	if err := same.Kill(ctx); err != nil {
		log.Fatal(err)
	}
	exit, err := c.Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(exit)
	// Output:
	// web
	// signal: killed
}

func ExampleContainerSpec() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	err := eng.Run(ctx, &coracle.ContainerSpec{
		Image:    "hello",
		Env:      []string{"LANG=C.UTF-8"},
		User:     "1000:1000",
		Hostname: "boat",
		Labels:   map[string]string{"team": "blue"},
		Mounts:   []coracle.Mount{{Type: coracle.MountTmpfs, Target: "/tmp"}},
		Limits:   cgroup.Limits{Memory: 64 << 20, PIDs: 16},
		Security: nsexec.Security{CapDrop: []string{"ALL"}, NoNewPrivileges: true},
		Stdout:   os.Stdout,
		Customize: func(s *specs.Spec) error {
			s.Process.OOMScoreAdj = new(int)
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: hello from a container
}

func ExampleContainerInfo() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "web", Image: "pause", Labels: map[string]string{"team": "blue"}})
	if err != nil {
		log.Fatal(err)
	}
	info, err := c.Inspect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Name, info.Status, info.Image, info.Labels["team"])
	// Output: web created pause blue
}

func ExampleContainerFilter() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	for _, team := range []string{"blue", "red", "blue"} {
		if _, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "pause", Labels: map[string]string{"team": team}}); err != nil {
			log.Fatal(err)
		}
	}
	blue, err := eng.Containers(ctx, &coracle.ContainerFilter{Status: coracle.StatusCreated, Labels: map[string]string{"team": "blue"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(blue))
	// Output: 2
}

func ExampleContainerStatus() {
	var s coracle.ContainerStatus = coracle.StatusRunning
	fmt.Println(s)
	// Output: running
}

func ExampleStopOptions() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "pause"})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	// The first process of a container ignores what it has no handler for.
	if err := c.Stop(ctx, &coracle.StopOptions{Signal: "SIGINT", Timeout: 10 * time.Millisecond}); err != nil {
		log.Fatal(err)
	}
	exit, _ := c.Wait(ctx)
	fmt.Println(exit)
	// Output: signal: killed
}

func ExampleRemoveOptions() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "web", Image: "pause"})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(errors.Is(c.Remove(ctx, nil), coracle.ErrRunning))
	if err := c.Remove(ctx, &coracle.RemoveOptions{Force: true}); err != nil {
		log.Fatal(err)
	}
	_, err = eng.Container(ctx, "web")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// true
	// true
}

func ExampleExitError() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(10*time.Millisecond, cancel)
	err := eng.Run(ctx, &coracle.ContainerSpec{Image: "pause"})
	fmt.Println(errors.Is(err, context.Canceled))

	err = &coracle.ExitError{Container: "job", ExitStatus: coracle.ExitStatus{Code: 3}, Stderr: []byte("no such table")}
	var exit *coracle.ExitError
	if errors.As(err, &exit) {
		fmt.Printf("%v: %s\n", exit, exit.Stderr)
	}
	// Output:
	// true
	// coracle: container "job": exit status 3: no such table
}

func ExampleExitStatus() {
	fmt.Println(coracle.ExitStatus{Code: 137})
	fmt.Println(coracle.ExitStatus{Code: -1, Signal: syscall.SIGKILL, OOMKilled: true})
	// Output:
	// exit status 137
	// signal: killed (out of memory)
}

func ExampleMount() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	err := eng.Run(ctx, &coracle.ContainerSpec{
		Image:  "hello",
		Stdout: os.Stdout,
		Mounts: []coracle.Mount{
			{Source: "/etc", Target: "/host/etc", ReadOnly: true},
			{Type: coracle.MountTmpfs, Target: "/scratch", TmpfsSize: 16 << 20},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: hello from a container
}

func ExampleDevice() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	err := eng.Run(ctx, &coracle.ContainerSpec{
		Image: "hello", Stdout: os.Stdout, Devices: []coracle.Device{{Path: "/dev/null", ContainerPath: "/dev/nothing", Permissions: "rw"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: hello from a container
}

func ExampleAttachment() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	err := eng.Run(ctx, &coracle.ContainerSpec{
		Image: "hello", Stdout: os.Stdout, Networks: []coracle.Attachment{{Network: coracle.NetworkHost}},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: hello from a container
}

func ExampleOpError() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	_, err := eng.Create(ctx, &coracle.ContainerSpec{Name: "no/slashes", Image: "hello"})
	var op *coracle.OpError
	if errors.As(err, &op) {
		fmt.Println(op.Op, op.Kind, op.Name, errors.Is(err, coracle.ErrInvalid))
	}
	// Output: create container no/slashes true
}

func ExampleUnsupportedError() {
	err := error(&coracle.UnsupportedError{Feature: "checkpointing", Fix: "stop the container instead"})
	fmt.Println(err)
	fmt.Println(errors.Is(err, errors.ErrUnsupported))
	// Output:
	// checkpointing is not supported here: stop the container instead
	// true
}

// needsRoot matches the examples that cannot run without root; TestMain skips them then.
var needsRoot = "^(" + strings.Join([]string{
	"ExampleEngine", "ExampleEngine_Output", "ExampleContainer", "ExampleContainerSpec", "ExampleContainerInfo", "ExampleContainerFilter",
	"ExampleStopOptions", "ExampleRemoveOptions", "ExampleExitError", "ExampleMount", "ExampleDevice", "ExampleAttachment", "ExampleOpError", "ExampleConfig",
	"ExampleEvent", "ExampleImageFSOptions", "ExampleImageConfig", "ExampleImageRemoveOptions", "ExampleInUseError", "ExampleContainerPruneOptions", "ExampleContainerUsage",
	"ExampleContainer_Pause", "ExampleContainer_Update", "ExampleContainer_Rename", "ExampleCondition", "ExampleProcessInfo", "ExampleStats",
	"ExampleCmd", "ExampleContainer_Command", "ExampleProcess", "ExampleTerminalSize",
	"ExampleAttachOptions", "ExampleAttachOptions_detachKeys", "ExampleInput",
	"ExampleEngine_Supervise", "ExampleHealthSpec", "ExampleHealth", "ExampleHealthStatus",
	"ExampleContainer_Logs", "ExampleContainer_LogLines", "ExampleContainer_CopyLogs", "ExampleLogOptions", "ExampleLogRecord", "ExampleLogLine",
	"ExampleLogSpec", "ExampleLogMode",
	"ExampleContainer_DialContext", "ExampleContainer_Listen", "ExampleContainer_ListenPacket",
	"ExampleNetwork", "ExampleNetwork_Partition", "ExampleNetworkSpec", "ExampleNetworkInfo", "ExampleNetworkFilter", "ExampleEndpointInfo", "ExampleSubnet",
	"ExamplePort", "ExamplePublishedPort",
}, "|") + ")$"
