package cgroup

import (
	"bytes"
	"slices"
	"strings"
)

// An undo is one file of a group as it was before an update: what is written to it brings it back.
type undo struct {
	tree        *tree
	file, value string
}

// keyed are the files with a line for each device: a write changes one line.
var keyed = []string{"io.max", "io.weight", "io.bfq.weight", "blkio.bfq.weight_device", "blkio.weight_device", "blkio.leaf_weight_device", "rdma.max", "net_prio.ifpriomap"}

// undoOf reads what a write to a file is going to change. Files that cannot be read have no undo: the write that follows
// then says what is wrong with them.
func (g *Group) undoOf(t *tree, dir int, file, value string) (undo, bool) {
	data, err := readAt(dir, g.name+"/"+file)
	if err != nil {
		return undo{}, false
	}
	now := string(bytes.TrimSpace(data))
	switch {
	case slices.Contains(keyed, file) || strings.HasPrefix(file, "blkio.throttle."):
		key, _, _ := strings.Cut(value, " ")
		now = keyedLine(now, file, key)
	case file == "memory.oom_control":
		now = itoa(field(data, "oom_kill_disable"))
	}
	if now == "" {
		now = "\n" // an empty list of processors; a write of nothing is none
	}
	return undo{t, file, now}, true
}

// keyedLine is the line of a key, or what means that it has none.
func keyedLine(data, file, key string) string {
	for line := range strings.Lines(data) {
		if first, _, _ := strings.Cut(line, " "); first == key {
			return strings.TrimSpace(line)
		}
	}
	switch {
	case file == "io.max":
		return key + " rbps=max wbps=max riops=max wiops=max"
	case file == "io.weight", file == "io.bfq.weight":
		if !strings.Contains(key, ":") {
			return strings.TrimSpace(data) // "default 100", or a number alone
		}
		return key + " default"
	case file == "rdma.max":
		return key + " hca_handle=max hca_object=max"
	}
	return key + " 0"
}

// rollBack brings the files back, the last one first: limits that bound each other were written in an order that worked.
func (g *Group) rollBack(done []undo) {
	for _, u := range slices.Backward(done) {
		dir, err := u.tree.dir()
		if err == nil {
			err = writeAt(dir, g.name+"/"+u.file, u.value)
		}
		if err != nil {
			g.h.logOnce("cgroup: a limit could not be brought back after a failed update", "file", u.file, "value", u.value, "error", err)
		}
	}
}
