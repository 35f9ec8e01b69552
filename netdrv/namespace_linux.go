package netdrv

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace that is held open. It lives as long as it is held or a process is in it; nothing
// pins it with a mount.
type Namespace struct {
	file    *os.File
	route   *conn // was made inside
	sysctls *sysctls
	close   sync.Once

	mu sync.Mutex
	nf *nfConn // or nil
}

// NewNamespace makes a network namespace, with its loopback interface up and nothing else.
func NewNamespace() (*Namespace, error) {
	ns := &Namespace{}
	if err := inside(func() error { return makeNamespace(ns) }); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// makeNamespace makes one for the calling thread, which must be a doomed one.
func makeNamespace(ns *Namespace) error {
	switch err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)); {
	case errors.Is(err, unix.EPERM):
		return &Error{Op: "make a network namespace", Err: err, Fix: "run as root, or with CAP_SYS_ADMIN"}
	case errors.Is(err, unix.ENOSPC):
		return &Error{Op: "make a network namespace", Err: err, Fix: "raise the sysctl user.max_net_namespaces"}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return &UnsupportedError{Feature: "a network namespace", Kernel: "CONFIG_NET_NS", Err: err}
	case err != nil:
		return &Error{Op: "make a network namespace", Err: err}
	}
	if err := ns.openHere(); err != nil {
		return err
	}
	return ns.switchOnLoopback()
}

// OpenNamespace holds a namespace that exists: f is /proc/PID/ns/net of a process in it, or a pidfd of one. The caller
// may close f after.
func OpenNamespace(f *os.File) (*Namespace, error) {
	ns := &Namespace{}
	err := inside(func() error {
		if err := enter(f); err != nil {
			return err
		}
		return ns.openHere()
	})
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// AdoptNamespace is OpenNamespace for one that somebody has just made, whose loopback interface is still off: it is on after.
func AdoptNamespace(f *os.File) (*Namespace, error) {
	ns, err := OpenNamespace(f)
	if err != nil {
		return nil, err
	}
	if err := ns.switchOnLoopback(); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// switchOnLoopback switches on lo, which is the first interface of every namespace.
func (ns *Namespace) switchOnLoopback() error {
	if err := ns.route.do(request(unix.RTM_NEWLINK, 0, ifinfo(1, unix.IFF_UP))); err != nil {
		return kernelError("switch on", "lo", err)
	}
	return nil
}

// openHere holds the namespace of the calling thread.
func (ns *Namespace) openHere() error {
	var err error
	if ns.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return fmt.Errorf("netdrv: hold the network namespace: %w", err)
	}
	if ns.route, err = dial(); err != nil {
		return err
	}
	ns.sysctls, err = openSysctls()
	return err
}

// File is the descriptor that holds the namespace, for setns(2). It belongs to the Namespace.
func (ns *Namespace) File() *os.File { return ns.file }

// Do calls f inside, and returns its error, or one about not coming in. The thread that f has ends with it. Goroutines that
// f starts are not inside: f makes its sockets itself, and gives names of hosts to nobody.
func (ns *Namespace) Do(f func() error) error {
	return inside(func() error {
		if err := enter(ns.file); err != nil {
			return err
		}
		return f()
	})
}

// netfilter returns a netfilter socket that was made inside; the calling thread is there. It is closed with the namespace and not
// before: the kernel lets who closes one wait for all tables, of all namespaces, that are being destroyed.
func (ns *Namespace) netfilter() (*nfConn, error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.nf != nil {
		return ns.nf, nil
	}
	nf, err := openNF()
	if err == nil {
		ns.nf = nf
	}
	return nf, err
}

// Close lets go of the namespace. That may take some milliseconds. A second call does nothing.
func (ns *Namespace) Close() error {
	var err error
	ns.close.Do(func() {
		ns.mu.Lock()
		if ns.nf != nil {
			ns.nf.Close()
		}
		ns.mu.Unlock()
		ns.route.Close()
		ns.sysctls.Close()
		if ns.file != nil {
			err = ns.file.Close()
		}
	})
	return err
}

// enter moves the calling thread, which must be a doomed one.
func enter(f *os.File) error {
	err := descriptor(f, func(fd uintptr) error { return os.NewSyscallError("setns", unix.Setns(int(fd), unix.CLONE_NEWNET)) })
	switch {
	case errors.Is(err, unix.EPERM):
		return &Error{Op: "enter the network namespace", Interface: f.Name(), Err: err, Fix: "run as root, or with CAP_SYS_ADMIN in the user namespace that owns it"}
	case errors.Is(err, unix.ESRCH):
		return &Error{Op: "enter the network namespace", Interface: f.Name(), Err: os.ErrProcessDone}
	case err != nil:
		return &Error{Op: "enter the network namespace", Interface: f.Name(), Err: err}
	}
	return nil
}

// descriptor calls use with the descriptor of a file, which stays open meanwhile.
func descriptor(f *os.File, use func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if raw.Control(func(fd uintptr) { failed = use(fd) }) != nil {
		return os.ErrClosed // no other reason is known
	}
	return failed
}

// inside calls f on a thread that runs nothing else before f returns and nothing at all after, and waits for it: f may move
// the thread to other namespaces. A goroutine that ends without unlocking its thread takes the thread with it. The main
// thread alone is not ended but kept for ever, so f is never called there.
func inside(f func() error) error {
	err := errors.New("netdrv: the goroutine in the namespace ended itself") // runtime.Goexit, by t.FailNow for one
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			err = f()
			return
		}
		err = inside(f) // while this goroutine has the main thread, another one is not given it
		runtime.UnlockOSThread()
	}()
	<-done
	return err
}
