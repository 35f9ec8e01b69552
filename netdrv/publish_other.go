//go:build !linux

package netdrv

import (
	"context"
	"os"
)

// A Publisher sends what arrives at ports of the host to containers: on Linux.
type Publisher struct{}

var errPublish = &UnsupportedError{Feature: "publishing ports", Kernel: "nf_tables: Linux 5.14"}

// NewPublisher is unsupported here.
func NewPublisher(name string) (*Publisher, error) { return nil, errPublish }

// OpenPublisher is unsupported here.
func OpenPublisher(name string, socket *os.File) (*Publisher, error) { return nil, errPublish }

// Publish is unsupported here.
func (p *Publisher) Publish(ctx context.Context, ports []Port) error { return errPublish }

// Withdraw is unsupported here.
func (p *Publisher) Withdraw(ports []Port) (forgotten <-chan struct{}, err error) {
	over := make(chan struct{})
	close(over)
	return over, errPublish
}

// Flush is unsupported here.
func (p *Publisher) Flush(ctx context.Context) error { return errPublish }

// Socket is unsupported here.
func (p *Publisher) Socket() (*os.File, error) { return nil, errPublish }

// Close does nothing here.
func (p *Publisher) Close() error { return nil }
