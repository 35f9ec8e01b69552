package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// lookAround is what runs in the container.
func lookAround() {
	fmt.Printf("%s! What it looks like from the inside:\n", os.Getenv("GREETING"))
	show := func(what string, format string, args ...any) {
		fmt.Printf("  %-14s %s\n", what, fmt.Sprintf(format, args...))
	}

	hostname, _ := os.Hostname()
	show("process", "pid %d, parent %d, uid %d", os.Getpid(), os.Getppid(), os.Getuid())
	show("host name", "%s", hostname)
	show("root", "%s", list("/"))
	mounts, _ := os.ReadFile("/proc/self/mounts")
	first, _, _ := strings.Cut(string(mounts), "\n")
	show("mounts", "%d, the first: %s", bytes.Count(mounts, []byte("\n")), cut(first, 60))
	show("processes", "%s", numbers("/proc"))
	show("memory limit", "%s", firstFile("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"))
	show("process limit", "%s", firstFile("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"))
	show("capabilities", "%s", field("/proc/self/status", "CapEff:"))
	show("seccomp", "%s (2 is: filtered)", field("/proc/self/status", "Seccomp:"))
	if err := os.WriteFile("/proc/sys/kernel/hostname", []byte("mine"), 0); err != nil {
		show("kernel", "%v", err)
	}
}

func list(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return strings.Join(names, " ")
}

// numbers lists the processes in a proc filesystem.
func numbers(dir string) string {
	var pids []string
	for _, name := range strings.Fields(list(dir)) {
		if strings.Trim(name, "0123456789") == "" {
			pids = append(pids, name)
		}
	}
	return strings.Join(pids, " ")
}

// firstFile returns the content of the first file that can be read: cgroup v2's or v1's.
func firstFile(paths ...string) string {
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	return "unknown: no cgroup controller"
}

func field(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}
