package testutil

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// LeakCheck runs the tests and fails the binary if it leaves processes, mounts, descriptors or goroutines behind.
// Cgroups, network objects and directories have owners that only the tests know: they check those themselves.
func LeakCheck(m *testing.M) int {
	// Descriptors and threads that the runtime opens once and keeps.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	before := hostState()
	code := m.Run()
	if code != 0 {
		return code
	}
	var left []string
	for range 100 {
		if left = hostState().since(before); len(left) == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := goleak.Find(); err != nil {
		left = append(left, err.Error())
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "the tests left behind:\n%s\n", strings.Join(left, "\n"))
		return 1
	}
	return 0
}

// Resources is what the process holds at this moment, for Settled.
func Resources() host { return hostState() }

// Settled waits until the process holds nothing that it did not hold before, and fails the test if that does not come.
func Settled(t testing.TB, before host) {
	t.Helper()
	var left []string
	for range 100 {
		if left = hostState().since(before); len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

// host is what the process can see of what it may leave behind.
type host struct{ processes, mounts, fds []string }

func (h host) since(before host) []string {
	var left []string
	for _, set := range []struct {
		kind        string
		after, then []string
	}{{"process", h.processes, before.processes}, {"mount", h.mounts, before.mounts}, {"descriptor", h.fds, before.fds}} {
		for _, item := range set.after {
			if !slices.Contains(set.then, item) {
				left = append(left, set.kind+" "+item)
			}
		}
	}
	return left
}

func hostState() host {
	var h host
	// Descendants of this process. A container's guard is a child of ours until it ends.
	parents := make(map[int]int)
	names := make(map[int]string)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		text := string(b)
		end := strings.LastIndexByte(text, ')')
		fields := strings.Fields(text[end+1:])
		if len(fields) < 2 {
			continue
		}
		parents[pid], _ = strconv.Atoi(fields[1])
		names[pid] = text[:end+1] // and not whether it runs or sleeps
	}
	for pid := range parents {
		for p := parents[pid]; p > 0; p = parents[p] {
			if p == os.Getpid() {
				h.processes = append(h.processes, names[pid])
				break
			}
		}
	}
	// Other test binaries run beside this one: only what can be coracle's counts.
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "coracle") || strings.Contains(line, " overlay ") {
			h.mounts = append(h.mounts, strings.TrimSpace(line))
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	journals := make(map[string]int)
	for _, e := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(target, "/proc/") {
			if dir := filepath.Dir(target); filepath.Base(dir) == "events" {
				// One file of a journal follows the other, with another descriptor.
				journals[dir]++
				h.fds = append(h.fds, fmt.Sprintf("%d of the journal %s", journals[dir], dir))
				continue
			}
			// The parent of all groups, which whoever closes removes when it is empty, and whoever starts makes again.
			if base, was := strings.CutSuffix(target, "/coracle (deleted)"); was {
				target = base + "/coracle"
			}
			h.fds = append(h.fds, e.Name()+" "+target)
		}
	}
	return h
}
