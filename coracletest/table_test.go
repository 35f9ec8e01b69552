package coracletest_test

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coracle-dev/coracle/coracletest"
)

const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:C001 0100007F:1539 01 00000000:00000000 00:00000000 00000000     0        0 3
1000: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4 2 0 0
`

func TestHasPort(t *testing.T) {
	long := strings.Repeat("   9: 0100007F:0017 ", 1000) + "0A 0\n"
	for _, test := range []struct {
		table, state string
		port         uint16
		want         bool
	}{
		{table, "0A", 5432, true}, {table, "0A", 80, true}, {table, "07", 53, true},
		{table, "07", 5432, false}, {table, "0A", 53, false}, {table, "0A", 5433, false}, {table, "0A", 0xc001, false},
		{long, "0A", 23, false}, {long + table, "0A", 5432, true}, {"", "0A", 1, false}, {"sl local", "0A", 1, false},
		{" 0: 7F:0001 0:0 0A", "0A", 1, false}, {" 0: 0100007F:+001 0:0 0A", "0A", 1, false}, {" 0: 0100007F:0001 0:0 0A", "0A", 1, true},
	} {
		if got, err := coracletest.HasPort(strings.NewReader(test.table), test.port, test.state); got != test.want || err != nil {
			t.Errorf("port %d in %.100q: %t, %v", test.port, test.table, got, err)
		}
	}
}

func FuzzHasPort(f *testing.F) {
	f.Add(table, uint16(5432))
	f.Add(" 0: 0100007F:0001 0:0 0A\n", uint16(1))
	f.Add("0:0:0:0:\n\n: : : :", uint16(0))
	f.Fuzz(func(t *testing.T, table string, port uint16) {
		found, err := coracletest.HasPort(strings.NewReader(table), port, "0A")
		if err != nil {
			t.Fatal(err)
		}
		// A table with a true line in front has the port whatever follows, and one with it behind a line's end.
		if again, _ := coracletest.HasPort(strings.NewReader(table+"\n 0: 0100007F:1538 0:0 0A"), 0x1538, "0A"); !again {
			t.Error("a line was lost")
		}
		if found && !strings.Contains(table, "0A") {
			t.Error("found in nothing")
		}
	})
}

func TestNameFor(t *testing.T) {
	for test, want := range map[string]string{
		"TestA":                    "^TestA-[a-z0-9]{8}$",
		"TestA/b c/ü":              "^TestA.b-c.--[a-z0-9]{8}$",
		"/../":                     "^test-[a-z0-9]{8}$",
		"":                         "^test-[a-z0-9]{8}$",
		strings.Repeat("x/", 2000): `^(x\.){50}-[a-z0-9]{8}$`,
	} {
		if got := coracletest.NameFor(test); !regexp.MustCompile(want).MatchString(got) || len(got) > 128 {
			t.Errorf("%q: %q", test, got)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("plain\ttext")
	f.Add("\x1b[31m\u202e\xff")
	f.Add(strings.Repeat("\xff", 600))
	f.Fuzz(func(t *testing.T, text string) {
		got := coracletest.Printable(text)
		if !utf8.ValidString(got) || len(got) > 500*12+40 || strings.ContainsAny(got, "\x1b\n\r\x00\u202e\u2028\u0085\u009b") {
			t.Errorf("%q", got)
		}
	})
}
