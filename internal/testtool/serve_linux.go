package testtool

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// serve NETWORK ADDRESS [MILLISECONDS]: sends back what it gets on a "tcp", "udp" or "unix" socket, after a pause in which
// it does not listen. It says "listening" then. With a negative pause nobody accepts, the queue has room for one, and it says
// "backlog".
func serve(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "serve:", err)
		return 1
	}
	pause := 0
	if len(args) > 2 {
		pause, _ = strconv.Atoi(args[2])
	}
	time.Sleep(time.Duration(max(pause, 0)) * time.Millisecond)
	fd, kind, address, err := socket(args[0], args[1])
	if err != nil {
		return fail(err)
	}
	if err := unix.Bind(fd, address); err != nil {
		return fail(err)
	}
	if kind == unix.SOCK_DGRAM {
		fmt.Println("listening")
		for buf := make([]byte, 1<<16); ; {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return fail(err)
			}
			unix.Sendto(fd, buf[:n], 0, from)
		}
	}
	backlog := 4096
	if pause < 0 {
		backlog = 0
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return fail(err)
	}
	if pause < 0 {
		fmt.Println("backlog")
		time.Sleep(time.Hour)
	}
	fmt.Println("listening")
	for {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return fail(err)
		}
		go func() {
			defer unix.Close(conn)
			for buf := make([]byte, 4096); ; {
				n, err := unix.Read(conn, buf)
				if n <= 0 || err != nil && err != unix.EINTR {
					return
				}
				unix.Write(conn, buf[:n])
			}
		}()
	}
}

// socket makes a socket and its address.
func socket(network, text string) (fd, kind int, address unix.Sockaddr, err error) {
	kind = unix.SOCK_STREAM
	if network == "udp" || network == "unixgram" {
		kind = unix.SOCK_DGRAM
	}
	var family int
	if strings.HasPrefix(network, "unix") {
		family, address = unix.AF_UNIX, &unix.SockaddrUnix{Name: text}
	} else {
		a, err := netip.ParseAddrPort(text)
		switch {
		case err != nil:
			return -1, 0, nil, err
		case a.Addr().Is4():
			family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
		default:
			family, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
		}
	}
	fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	return fd, kind, address, err
}

// call NETWORK ADDRESS TEXT: connects, sends the text and prints what comes: of a datagram socket one datagram, otherwise
// everything.
func call(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "call:", err)
		return 1
	}
	fd, kind, address, err := socket(args[0], args[1])
	if err != nil {
		return fail(err)
	}
	if args[0] == "unixgram" { // an answer needs an address
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@call-%d", os.Getpid())}); err != nil {
			return fail(err)
		}
	}
	if err := unix.Connect(fd, address); err != nil {
		return fail(err)
	}
	if _, err := unix.Write(fd, []byte(args[2])); err != nil {
		return fail(err)
	}
	for buf := make([]byte, 1<<16); ; {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fail(err)
		}
		os.Stdout.Write(buf[:n])
		if n == 0 || kind == unix.SOCK_DGRAM {
			return 0
		}
	}
}
