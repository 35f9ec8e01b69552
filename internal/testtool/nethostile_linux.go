package testtool

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// hostileNetworkCommand performs a command that does not do what it should in a network:
//
//	dns ADDRESS:PORT IP              is a server that says of every name that it has the IPv4 address, after "listening"
//	dns-flood SERVER MS [SUFFIX]     asks a server for names that nobody has, as fast as it can
//	frames INTERFACE MS HEX...       sends Ethernet frames over and over, after "ready"
//	flows ADDRESS:PORT N             sends N datagrams, each from another port
func hostileNetworkCommand(args []string) int {
	var err error
	number := func(i int) int {
		n, e := strconv.Atoi(args[i])
		if e != nil {
			err = e
		}
		return n
	}
	switch args[0] {
	case "dns":
		err = serveDNS(args[1], netip.MustParseAddr(args[2]))
	case "dns-flood":
		suffix := ""
		if len(args) > 3 {
			suffix = args[3]
		}
		err = floodDNS(args[1], time.Duration(number(2))*time.Millisecond, suffix)
	case "frames":
		err = sendFrames(args[1], time.Duration(number(2))*time.Millisecond, args[3:])
	case "flows":
		for range number(2) {
			var conn net.Conn
			if conn, err = net.Dial("udp", args[1]); err != nil {
				break
			}
			conn.Write([]byte("flow"))
			conn.Close()
		}
		fmt.Println("done")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// questionEnd is where the first question of a message ends, or 0.
func questionEnd(b []byte) int {
	for i := 12; i < len(b); i += int(b[i]) + 1 {
		if b[i] == 0 && i+5 <= len(b) {
			return i + 5
		}
	}
	return 0
}

func serveDNS(at string, ip netip.Addr) error {
	conn, err := net.ListenPacket("udp4", at)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	b := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return err
		}
		end := questionEnd(b[:n])
		if end == 0 {
			continue
		}
		answer := append([]byte{b[0], b[1], 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0}, b[12:end]...)
		if b[end-3] == 1 { // A
			answer[7] = 1
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4)
			answer = append(answer, ip.AsSlice()...)
		}
		conn.WriteTo(answer, from)
	}
}

func floodDNS(server string, during time.Duration, suffix string) error {
	conn, err := net.Dial("udp4", server)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	n := 0
	for end := time.Now().Add(during); time.Now().Before(end); n++ {
		name := fmt.Sprintf("n%08d", n)
		q := append([]byte{byte(n >> 8), byte(n), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(name))}, name...)
		if suffix != "" {
			q = append(append(q, byte(len(suffix))), suffix...)
		}
		conn.Write(append(q, 0, 0, 1, 0, 1))
	}
	fmt.Println("asked", n)
	return nil
}

func sendFrames(name string, during time.Duration, texts []string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var frames [][]byte
	for _, text := range texts {
		frame, err := hex.DecodeString(text)
		if err != nil {
			return err
		}
		frames = append(frames, frame)
	}
	fmt.Println("ready")
	sent := 0
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(500 * time.Microsecond) {
		for _, frame := range frames {
			to := &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: uint16(frame[13])<<8 | uint16(frame[12])}
			if err := unix.Sendto(fd, frame, 0, to); err != nil && err != unix.ENOBUFS {
				return err
			}
			sent++
		}
	}
	fmt.Println("sent", sent)
	return nil
}
