package nsexec

import (
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities are the five sets.
type capabilities struct{ bounding, effective, permitted, inheritable, ambient uint64 }

func (c *compiler) checkCapabilities() {
	s := c.spec.Process.Capabilities
	if s == nil {
		// config.md leaves it open what a missing field means: nothing is granted then.
		return
	}
	set := func(name string, list []string) (bits uint64) {
		for i, n := range list {
			b := capabilityBit(n)
			if b == 0 {
				c.invalid(index("process.capabilities."+name, i), "unknown capability %q", n)
			}
			bits |= b
		}
		return bits
	}
	c.caps = capabilities{
		bounding:    set("bounding", s.Bounding),
		effective:   set("effective", s.Effective),
		permitted:   set("permitted", s.Permitted),
		inheritable: set("inheritable", s.Inheritable),
		ambient:     set("ambient", s.Ambient),
	}
	k := &c.caps
	switch {
	case k.effective&^k.permitted != 0:
		c.invalid("process.capabilities.effective", "%s: not in permitted", capabilityText(k.effective&^k.permitted))
	case k.ambient&^(k.permitted&k.inheritable) != 0:
		c.invalid("process.capabilities.ambient", "%s: not in both permitted and inheritable", capabilityText(k.ambient&^(k.permitted&k.inheritable)))
	}
}

func capabilityText(bits uint64) string {
	if bits == 0 {
		return "0"
	}
	if bits == 1<<len(capabilityNames)-1 {
		return "ALL"
	}
	var b strings.Builder
	for i, n := range capabilityNames {
		if bits>>i&1 != 0 {
			if b.Len() > 0 {
				b.WriteByte('|')
			}
			b.WriteString(n)
		}
	}
	return b.String()
}

// setCredentials emits the way from root to what the spec allows. The order is the kernel's: dropping from the
// bounding set needs CAP_SETPCAP, groups need CAP_SETGID, ids CAP_SETUID, and a filter without no_new_privs needs
// CAP_SYS_ADMIN, which therefore survives until it is installed.
func (c *compiler) setCredentials() {
	p := c.spec.Process
	for i := range capabilityNames {
		if c.caps.bounding>>i&1 == 0 {
			// A kernel that does not know the capability cannot grant it either: EINVAL.
			drop := c.Syscall("drop "+capabilityNames[i], unix.SYS_PRCTL, Const(unix.PR_CAPBSET_DROP).As("PR_CAPBSET_DROP"), Int(i).As(capabilityNames[i]))
			if i > unix.CAP_AUDIT_READ {
				drop.Ignore()
			}
		}
	}
	early := !p.NoNewPrivileges && c.filter != nil
	if p.User.UID != 0 {
		c.Syscall("keep capabilities across the change of user", unix.SYS_PRCTL, Const(unix.PR_SET_KEEPCAPS).As("PR_SET_KEEPCAPS"), Const(1))
	}
	c.setGroups()
	gid, uid := Const(uint64(p.User.GID)), Const(uint64(p.User.UID))
	c.Syscall("set the group", unix.SYS_SETRESGID, gid, gid, gid)
	c.Syscall("set the user", unix.SYS_SETRESUID, uid, uid, uid)
	if p.User.UID != 0 || p.User.GID != 0 {
		// The kernel has set it to fs.suid_dumpable, which may let others of the same user look in.
		c.Syscall("stay undumpable", unix.SYS_PRCTL, Const(unix.PR_SET_DUMPABLE).As("PR_SET_DUMPABLE"), Const(0))
	}
	c.dieWithJoiner()
	c.changeDirectoryAgain()
	if early {
		if p.User.UID != 0 {
			const admin = uint64(1) << unix.CAP_SYS_ADMIN
			c.capset("keep CAP_SYS_ADMIN for the filter", admin, c.caps.permitted|c.caps.inheritable|admin, 0)
		}
		c.installSeccomp()
	}
	c.capset("set the capabilities", c.caps.effective, c.caps.permitted, c.caps.inheritable)
	// What is not inheritable has left the ambient set with capset.
	if c.caps.inheritable != 0 {
		c.Syscall("empty the ambient set", unix.SYS_PRCTL, Const(unix.PR_CAP_AMBIENT).As("PR_CAP_AMBIENT"),
			Const(unix.PR_CAP_AMBIENT_CLEAR_ALL).As("PR_CAP_AMBIENT_CLEAR_ALL"), Const(0), Const(0), Const(0))
	}
	for i := range capabilityNames {
		if c.caps.ambient>>i&1 != 0 {
			c.Syscall("make "+capabilityNames[i]+" ambient", unix.SYS_PRCTL, Const(unix.PR_CAP_AMBIENT).As("PR_CAP_AMBIENT"),
				Const(unix.PR_CAP_AMBIENT_RAISE).As("PR_CAP_AMBIENT_RAISE"), Int(i).As(capabilityNames[i]), Const(0), Const(0))
		}
	}
	if p.NoNewPrivileges {
		c.Syscall("set no_new_privs", unix.SYS_PRCTL, Const(unix.PR_SET_NO_NEW_PRIVS).As("PR_SET_NO_NEW_PRIVS"), Const(1), Const(0), Const(0), Const(0))
	}
}

// setGroups sets the exact list of supplementary groups (CVE-2022-36109). Docker's includes the primary group; what is
// in the list is up to the spec.
func (c *compiler) setGroups() {
	gids := c.spec.Process.User.AdditionalGids
	if len(gids) == 0 {
		groups := c.Syscall("set no supplementary groups", unix.SYS_SETGROUPS, Const(0), Const(0))
		if c.inUserNamespace() {
			groups.Ignore() // denied to an unprivileged creator, who has none to lose
		}
		return
	}
	list := make([]byte, 0, 4*len(gids))
	for _, g := range gids {
		list = append(list, byte(g), byte(g>>8), byte(g>>16), byte(g>>24))
	}
	c.Syscall("set the supplementary groups", unix.SYS_SETGROUPS, Int(len(gids)), c.Bytes(list))
}

func (c *compiler) capset(label string, effective, permitted, inheritable uint64) {
	header := c.Words(Const(unix.LINUX_CAPABILITY_VERSION_3)) // and pid 0
	data := c.Words(
		Const(effective&0xffffffff|permitted<<32),
		Const(inheritable&0xffffffff|effective>>32<<32),
		Const(permitted>>32|inheritable>>32<<32),
	).As("{effective: " + capabilityText(effective) + ", permitted: " + capabilityText(permitted) + ", inheritable: " + capabilityText(inheritable) + "}")
	c.Syscall(label, unix.SYS_CAPSET, header, data)
}
