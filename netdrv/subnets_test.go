package netdrv

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/coracle-dev/coracle/internal/testutil"
)

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func TestChooseSubnets(t *testing.T) {
	pools := []Pool{{netip.MustParsePrefix("172.16.0.0/14"), 16}, {netip.MustParsePrefix("192.168.0.0/16"), 20}, {netip.MustParsePrefix("fd00:1234::/32"), 64}}
	for _, c := range []struct {
		name  string
		pools []Pool
		used  []netip.Prefix
		want  string
	}{
		{"nothing used", pools, nil, "[{172.16.0.0/16 172.16.0.1} {fd00:1234::/64 fd00:1234::1}]"},
		{"default routes say nothing", pools, prefixes("0.0.0.0/0", "::/0"), "[{172.16.0.0/16 172.16.0.1} {fd00:1234::/64 fd00:1234::1}]"},
		{"the first", pools, prefixes("172.16.0.0/16", "fd00:1234::/64"), "[{172.17.0.0/16 172.17.0.1} {fd00:1234:0:1::/64 fd00:1234:0:1::1}]"},
		{"one address of it", pools, prefixes("172.16.255.255/32"), "[{172.17.0.0/16 172.17.0.1} {fd00:1234::/64 fd00:1234::1}]"},
		{"a larger range", pools, prefixes("172.16.0.0/15"), "[{172.18.0.0/16 172.18.0.1} {fd00:1234::/64 fd00:1234::1}]"},
		{"a pool", pools, prefixes("172.0.0.0/8"), "[{192.168.0.0/20 192.168.0.1} {fd00:1234::/64 fd00:1234::1}]"},
		{"a gap", pools, prefixes("172.18.0.0/15", "172.16.0.0/16"), "[{172.17.0.0/16 172.17.0.1} {fd00:1234::/64 fd00:1234::1}]"},
		{"two addresses", []Pool{{netip.MustParsePrefix("10.0.0.0/24"), 31}}, prefixes("10.0.0.0/31"), "[{10.0.0.2/31 10.0.0.2}]"},
		{"no pool", nil, nil, "[]"},
	} {
		got, err := ChooseSubnets(c.pools, c.used)
		if text := fmt.Sprint(got); err != nil || text != c.want {
			t.Errorf("%s: %s, %v, want %s", c.name, text, err, c.want)
		}
	}
	if _, err := ChooseSubnets(pools, prefixes("172.0.0.0/8", "192.168.0.0/16")); !errors.Is(err, ErrNoSubnet) {
		t.Errorf("all used: %v", err)
	}
	if _, err := ChooseSubnets([]Pool{{netip.MustParsePrefix("10.255.255.0/24"), 24}}, prefixes("10.0.0.0/8")); !errors.Is(err, ErrNoSubnet) {
		t.Errorf("all used: %v", err)
	}
	if _, err := ChooseSubnets([]Pool{{netip.MustParsePrefix("255.255.255.0/24"), 24}}, prefixes("255.255.255.0/25")); !errors.Is(err, ErrNoSubnet) {
		t.Errorf("at the end of all addresses: %v", err)
	}
	var invalid *InvalidError
	if _, err := ChooseSubnets([]Pool{{netip.MustParsePrefix("10.0.0.0/24"), 16}}, nil); !errors.As(err, &invalid) {
		t.Errorf("a subnet larger than its pool: %v", err)
	}
}

// TestChooseSubnetsAgain compares with the plain way: each subnet of the pool against each used one.
func TestChooseSubnetsAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := Pool{netip.MustParsePrefix("10.1.2.0/24"), rapid.IntRange(24, 30).Draw(t, "bits")}
		var used []netip.Prefix
		for range rapid.IntRange(0, 12).Draw(t, "used") {
			a := netip.AddrFrom4([4]byte{10, 1, 2, rapid.Byte().Draw(t, "byte")})
			used = append(used, netip.PrefixFrom(a, rapid.IntRange(23, 32).Draw(t, "length")))
		}
		var want netip.Prefix
	search:
		for a := pool.Base.Addr(); pool.Base.Contains(a); a = a.Next() {
			p := netip.PrefixFrom(a, pool.Bits)
			if p.Masked() != p {
				continue
			}
			for _, u := range used {
				if u.Overlaps(p) {
					continue search
				}
			}
			want = p
			break
		}
		got, err := ChooseSubnets([]Pool{pool}, used)
		if want.IsValid() != (err == nil) || err == nil && got[0].Prefix != want {
			t.Fatalf("%v in /%d with %v: %v, %v, want %v", pool.Base, pool.Bits, used, got, err, want)
		}
	})
}

// TestChooseSubnetsMany: ten thousand used ones are no matter.
func TestChooseSubnetsMany(t *testing.T) {
	pool := Pool{netip.MustParsePrefix("10.0.0.0/8"), 24}
	var used []netip.Prefix
	begun := time.Now()
	turns := 20 // of which each may take a quarter of a second, with the race detector and on a machine that is busy
	if testutil.Short() {
		turns = 5
	}
	for i := range turns {
		s, err := ChooseSubnets([]Pool{pool}, used)
		if err != nil {
			t.Fatal(err)
		}
		used = append(used, s[0].Prefix)
		if i == 0 {
			for a := netip.MustParseAddr("10.1.0.0"); len(used) < 10_000; a = lastAddr(netip.PrefixFrom(a, 24)).Next() {
				used = append(used, netip.PrefixFrom(a, 24))
			}
		}
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("%d of 10,000 took %v", turns, took)
	}
}
