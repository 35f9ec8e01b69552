//go:build !linux

package netdrv

import "context"

// FirewallObjects is unsupported here.
func FirewallObjects(ctx context.Context) ([]FirewallObject, error) {
	return nil, &UnsupportedError{Feature: "a firewall", Kernel: "nf_tables: Linux 5.14"}
}

// HostChanges lists nothing here.
func HostChanges(ctx context.Context) ([]HostChange, error) { return nil, nil }

// RedirectDNS is unsupported here.
func RedirectDNS(ns *Namespace, udpPort, tcpPort uint16) error {
	return &UnsupportedError{Feature: "names of containers", Kernel: "nf_tables: Linux 5.14"}
}
