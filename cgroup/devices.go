package cgroup

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// anyNumber stands for all major or minor numbers.
const anyNumber = -1

// A deviceKey is what an exception is about: 'b' or 'c', and the numbers.
type deviceKey struct {
	kind         byte
	major, minor int64
}

// The bits of an access, as in struct bpf_cgroup_dev_ctx.
const (
	accessMknod = 1 << iota
	accessRead
	accessWrite
	accessAll = accessMknod | accessRead | accessWrite
)

var accessNames = [...]struct {
	bit  int
	name byte
}{{accessRead, 'r'}, {accessWrite, 'w'}, {accessMknod, 'm'}}

// A deviceException is something that is treated unlike the rest.
type deviceException struct {
	deviceKey
	access int
}

// deviceRules is a list of rules as the controller of version 1 keeps it: all is allowed or all is denied, except for
// some. Both versions get their filter from this, so that a list means the same in both.
type deviceRules struct {
	allow      bool
	exceptions []deviceException
}

// maxDeviceRules bounds a list: with 7 instructions for each, the program stays below the 4096 that every kernel takes.
const maxDeviceRules = 512

// newDeviceRules reduces a list of rules, each of which changes what those before it said (config-linux, Allowed Device
// list). It begins with the opposite of the first rule, so that a list that only allows is a list of what is allowed.
func newDeviceRules(list []specs.LinuxDeviceCgroup) (*deviceRules, error) {
	if len(list) > maxDeviceRules {
		return nil, invalid("Devices", len(list), fmt.Sprintf("are more than %d rules", maxDeviceRules))
	}
	rules := &deviceRules{allow: len(list) == 0 || !list[0].Allow}
	for i := range list {
		field := fmt.Sprintf("Devices[%d]", i)
		if err := checkDevice(field, &list[i]); err != nil {
			return nil, err
		}
		if !rules.add(&list[i]) {
			// The controller of version 1 has no exceptions from exceptions, and would ignore the rule.
			return nil, invalid(field, deviceText(&list[i]), "takes back a part of an earlier rule: write that one more narrowly")
		}
	}
	return rules, nil
}

func deviceText(r *specs.LinuxDeviceCgroup) string {
	e := newException(r)
	return e.line()
}

func newException(r *specs.LinuxDeviceCgroup) deviceException {
	e := deviceException{deviceKey: deviceKey{kind: 'a', major: anyNumber, minor: anyNumber}}
	if r.Type != "" {
		e.kind = r.Type[0]
	}
	if r.Major != nil && *r.Major >= 0 {
		e.major = *r.Major
	}
	if r.Minor != nil && *r.Minor >= 0 {
		e.minor = *r.Minor
	}
	for _, a := range accessNames {
		if r.Access == "" || strings.IndexByte(r.Access, a.name) >= 0 {
			e.access |= a.bit
		}
	}
	return e
}

// add applies a rule, and reports whether that can be expressed.
func (d *deviceRules) add(r *specs.LinuxDeviceCgroup) bool {
	e := newException(r)
	if e.kind != 'a' {
		return d.except(e, r.Allow)
	}
	if e.major == anyNumber && e.minor == anyNumber && e.access == accessAll {
		*d = deviceRules{allow: r.Allow}
		return true
	}
	// Version 1 would take "a" for everything, whatever the numbers are.
	block, char := e, e
	block.kind, char.kind = 'b', 'c'
	return d.except(block, r.Allow) && d.except(char, r.Allow)
}

// except adds an exception, or takes some away if it says what is said of the rest.
func (d *deviceRules) except(e deviceException, allow bool) bool {
	if allow != d.allow {
		at := slices.IndexFunc(d.exceptions, func(have deviceException) bool { return have.deviceKey == e.deviceKey })
		if at >= 0 {
			d.exceptions[at].access |= e.access
		} else {
			d.exceptions = append(d.exceptions, e)
		}
		return true
	}
	for _, have := range d.exceptions {
		if have.access&e.access != 0 && overlap(have.deviceKey, e.deviceKey) && !covers(e.deviceKey, have.deviceKey) {
			return false
		}
	}
	kept := d.exceptions[:0]
	for _, have := range d.exceptions {
		if covers(e.deviceKey, have.deviceKey) {
			have.access &^= e.access
		}
		if have.access != 0 {
			kept = append(kept, have)
		}
	}
	d.exceptions = kept
	return true
}

func overlap(a, b deviceKey) bool {
	same := func(x, y int64) bool { return x == y || x == anyNumber || y == anyNumber }
	return a.kind == b.kind && same(a.major, b.major) && same(a.minor, b.minor)
}

// covers reports whether a speaks of all devices that b speaks of.
func covers(a, b deviceKey) bool {
	in := func(x, y int64) bool { return x == anyNumber || x == y }
	return a.kind == b.kind && in(a.major, b.major) && in(a.minor, b.minor)
}

// line is the exception as version 1 takes it: "c 1:3 rwm".
func (e *deviceException) line() string {
	b := append(make([]byte, 0, 24), e.kind, ' ')
	number := func(n int64) {
		if n == anyNumber {
			b = append(b, '*')
		} else {
			b = append(b, itoa(n)...)
		}
	}
	number(e.major)
	b = append(b, ':')
	number(e.minor)
	b = append(b, ' ')
	for _, a := range accessNames {
		if e.access&a.bit != 0 {
			b = append(b, a.name)
		}
	}
	return string(b)
}

// parseDeviceList reads what a group of version 1 has at present from its devices.list. One that allows everything shows
// as "a *:* rwm", with or without exceptions.
func parseDeviceList(list string) (*deviceRules, error) {
	d := &deviceRules{}
	for line := range strings.Lines(list) {
		var kind, access string
		var number [2]string
		line = strings.TrimSuffix(line, "\n")
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ':' })
		if len(f) != 4 {
			return nil, fmt.Errorf("devices.list: %.64q is no rule", line)
		}
		kind, number[0], number[1], access = f[0], f[1], f[2], f[3]
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		for i, to := range []**int64{&r.Major, &r.Minor} {
			if number[i] == "*" {
				continue
			}
			var n int64
			if _, err := fmt.Sscanf(number[i], "%d", &n); err != nil {
				return nil, fmt.Errorf("devices.list: %.64q is no rule: %w", line, err)
			}
			*to = &n
		}
		if err := checkDevice("devices.list", &r); err != nil {
			return nil, err
		}
		d.add(&r) // allows where nothing was allowed: always possible
	}
	return d, nil
}

// Instructions of BPF (linux/bpf_common.h, linux/bpf.h). A jump skips as many instructions as its offset says.
const (
	bpfLoadWord  = 0x61 // dst = *(u32 *)(src + offset)
	bpfMove32    = 0xbc // dst = src
	bpfMove32Imm = 0xb4 // dst = immediate
	bpfAnd32Imm  = 0x54 // dst &= immediate
	bpfShift32   = 0x74 // dst >>= immediate
	bpfJump      = 0x05
	bpfJumpNe32  = 0x56 // if dst != immediate
	bpfJumpSet32 = 0x46 // if dst & immediate
	bpfExit      = 0x95
)

// program is the rules as a BPF program of type BPF_PROG_TYPE_CGROUP_DEVICE, which returns 1 for what is allowed. Its
// argument is struct bpf_cgroup_dev_ctx: the access in the upper and the kind in the lower half of the first word, then
// major and minor.
func (d *deviceRules) program() []byte {
	p := make([]byte, 0, 8*(8+7*len(d.exceptions)))
	emit := func(op, dst, src byte, offset int16, immediate uint32) {
		p = append(p, op, src<<4|dst) // as little-endian machines have the two halves
		p = binary.LittleEndian.AppendUint16(p, uint16(offset))
		p = binary.LittleEndian.AppendUint32(p, immediate)
	}
	verdict := map[bool]uint32{true: 1}
	const kind, access, major, minor = 2, 3, 4, 5 // registers
	emit(bpfLoadWord, kind, 1, 0, 0)
	emit(bpfMove32, access, kind, 0, 0)
	emit(bpfAnd32Imm, kind, 0, 0, 0xffff)
	emit(bpfShift32, access, 0, 0, 16)
	emit(bpfLoadWord, major, 1, 4, 0)
	emit(bpfLoadWord, minor, 1, 8, 0)
	for _, e := range d.exceptions {
		left := int16(2) // instructions between this test and the next exception: move and exit
		partial := e.access != accessAll
		switch {
		case partial && d.allow:
			left += 2
		case partial:
			left++
		}
		if e.major != anyNumber {
			left++
		}
		if e.minor != anyNumber {
			left++
		}
		number := uint32(1) // BPF_DEVCG_DEV_BLOCK
		if e.kind == 'c' {
			number = 2
		}
		emit(bpfJumpNe32, kind, 0, left, number)
		if e.major != anyNumber {
			left--
			emit(bpfJumpNe32, major, 0, left, uint32(e.major))
		}
		if e.minor != anyNumber {
			left--
			emit(bpfJumpNe32, minor, 0, left, uint32(e.minor))
		}
		switch {
		case partial && d.allow: // denied if any of it is
			emit(bpfJumpSet32, access, 0, 1, uint32(e.access))
			emit(bpfJump, 0, 0, 2, 0)
		case partial: // allowed if all of it is
			emit(bpfJumpSet32, access, 0, 2, uint32(accessAll&^e.access))
		}
		emit(bpfMove32Imm, 0, 0, 0, verdict[!d.allow])
		emit(bpfExit, 0, 0, 0, 0)
	}
	emit(bpfMove32Imm, 0, 0, 0, verdict[d.allow])
	emit(bpfExit, 0, 0, 0, 0)
	return p
}
