// Package cgroup bounds, measures, freezes and kills groups of processes by Linux control groups: version 2, version 1,
// and the hybrid of both.
//
// [Open] looks at the machine once and prepares a parent. [Hierarchy.Create] makes a group with limits below it, and
// [Group.Join] opens what puts a new process into it: in version 2 the directory that clone3 takes with
// CLONE_INTO_CGROUP, in version 1 the tasks files that the process writes 0 to. Limits are those of the OCI runtime
// spec; [Limits] is the same in Docker's words.
//
// # Where groups are
//
// All groups of a Hierarchy are directories in one parent: Config.Parent, else /coracle, at the top of each hierarchy.
// Where the top may not be written, the same path is tried below each ancestor of the cgroup of this process, from the
// top: that finds what systemd delegated to a user. Controllers are never enabled in a cgroup that holds processes, the
// root excepted.
//
// # Devices
//
// Device rules are a list of version 1, or a BPF program where there is no such list. Where neither can be had they are
// an error like any limit, unless this process could not make a device node either, for want of CAP_MKNOD or in a user
// namespace: then a container cannot, and the rules are ignored, and logged once.
//
// # Where cgroups are missing
//
// A machine without cgroups, or with cgroups that may not be written, is no error to Open. Groups made without limits
// do nothing there; a limit that cannot be had is an [UnsupportedError], which says what is missing.
//
// # Use
//
// A group holds no file descriptors, so thousands may exist. Hierarchy and Group may be used by many goroutines.
package cgroup
