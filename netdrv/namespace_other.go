//go:build !linux

package netdrv

import "os"

// A Namespace is a network namespace. There are some on Linux only.
type Namespace struct{}

// NewNamespace returns an error.
func NewNamespace() (*Namespace, error) { return nil, notLinux() }

// OpenNamespace returns an error.
func OpenNamespace(f *os.File) (*Namespace, error) { return nil, notLinux() }

// File returns nil.
func (ns *Namespace) File() *os.File { return nil }

// Do returns an error.
func (ns *Namespace) Do(f func() error) error { return notLinux() }

// Close does nothing.
func (ns *Namespace) Close() error { return nil }

func notLinux() error {
	return &UnsupportedError{Feature: "a network namespace", Fix: "run on Linux"}
}
