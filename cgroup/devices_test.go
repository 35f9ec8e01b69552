package cgroup

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func rule(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: &major, Minor: &minor, Access: access}
}

func TestNewDeviceRules(t *testing.T) {
	deny, allow := specs.LinuxDeviceCgroup{}, specs.LinuxDeviceCgroup{Allow: true}
	for _, tt := range []struct {
		name  string
		rules []specs.LinuxDeviceCgroup
		want  string // "allow" or "deny", and the exceptions; "error: ..." for what fails
	}{
		{"none", nil, "allow"},
		{"deny all", []specs.LinuxDeviceCgroup{deny}, "deny"},
		{"all after the rest", []specs.LinuxDeviceCgroup{deny, rule(true, "c", 1, 3, "rwm"), allow}, "allow"},
		{"only allows", []specs.LinuxDeviceCgroup{rule(true, "c", 1, 3, "rwm")}, "deny, c 1:3 rwm"},
		{"only denies", []specs.LinuxDeviceCgroup{rule(false, "b", 8, -1, "w")}, "allow, b 8:* w"},
		{"added up", []specs.LinuxDeviceCgroup{deny, rule(true, "c", 1, 3, "r"), rule(true, "c", 1, 3, "w")}, "deny, c 1:3 rw"},
		{"taken back", []specs.LinuxDeviceCgroup{deny, rule(true, "c", 1, 3, "rw"), rule(false, "c", 1, 3, "w")}, "deny, c 1:3 r"},
		{"taken back widely", []specs.LinuxDeviceCgroup{deny, rule(true, "c", 1, 3, "rw"), rule(true, "c", 5, 0, "m"),
			rule(false, "c", -1, -1, "rwm")}, "deny"},
		{"no access is all", []specs.LinuxDeviceCgroup{deny, rule(true, "c", 1, 3, "")}, "deny, c 1:3 rwm"},
		{"all kinds of a number", []specs.LinuxDeviceCgroup{deny, rule(true, "a", 7, -1, "r")}, "deny, b 7:* r, c 7:* r"},
		{"part of a wide one", []specs.LinuxDeviceCgroup{deny, rule(true, "c", 1, -1, "rw"), rule(false, "c", 1, 3, "w")},
			`error: Devices[2] "c 1:3 w"`},
		{"kind", []specs.LinuxDeviceCgroup{rule(true, "x", 1, 3, "r")}, "error: Devices[0].Type"},
		{"access", []specs.LinuxDeviceCgroup{rule(true, "c", 1, 3, "rx")}, "error: Devices[0].Access"},
		{"access with a line", []specs.LinuxDeviceCgroup{rule(true, "c", 1, 3, "r\na")}, "error: Devices[0].Access"},
		{"too many", make([]specs.LinuxDeviceCgroup, 513), "error: Devices"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := newDeviceRules(tt.rules)
			want, fails := strings.CutPrefix(tt.want, "error: ")
			if fails {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want an error about %s", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := d.text(); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}

func (d *deviceRules) text() string {
	parts := []string{"deny"}
	if d.allow {
		parts[0] = "allow"
	}
	for _, e := range d.exceptions {
		parts = append(parts, e.line())
	}
	return strings.Join(parts, ", ")
}

func TestParseDeviceList(t *testing.T) {
	for list, want := range map[string]string{
		"a *:* rwm\n":                   "allow",
		"":                              "deny",
		"c 1:3 rwm\nb *:* m\nc 136:* r": "deny, c 1:3 rwm, b *:* m, c 136:* r",
	} {
		d, err := parseDeviceList(list)
		if err != nil || d.text() != want {
			t.Errorf("%q: %v, %v", list, d, err)
		}
	}
	for _, list := range []string{"x", "c 1 rwm", "c 1:x rwm", "z 1:3 rwm", "c 1:3 q", "\n"} {
		if d, err := parseDeviceList(list); err == nil {
			t.Errorf("%q: %v", list, d)
		}
	}
}

// decide says what the v1 controller would (match_exception in security/device_cgroup.c).
func (d *deviceRules) decide(kind byte, major, minor int64, access int) bool {
	for _, e := range d.exceptions {
		if !covers(e.deviceKey, deviceKey{kind, major, minor}) {
			continue
		}
		if d.allow && access&e.access != 0 {
			return false
		}
		if !d.allow && access&^e.access == 0 {
			return true
		}
	}
	return d.allow
}

// interpret runs a program as the kernel would.
func interpret(t *testing.T, p []byte, kind byte, major, minor int64, access int) bool {
	t.Helper()
	number := uint32(1)
	if kind == 'c' {
		number = 2
	}
	context := []uint32{uint32(access)<<16 | number, uint32(major), uint32(minor)}
	var r [11]uint32
	for at := 0; at < len(p)/8; at++ {
		i := p[8*at:]
		dst, src := i[1]&15, i[1]>>4
		offset, imm := int(int16(binary.LittleEndian.Uint16(i[2:]))), binary.LittleEndian.Uint32(i[4:])
		switch i[0] {
		case bpfLoadWord:
			r[dst] = context[offset/4]
		case bpfMove32:
			r[dst] = r[src]
		case bpfMove32Imm:
			r[dst] = imm
		case bpfAnd32Imm:
			r[dst] &= imm
		case bpfShift32:
			r[dst] >>= imm
		case bpfJump:
			at += offset
		case bpfJumpNe32:
			if r[dst] != imm {
				at += offset
			}
		case bpfJumpSet32:
			if r[dst]&imm != 0 {
				at += offset
			}
		case bpfExit:
			return r[0] == 1
		default:
			t.Fatalf("instruction %#x", i[0])
		}
	}
	t.Fatal("the program ran over its end")
	return false
}

// The program of v2 and the list of v1 say the same about everything.
func TestProgram(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	numbers := []int64{anyNumber, 0, 1, 2, 4095}
	accesses := []string{"", "r", "w", "m", "rw", "rm", "wm", "rwm"}
	tried := 0
	for tried < 3000 {
		list := make([]specs.LinuxDeviceCgroup, random.IntN(6))
		for i := range list {
			list[i] = rule(random.IntN(2) == 0, []string{"a", "b", "c", ""}[random.IntN(4)],
				numbers[random.IntN(len(numbers))], numbers[random.IntN(len(numbers))], accesses[random.IntN(len(accesses))])
		}
		d, err := newDeviceRules(list)
		if err != nil {
			continue
		}
		tried++
		p := d.program()
		for _, kind := range []byte("bc") {
			for _, major := range numbers[1:] {
				for _, minor := range numbers[1:] {
					for access := 1; access <= accessAll; access++ {
						want := d.decide(kind, major, minor, access)
						if got := interpret(t, p, kind, major, minor, access); got != want {
							t.Fatalf("%s: %c %d:%d access %d: %v, want %v", d.text(), kind, major, minor, access, got, want)
						}
					}
				}
			}
		}
	}
}

func FuzzParseDeviceList(f *testing.F) {
	f.Add("c 1:3 rwm\nb *:* m\n")
	f.Add("a *:* rwm\n")
	f.Fuzz(func(t *testing.T, list string) {
		d, err := parseDeviceList(list)
		if err != nil {
			return
		}
		for _, e := range d.exceptions {
			again, err := parseDeviceList(e.line())
			if err != nil || len(again.exceptions) != 1 || again.exceptions[0] != e {
				t.Errorf("%q reads as %v, %v", e.line(), again, err)
			}
		}
	})
}
