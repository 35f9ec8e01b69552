package coracle

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/inroot"
	"github.com/coracle-dev/coracle/nsexec"
)

// runtimeSpec makes the part of a start's OCI runtime spec that needs no look at the root filesystem: Docker's defaults,
// changed as the resolved spec says.
func (e *Engine) runtimeSpec(st *containerState) (*specs.Spec, error) {
	spec, s, r := nsexec.DefaultSpec(), &st.Spec, &st.Resolved

	p := spec.Process
	p.Args, p.Env, p.Cwd = r.Args, r.Env, r.WorkingDir
	p.Rlimits = s.Rlimits
	p.OOMScoreAdj = s.OOMScoreAdj
	if p.Terminal = s.TTY; s.TTY {
		if s.ConsoleSize != (TerminalSize{}) {
			p.ConsoleSize = &specs.Box{Height: uint(s.ConsoleSize.Rows), Width: uint(s.ConsoleSize.Cols)}
		}
		if !hasEnv(p.Env, "TERM") {
			p.Env = append(slices.Clone(p.Env), "TERM=xterm") // as Docker does
		}
	}

	spec.Hostname, spec.Domainname = r.Hostname, s.Domainname
	if mode, _ := s.networkMode(); mode == NetworkHost {
		spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		if spec.Hostname == "" {
			name, err := os.Hostname()
			if err != nil {
				return nil, err
			}
			spec.Hostname = name
		}
	}
	spec.Linux.Sysctl = s.Sysctls
	limits, err := s.Limits.Resources()
	if err != nil {
		return nil, err
	}
	limits.Devices = append(spec.Linux.Resources.Devices, limits.Devices...)
	spec.Linux.Resources = limits

	if err := s.Security.Apply(spec); err != nil {
		return nil, err
	}
	if err := addDevices(spec, s.Devices); err != nil {
		return nil, err
	}
	setShmSize(spec, s.ShmSize)
	return spec, nil
}

// completeSpec adds to the spec what depends on the root filesystem and on files made for the container: the user, the
// working directory, which is made, and the mounts.
func (e *Engine) completeSpec(spec *specs.Spec, st *containerState, root *os.File, net *connected) error {
	s, r, rootfd := &st.Spec, &st.Resolved, int(root.Fd())
	readFile := func(name string) func() ([]byte, error) {
		return func() ([]byte, error) { return inroot.ReadFile(rootfd, name, maxUserFile) }
	}
	user, home, err := lookUpUser(r.User, s.GroupAdd, readFile("/etc/passwd"), readFile("/etc/group"))
	if err != nil {
		return fmt.Errorf("find user %q: %w", r.User, err)
	}
	spec.Process.User = user
	if !hasEnv(spec.Process.Env, "HOME") {
		spec.Process.Env = append(slices.Clone(spec.Process.Env), "HOME="+home)
	}
	if r.WorkingDir != "/" {
		if err := inroot.MkdirAll(rootfd, r.WorkingDir, 0o755, 0, 0); err != nil {
			return fmt.Errorf("make the working directory: %w", err)
		}
	}
	files, err := e.networkFiles(st, spec.Hostname, net)
	if err != nil {
		return err
	}
	mounts, err := userMounts(s.Mounts)
	if err != nil {
		return err
	}
	spec.Mounts = mergeMounts(spec.Mounts, files, mounts)
	if net != nil {
		setNetworkPath(spec, net.path)
	}
	return nil
}

// setNetworkPath sets which network namespace the container joins; empty: a new one.
func setNetworkPath(spec *specs.Spec, path string) {
	for i := range spec.Linux.Namespaces {
		if n := &spec.Linux.Namespaces[i]; n.Type == specs.NetworkNamespace {
			n.Path = path
		}
	}
}

// withoutDevices takes from a container what the missing device filter would have forbidden to it: to make device nodes,
// and to use those that its image brings along. Its own /dev is another filesystem.
func withoutDevices(spec *specs.Spec, root *os.File) error {
	if c := spec.Process.Capabilities; c != nil {
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted, &c.Inheritable, &c.Ambient} {
			*set = slices.DeleteFunc(slices.Clone(*set), func(name string) bool { return name == "CAP_MKNOD" })
		}
	}
	return setNoDev(root)
}

func setShmSize(spec *specs.Spec, size int64) {
	if size == 0 {
		return
	}
	for i := range spec.Mounts {
		if m := &spec.Mounts[i]; m.Destination == "/dev/shm" {
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "size=") })
			m.Options = append(m.Options, "size="+strconv.FormatInt(size, 10))
		}
	}
}

// userMounts turns the mounts of a container spec into those of the runtime spec.
func userMounts(mounts []Mount) ([]specs.Mount, error) {
	list := make([]specs.Mount, 0, len(mounts))
	for _, m := range mounts {
		target := path.Clean(m.Target)
		if m.Type == MountTmpfs {
			opts := []string{"nosuid", "nodev", "noexec"}
			if slices.Contains(m.Options, "exec") {
				opts = opts[:2]
			}
			mode := cmp.Or(m.TmpfsMode, 0o1777)
			opts = append(opts, "mode="+strconv.FormatUint(uint64(mode), 8))
			if m.TmpfsSize > 0 {
				opts = append(opts, "size="+strconv.FormatInt(m.TmpfsSize, 10))
			}
			if m.ReadOnly {
				opts = append(opts, "ro")
			}
			list = append(list, specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: append(opts, m.Options...)})
			continue
		}
		source := path.Clean(m.Source)
		if _, err := os.Lstat(source); err != nil {
			return nil, fmt.Errorf("bind mount on %s: %w: make the source first", target, err)
		}
		bind := "rbind"
		if m.NonRecursive {
			bind = "bind"
		}
		opts := []string{bind, cmp.Or(m.Propagation, "rprivate")}
		switch {
		case m.ReadOnly && m.NonRecursive:
			opts = append(opts, "ro")
		case m.ReadOnly:
			opts = append(opts, "rro")
		}
		list = append(list, specs.Mount{Destination: target, Type: "bind", Source: source, Options: append(opts, m.Options...)})
	}
	return list, nil
}

// mergeMounts puts mounts together: a later one replaces an earlier one on the same destination, and parents come
// before what is mounted below them.
func mergeMounts(lists ...[]specs.Mount) []specs.Mount {
	var merged []specs.Mount
	for _, list := range lists {
		for _, m := range list {
			merged = slices.DeleteFunc(merged, func(old specs.Mount) bool { return old.Destination == m.Destination })
			merged = append(merged, m)
		}
	}
	slices.SortStableFunc(merged, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	return merged
}

// addDevices makes device nodes of the host known to the container and allows them to it.
func addDevices(spec *specs.Spec, devices []Device) error {
	for _, d := range devices {
		kind, major, minor, mode, uid, gid, err := deviceNode(d.Path)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
		spec.Linux.Devices = append(spec.Linux.Devices, specs.LinuxDevice{
			Path: path.Clean(cmp.Or(d.ContainerPath, d.Path)), Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &uid, GID: &gid,
		})
		spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: kind, Major: &major, Minor: &minor, Access: cmp.Or(d.Permissions, "rwm"),
		})
	}
	return nil
}
