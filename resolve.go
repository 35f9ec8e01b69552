package coracle

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// resolvedSpec is what a ContainerSpec and its image's configuration say together. What depends on the image's files
// (users) or on the host (names, devices) is settled at the start, in runtimespec.go.
type resolvedSpec struct {
	Args       []string
	Env        []string
	WorkingDir string
	User       string
	StopSignal string
	Hostname   string
	Labels     map[string]string
	Health     *healthCheck `json:",omitempty"`
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// resolve applies Docker's rules; see also the conversion rules of the OCI image specification.
func (s *ContainerSpec) resolve(image ocispec.ImageConfig, id string) (resolvedSpec, error) {
	r := resolvedSpec{
		WorkingDir: firstOf(s.WorkingDir, image.WorkingDir, "/"),
		User:       firstOf(s.User, image.User),
		StopSignal: firstOf(s.StopSignal, image.StopSignal, "SIGTERM"),
		Hostname:   s.Hostname,
		Labels:     maps.Clone(image.Labels),
	}
	if mode, _ := s.networkMode(); r.Hostname == "" && mode != NetworkHost {
		r.Hostname = id[:12]
	}
	r.WorkingDir = path.Clean("/" + r.WorkingDir)
	if len(s.Labels) > 0 && r.Labels == nil {
		r.Labels = make(map[string]string, len(s.Labels))
	}
	maps.Copy(r.Labels, s.Labels)

	entrypoint, cmd := image.Entrypoint, image.Cmd
	if s.Entrypoint != nil {
		entrypoint, cmd = s.Entrypoint, nil
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
	}
	if s.Args != nil {
		cmd = s.Args
	}
	r.Args = slices.Concat(entrypoint, cmd)
	if len(r.Args) == 0 || r.Args[0] == "" {
		return r, fmt.Errorf("%w: nothing to execute: the image has neither entrypoint nor command: set Args", ErrInvalid)
	}
	if _, err := parseSignal(r.StopSignal); err != nil {
		return r, err
	}
	env := []string{defaultPath}
	if r.Hostname != "" {
		env = append(env, "HOSTNAME="+r.Hostname)
	}
	r.Env = mergeEnv(env, image.Env, s.Env)
	return r, nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// mergeEnv lays settings on top of each other: the last one of a name wins, at the place of the first. A name without
// "=" removes the setting.
func mergeEnv(lists ...[]string) []string {
	var env []string
	at := make(map[string]int)
	for _, list := range lists {
		for _, setting := range list {
			name, _, isSetting := strings.Cut(setting, "=")
			i, known := at[name]
			switch {
			case !isSetting && known:
				env[i] = ""
				delete(at, name)
			case !isSetting:
			case known:
				env[i] = setting
			default:
				at[name] = len(env)
				env = append(env, setting)
			}
		}
	}
	return slices.DeleteFunc(env, func(s string) bool { return s == "" })
}

// hasEnv reports whether a variable is set.
func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
}

// validate checks what can be checked without the image.
func (s *ContainerSpec) validate() error {
	invalid := func(field, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrInvalid, field, fmt.Sprintf(format, args...))
	}
	if s.Image == "" {
		return invalid("Image", "no image is named")
	}
	if s.Name != "" && !validName(s.Name) {
		return invalid("Name", "%q has other characters than letters, digits, \"_\", \".\" and \"-\", begins with one of these, or has more than 128", s.Name)
	}
	for _, list := range []struct {
		field  string
		values []string
	}{{"Args", s.Args}, {"Entrypoint", s.Entrypoint}, {"Env", s.Env}, {"User", []string{s.User}}, {"WorkingDir", []string{s.WorkingDir}}} {
		for _, v := range list.values {
			if strings.ContainsRune(v, 0) {
				return invalid(list.field, "%q has a NUL byte", v)
			}
		}
	}
	for _, v := range s.Env {
		if v == "" || v[0] == '=' {
			return invalid("Env", "%q has no name", v)
		}
	}
	if len(s.Hostname) > 64 || strings.ContainsAny(s.Hostname, "\x00/\n\t ") {
		return invalid("Hostname", "%q is no host name, or longer than the 64 bytes of Linux", s.Hostname)
	}
	if len(s.Domainname) > 64 {
		return invalid("Domainname", "longer than the 64 bytes of Linux")
	}
	if s.WorkingDir != "" && !path.IsAbs(s.WorkingDir) {
		return invalid("WorkingDir", "%q is not absolute", s.WorkingDir)
	}
	if s.Detached && s.takesStreams() {
		return invalid("Detached", "Stdin, Stdout and Stderr belong to this program, which the container outlives: use Log, OpenStdin and Attach")
	}
	if s.OpenStdin && s.Stdin != nil {
		return invalid("OpenStdin", "Stdin is set too")
	}
	if s.TTY && !s.takesStreams() && !s.keepsLog() {
		return invalid("TTY", "without a log and without streams nobody sees it: set Log.Mode to LogFile, or Stdout")
	}
	if s.TTY && s.Stderr != nil && !sameWriter(s.Stdout, s.Stderr) {
		return invalid("Stderr", "a terminal has one output: use Stdout")
	}
	if s.ShmSize < 0 {
		return invalid("ShmSize", "negative")
	}
	if err := s.validateNetworks(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for i, m := range s.Mounts {
		if err := m.validate(); err != nil {
			return invalid(fmt.Sprintf("Mounts[%d]", i), "%v", err)
		}
	}
	for i, d := range s.Devices {
		if !path.IsAbs(d.Path) || d.ContainerPath != "" && !path.IsAbs(d.ContainerPath) || strings.Trim(d.Permissions, "rwm") != "" {
			return invalid(fmt.Sprintf("Devices[%d]", i), "%q needs absolute paths and permissions of \"rwm\"", d.Path)
		}
	}
	if err := s.Restart.validate(s); err != nil {
		return invalid("Restart", "%v", err)
	}
	if s.Health != nil {
		if err := s.Health.validate(); err != nil {
			return err
		}
	}
	if err := s.Log.validate(); err != nil {
		return invalid("Log", "%v", err)
	}
	if err := s.Limits.Validate(); err != nil {
		return invalid("Limits", "%v", err)
	}
	return nil
}

func (m *Mount) validate() error {
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		return fmt.Errorf("the Target %q is not an absolute path below the root", m.Target)
	}
	switch m.Type {
	case "", MountBind:
		if !path.IsAbs(m.Source) {
			return fmt.Errorf("the Source %q is not absolute", m.Source)
		}
		if p := m.Propagation; p != "" && !slices.Contains([]string{"private", "rprivate", "slave", "rslave", "shared", "rshared"}, p) {
			return fmt.Errorf("the Propagation %q is unknown", p)
		}
		if m.TmpfsSize != 0 || m.TmpfsMode != 0 {
			return fmt.Errorf("a bind mount has no TmpfsSize and no TmpfsMode")
		}
	case MountTmpfs:
		if m.Source != "" || m.Propagation != "" || m.NonRecursive {
			return fmt.Errorf("a tmpfs has no Source, Propagation or NonRecursive")
		}
		if m.TmpfsSize < 0 || m.TmpfsMode > 0o7777 {
			return fmt.Errorf("TmpfsSize %d or TmpfsMode %o is out of range", m.TmpfsSize, m.TmpfsMode)
		}
	default:
		return fmt.Errorf("the Type %q is unknown", m.Type)
	}
	return nil
}

// clone copies the spec deeply enough that the caller may change its own.
func (s *ContainerSpec) clone() ContainerSpec {
	c := *s
	c.Args, c.Entrypoint, c.Env = slices.Clone(s.Args), slices.Clone(s.Entrypoint), slices.Clone(s.Env)
	c.GroupAdd, c.ExtraHosts = slices.Clone(s.GroupAdd), slices.Clone(s.ExtraHosts)
	c.DNS, c.DNSSearch, c.DNSOptions = slices.Clone(s.DNS), slices.Clone(s.DNSSearch), slices.Clone(s.DNSOptions)
	c.Labels, c.Sysctls = maps.Clone(s.Labels), maps.Clone(s.Sysctls)
	c.Networks, c.Devices, c.Rlimits = slices.Clone(s.Networks), slices.Clone(s.Devices), slices.Clone(s.Rlimits)
	for i := range c.Networks {
		c.Networks[i].Aliases = slices.Clone(c.Networks[i].Aliases)
	}
	c.Ports = slices.Clone(s.Ports)
	if s.Health != nil {
		h := *s.Health
		h.Test = slices.Clone(h.Test)
		c.Health = &h
	}
	c.Mounts = slices.Clone(s.Mounts)
	for i := range c.Mounts {
		c.Mounts[i].Options = slices.Clone(c.Mounts[i].Options)
	}
	return c
}

// parseSignal implements ParseSignal.
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if rt, ok := strings.CutPrefix(name, "RTMAX"); ok {
		if n, err := strconv.Atoi(strings.TrimPrefix(rt, "-")); rt == "" || err == nil && n >= 0 && n <= 30 && rt[0] == '-' {
			return syscall.Signal(64 - n), nil
		}
	}
	if rt, ok := strings.CutPrefix(name, "RTMIN"); ok {
		if n, err := strconv.Atoi(strings.TrimPrefix(rt, "+")); rt == "" || err == nil && n >= 0 && n <= 30 {
			return syscall.Signal(34 + n), nil
		}
	}
	if n := signalNumber("SIG" + name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("%w: %q is no signal", ErrInvalid, s)
}
