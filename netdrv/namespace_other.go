//go:build !linux

package netdrv

import (
	"net/netip"
	"os"
)

// A Namespace is a network namespace. There are some on Linux only.
type Namespace struct{}

// NewNamespace returns an error.
func NewNamespace() (*Namespace, error) { return nil, notLinux() }

// OpenNamespace returns an error.
func OpenNamespace(f *os.File) (*Namespace, error) { return nil, notLinux() }

// AdoptNamespace returns an error.
func AdoptNamespace(f *os.File) (*Namespace, error) { return nil, notLinux() }

// File returns nil.
func (ns *Namespace) File() *os.File { return nil }

// Do returns an error.
func (ns *Namespace) Do(f func() error) error { return notLinux() }

// Close does nothing.
func (ns *Namespace) Close() error { return nil }

// SetGateway returns an error.
func SetGateway(ns *Namespace, ep *Endpoint) error { return notLinux() }

// HostRoutes returns an error.
func HostRoutes() ([]netip.Prefix, error) { return nil, notLinux() }

func notLinux() error {
	return &UnsupportedError{Feature: "a network namespace", Fix: "run on Linux"}
}
