package testtool

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
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
	kind := unix.SOCK_STREAM
	if args[0] == "udp" {
		kind = unix.SOCK_DGRAM
	}
	var family int
	var address unix.Sockaddr
	if args[0] == "unix" {
		family, address = unix.AF_UNIX, &unix.SockaddrUnix{Name: args[1]}
	} else {
		a, err := netip.ParseAddrPort(args[1])
		switch {
		case err != nil:
			return fail(err)
		case a.Addr().Is4():
			family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
		default:
			family, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
		}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
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
