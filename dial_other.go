//go:build !linux

package coracle

import (
	"context"
	"errors"
	"net"
)

type sockets struct{}

func (*sockets) dial(context.Context, *hostProcess, int, dialAddress) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (*sockets) listen(context.Context, *hostProcess, int, listenAddress) (*boundSocket, error) {
	return nil, errors.ErrUnsupported
}
