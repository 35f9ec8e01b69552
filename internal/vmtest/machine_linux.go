package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/vmtest/guestplan"
)

// errTests says that the guest ran to its end and that a test failed.
var errTests = errors.New("tests failed")

// A machine is one boot of the virtual machine.
type machine struct {
	*options
	kernel string
	initrd string
	disk   string
	boot   int // 1 and 2 with -reboot, else 0
}

// run boots the machine, copies its console to out and returns nil if the guest reported that all passed.
func (m *machine) run(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	nonce := rand.Text()
	name, args, err := m.command(nonce)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the virtual machine: %w", err)
	}

	verdict := ""
	end := guestplan.Marker + " " + nonce + " "
	panicked := false
	lines := bufio.NewReader(console)
	for {
		line, err := lines.ReadString('\n')
		text := strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(text, end):
			verdict = text[len(end):]
		case line != "":
			fmt.Fprintln(out, text)
			panicked = panicked || strings.Contains(text, "Kernel panic - not syncing")
		}
		if err != nil {
			break
		}
	}
	waitErr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the virtual machine was stopped after %s: %w", m.timeout, ctx.Err())
	case panicked:
		return errors.New("the virtual machine's kernel panicked")
	case waitErr != nil:
		return fmt.Errorf("%s: %w\n%s", name, waitErr, stderr.String())
	case verdict == "pass":
		return nil
	case verdict == "fail":
		return errTests
	default:
		return fmt.Errorf("the virtual machine ended without a verdict\n%s", stderr.String())
	}
}

func (m *machine) command(nonce string) (name string, args []string, err error) {
	accel := m.accel
	var console string
	switch m.arch {
	case "amd64":
		name, console = "qemu-system-x86_64", "ttyS0"
		args = []string{"-machine", "q35", "-cpu", "max"}
	case "arm64":
		name, console = "qemu-system-aarch64", "ttyAMA0"
		args = []string{"-machine", "virt,gic-version=3", "-cpu", "cortex-a72"}
		if accel == "kvm" {
			args[3] = "host"
		}
	default:
		return "", nil, fmt.Errorf("no virtual machine for %s: amd64 or arm64", m.arch)
	}
	if accel == "tcg" {
		accel = "tcg,thread=multi"
	}
	cmdline := []string{
		"console=" + console, "quiet", "loglevel=3", "panic=-1", "oops=panic",
		"no_timer_check", // a busy host may starve the emulated timer while the kernel checks it
		"apparmor=1", "security=apparmor",
		guestplan.Nonce + "=" + nonce,
	}
	if m.boot > 0 {
		cmdline = append(cmdline, guestplan.Boot+"="+strconv.Itoa(m.boot))
	}
	return name, append(args,
		"-accel", accel,
		"-smp", strconv.Itoa(m.cpus), "-m", m.memory,
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", strings.Join(cmdline, " "),
		"-drive", "file="+m.disk+",if=none,id=root,format=raw,cache=unsafe",
		"-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-rng-pci",
	), nil
}
