package coracletest

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
)

// States of sockets in the kernel's tables (include/net/tcp_states.h). A UDP socket that is bound and not connected has
// that of a closed one.
const (
	stateListen      = "0A"
	stateUnconnected = "07"
)

// hasPort looks for a socket with a local port and a state in a table like /proc/net/tcp. Lines that are not like those of
// the table are passed over, however long they are.
func hasPort(r io.Reader, port uint16, state string) (bool, error) {
	b := bufio.NewReaderSize(r, 4096)
	for {
		line, prefix, err := b.ReadLine()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if socketPort(string(line)) == int(port) && socketState(string(line)) == state {
			return true, nil
		}
		for prefix && err == nil {
			_, prefix, err = b.ReadLine()
		}
	}
}

// fields of a line: number, local address, remote address, state.
func socketField(line string, n int) string {
	f := strings.Fields(line)
	if len(f) < 4 || !strings.HasSuffix(f[0], ":") {
		return ""
	}
	return f[n]
}

func socketState(line string) string { return socketField(line, 3) }

// socketPort is the local port of a line, or -1.
func socketPort(line string) int {
	address, port, _ := strings.Cut(socketField(line, 1), ":")
	if len(address) != 8 && len(address) != 32 || len(port) != 4 {
		return -1
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return -1
	}
	return int(n)
}
