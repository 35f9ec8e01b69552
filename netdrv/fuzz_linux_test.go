package netdrv

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzAnswers: rules and userdata of others come through the kernel as they made them.
func FuzzAnswers(f *testing.F) {
	r := &ruleSpec{[]clause{is(iifname, name("cor-*")), is(oifname, name("docker0")), accept}, foreignComment + "x"}
	m, err := r.message(unix.NFPROTO_IPV4, "filter", "FORWARD")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(m.attrs))
	f.Add([]byte((&tableSpec{name: "coracle-x", reason: "y"}).attrs()))
	f.Add(m.append(nil, 1, 0))
	for _, foreign := range []string{"\x00\xff", "\xc0\x08short", "\x04\x00\x05\x80", "\x03\x00\x00\x00"} {
		f.Add([]byte(foreign))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		parseFilterRule(b)
		parseTable(nfAnswer{data: b})
		udString(b, udComment)
		keyText([]nfType{typeIfname, typeEther, typeIP6, typeProto, typeService}, b)
		eachNF(b, func(nfAnswer) {})
		if len(b) >= 4 {
			splitTypes(be32(b[:4]))
		}
	})
}
