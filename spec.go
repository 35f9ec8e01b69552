package coracle

import (
	"io"
	"net/netip"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/cgroup"
	"github.com/coracle-dev/coracle/nsexec"
)

// A ContainerSpec says what a container is to be. Only Image is required; the zero value of every other field means what
// `docker run IMAGE` would do, except for the network, see Networks. A spec is plain data: it can be copied and, but
// for the streams and Customize, stored as JSON. Create keeps a copy of it.
type ContainerSpec struct {
	// Name is the container's name, unique in the engine's root: letters, digits, "_", "." and "-", beginning with a
	// letter or digit, at most 128 bytes. Empty means the first twelve characters of the id.
	Name string `json:",omitempty"`
	// Image is a reference ("alpine:3.22"), a digest or the id of an image. It is pulled when it is not there, see
	// Pull.
	Image string
	// Pull says when the image is pulled. The zero value means PullMissing.
	Pull PullPolicy `json:",omitempty"`
	// Platform chooses from an image with several, as "linux/arm64". Empty means the host's.
	Platform string `json:",omitempty"`

	// Args replace the image's Cmd and follow its Entrypoint. Nil means the image's Cmd.
	Args []string `json:",omitempty"`
	// Entrypoint replaces the image's Entrypoint, and its Cmd too, as in Docker. Nil means the image's; an empty
	// string as its only element means none.
	Entrypoint []string `json:",omitempty"`
	// Env are "NAME=value" settings on top of the image's; the last one of a name wins. "NAME" alone removes it.
	// PATH, HOME and HOSTNAME are set if nobody sets them.
	Env []string `json:",omitempty"`
	// WorkingDir is made if it is missing. Empty means the image's, or "/".
	WorkingDir string `json:",omitempty"`
	// User is "name", "uid", "name:group" or "uid:gid", looked up in the image's own files. Empty means the image's.
	// A number is always a number, whatever the image's passwd file calls so.
	User string `json:",omitempty"`
	// GroupAdd are further groups of the process, by name or number.
	GroupAdd []string `json:",omitempty"`
	// Hostname is the container's host name. Empty means the first twelve characters of its id, or the host's name
	// with the host network.
	Hostname string `json:",omitempty"`
	// Domainname is the NIS domain name. Empty leaves the kernel's.
	Domainname string `json:",omitempty"`
	// Labels are the container's own; the image's come underneath.
	Labels map[string]string `json:",omitempty"`
	// StopSignal ends the container politely: a name ("SIGTERM", "TERM") or a number. Empty means the image's, or
	// SIGTERM.
	StopSignal string `json:",omitempty"`
	// StopTimeout is how long Stop waits after the stop signal before it kills. Zero means 10 s, StopAtOnce not at all,
	// and a negative one for ever.
	StopTimeout time.Duration `json:",omitempty"`

	// Mounts are bind mounts and tmpfs.
	Mounts []Mount `json:",omitempty"`
	// ShmSize is the size of /dev/shm in bytes. Zero means 64 MB.
	ShmSize int64 `json:",omitempty"`
	// Networks are what the container is connected to. Nil means NetworkBridge. NetworkNone, NetworkHost, "container:NAME"
	// and "ns:PATH" stand for themselves.
	Networks []Attachment `json:",omitempty"`
	// Ports are published on the host, from the first bridge of Networks that is not internal.
	Ports []Port `json:",omitempty"`
	// ExtraHosts are lines for /etc/hosts as "name:address".
	ExtraHosts []string `json:",omitempty"`
	// DNS, DNSSearch and DNSOptions replace what the host's resolv.conf says: the servers that are asked for what is no name
	// of the container's networks, domains to search, and options of resolv.conf(5). Nil means the host's.
	DNS, DNSSearch, DNSOptions []string `json:",omitempty"`

	// Limits bound what the container may use. The zero Limits bound nothing.
	Limits cgroup.Limits
	// Security are capabilities, seccomp, masked paths, a read-only root and the like. The zero Security is Docker's
	// default.
	Security nsexec.Security
	// Devices are device nodes of the host made in the container and allowed to it.
	Devices []Device `json:",omitempty"`
	// Sysctls are kernel parameters of the container's namespaces.
	Sysctls map[string]string `json:",omitempty"`
	// Rlimits replace resource limits inherited from the importing program. Raising a hard limit needs
	// CAP_SYS_RESOURCE.
	Rlimits []specs.POSIXRlimit `json:",omitempty"`
	// OOMScoreAdj is added to the badness of the container's processes, -1000 to 1000. Nil leaves the inherited one.
	OOMScoreAdj *int `json:",omitempty"`

	// Init puts an init in front of the program, as docker run --init does: the container's first process executes the
	// program in a child, forwards signals to it and reaps what nobody waits for. A program that a signal ends gives the
	// exit code 128 and its number, and no Signal in the ExitStatus.
	Init bool `json:",omitempty"`

	// Detached makes the container run on when the engine is closed and when the importing program ends: a keeper, a
	// process of a few dozen kB, writes its log and its exit status. Every later Open of the root finds it. Stdin, Stdout
	// and Stderr must be nil: see Log, OpenStdin and Attach.
	Detached bool `json:",omitempty"`
	// OpenStdin gives the container an input that others can write to, from any program and at any time: see Attach.
	// Otherwise, and without Stdin, it reads nothing.
	OpenStdin bool `json:",omitempty"`

	// TTY gives the container a terminal of its own, as its controlling terminal and as its three streams. If the spec has
	// neither Stdin nor Stdout nor Stderr, what it shows is in the log, and others type and look by Attach.
	TTY bool `json:",omitempty"`
	// ConsoleSize is the size of the terminal at the start. The zero size means that nobody knows.
	ConsoleSize TerminalSize `json:",omitzero"`

	// AutoRemove removes the container when it has ended; a detached one when an engine learns of it.
	AutoRemove bool `json:",omitempty"`
	// Restart says when the container is started again, by Engine.Supervise. The zero policy is "no". Others need Detached.
	Restart RestartPolicy `json:",omitzero"`
	// Health is the container's health check. Nil means the image's.
	Health *HealthSpec `json:",omitempty"`

	// Log says what is kept of the output that the spec does not take itself. The zero LogSpec keeps at most 64 MB of it,
	// unless AutoRemove is set.
	Log LogSpec `json:",omitzero"`

	// Stdin, Stdout and Stderr are the process's streams, as in os/exec: nil means /dev/null, an *os.File is handed
	// over as it is, and anything else is copied through a pipe until the container ends. If Stdout and Stderr are
	// the same, at most one goroutine at a time calls Write.
	Stdin  io.Reader `json:"-"`
	Stdout io.Writer `json:"-"`
	Stderr io.Writer `json:"-"`

	// Customize, if not nil, may change the final OCI runtime spec before every start.
	Customize func(*specs.Spec) error `json:"-"`
}

// An Attachment connects a container to a network.
type Attachment struct {
	// Network is the name or id of a network, NetworkBridge, NetworkNone, NetworkHost, "container:NAME" for the network
	// namespace of another container that runs, or "ns:PATH" for one that a file stands for.
	Network string
	// Aliases are further names under which containers of the network find this one. Several may have the same.
	Aliases []string `json:",omitempty"`
	// IPv4 and IPv6 are the addresses that the container is to have. The zero Addr leaves it to the engine.
	IPv4 netip.Addr `json:",omitzero"`
	IPv6 netip.Addr `json:",omitzero"`
	// MAC is the hardware address, "02:42:ac:11:00:02". Empty leaves it to the engine.
	MAC string `json:",omitempty"`
	// GatewayPriority chooses the network that has the default route: the highest, and of equal ones the first that has a
	// way out.
	GatewayPriority int `json:",omitempty"`
	// Interface is the name of the interface in the container. Empty means "eth" and the attachment's place in Networks.
	Interface string `json:",omitempty"`
}

const (
	// NetworkBridge is the default network of the root, a bridge with IPv4 that is made when it is first needed.
	NetworkBridge = "bridge"
	// NetworkNone is a network namespace with nothing but a loopback interface.
	NetworkNone = "none"
	// NetworkHost is the network namespace of the importing program.
	NetworkHost = "host"
)

// A Device is a device node of the host made in a container.
type Device struct {
	// Path is the node on the host.
	Path string
	// ContainerPath is where it appears. Empty means Path.
	ContainerPath string `json:",omitempty"`
	// Permissions are some of "rwm": read, write, make nodes. Empty means all.
	Permissions string `json:",omitempty"`
}

// Mount types.
const (
	// MountBind mounts a file or directory of the host.
	MountBind = "bind"
	// MountTmpfs mounts an empty filesystem in memory.
	MountTmpfs = "tmpfs"
)

// A Mount puts something at a path of the container.
type Mount struct {
	// Type is MountBind or MountTmpfs. Empty means MountBind.
	Type string `json:",omitempty"`
	// Source is the absolute path on the host that a bind mount shows. It must exist.
	Source string `json:",omitempty"`
	// Target is the absolute path in the container. It is made if it is missing, and never followed out of the
	// container's root.
	Target string
	// ReadOnly forbids writing, recursively for bind mounts.
	ReadOnly bool `json:",omitempty"`
	// Propagation of a bind mount: "private", "rprivate", "slave", "rslave", "shared" or "rshared". Empty means
	// "rprivate".
	Propagation string `json:",omitempty"`
	// NonRecursive leaves out what is mounted below the source of a bind mount.
	NonRecursive bool `json:",omitempty"`
	// TmpfsSize is the size of a tmpfs in bytes. Zero means half the memory of the host.
	TmpfsSize int64 `json:",omitempty"`
	// TmpfsMode is the mode of a tmpfs's root. Zero means 1777.
	TmpfsMode uint32 `json:",omitempty"`
	// Options are further mount options of the runtime spec, such as "noexec" or "nosuid".
	Options []string `json:",omitempty"`
}
