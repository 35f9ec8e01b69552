package netdrv

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// partedObjects are those that the kernel has for partitions.
func partedObjects(t testing.TB) (elements int, all []FirewallObject) {
	t.Helper()
	objects, err := FirewallObjects(background)
	check(t, err)
	for _, o := range objects {
		if strings.HasPrefix(o.Table, tablePrefix+"parted-") {
			all = append(all, o)
			if o.Kind == "element" {
				elements++
			}
		}
	}
	return elements, all
}

// TestPartition: what is parted loses what is under way, in both directions and by every way, and nobody else does.
func TestPartition(t *testing.T) {
	for _, spoofcheck := range []string{"on", "off"} {
		t.Run("spoofcheck "+spoofcheck, func(t *testing.T) {
			onHost(t, func(host *Namespace) {
				n := newNetwork(t, "bridge", "10.99.8.0/24", "fd00:99:8::/64")
				n.Options = map[string]string{"spoofcheck": spoofcheck}
				d := up(t, n)
				p := d.(Partitioner)
				eps := []*Endpoint{endpoint(n, 2), endpoint(n, 3), endpoint(n, 4)}
				var in []*Namespace
				for _, ep := range eps {
					in = append(in, container(t, d, n, ep))
				}
				address := func(i int, is4 bool) netip.Addr {
					for _, a := range eps[i].Addresses {
						if a.Addr().Is4() == is4 {
							return a.Addr()
						}
					}
					panic("none")
				}
				reached := func(i, j int) {
					t.Helper()
					for _, is4 := range []bool{true, false} {
						if _, _, err := reach(in[i], in[j], address(j, is4), "x"); err != nil {
							t.Errorf("from %d to %d: %v", i, j, err)
						}
					}
				}
				cut := func(i, j int) {
					t.Helper()
					unreachable(t, in[i], in[j], address(j, true))
					unreachable(t, in[i], in[j], address(j, false))
				}
				// A connection that is under way, and a port of the second one that is published.
				var l net.Listener
				check(t, in[1].Do(func() (err error) { l, err = net.Listen("tcp", "10.99.8.3:7000"); return }))
				defer l.Close()
				pub := publisher(t, "engine")
				check(t, pub.Publish(background, []Port{port("tcp", "", 7001, "10.99.8.3", 7000)}))
				dial := func(i int, to string, patience time.Duration) (c net.Conn, err error) {
					err = in[i].Do(func() (err error) { c, err = net.DialTimeout("tcp", to, patience); return })
					return c, err
				}
				c, err := dial(0, l.Addr().String(), 10*time.Second)
				check(t, err)
				defer c.Close()
				other, err := l.Accept()
				check(t, err)
				defer other.Close()
				says := func(from, to net.Conn, within time.Duration) error {
					if _, err := from.Write([]byte{'x'}); err != nil {
						return err
					}
					to.SetReadDeadline(time.Now().Add(within))
					_, err := to.Read(make([]byte, 1))
					return err
				}
				check(t, says(c, other, 10*time.Second))
				for i := range eps {
					reached(i, (i+1)%3)
					reached((i+1)%3, i)
				}

				check(t, p.Partition(background, n, [][2]*Endpoint{{eps[0], eps[1]}}))
				cut(0, 1)
				cut(1, 0)
				for _, pair := range [][2]int{{0, 2}, {2, 0}, {1, 2}, {2, 1}} {
					reached(pair[0], pair[1])
				}
				if err := says(c, other, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("what was under way got through: %v", err)
				}
				if through, err := dial(0, "10.99.8.1:7001", 300*time.Millisecond); err == nil {
					through.Close()
					t.Error("the published port is a way around")
				}
				through, err := dial(2, "10.99.8.1:7001", 10*time.Second)
				if err != nil {
					t.Errorf("the published port, from the third one: %v", err)
				} else {
					through.Close()
				}
				// Again, and another one: nothing comes twice.
				check(t, p.Partition(background, n, [][2]*Endpoint{{eps[1], eps[0]}, {eps[1], eps[2]}}))
				cut(2, 1)
				reached(0, 2)
				if got, all := partedObjects(t); got != 2*3*2 {
					t.Errorf("%d elements: %v", got, all)
				}

				// Who flushes the tables does not heal.
				check(t, flushTables(t))
				eventually(t, "the tables are there again", func() bool { got, _ := partedObjects(t); return got == 2*3*2 })
				cut(0, 1)

				check(t, p.Heal(background, n, [][2]*Endpoint{{eps[1], eps[0]}}))
				reached(0, 1)
				reached(1, 0)
				cut(1, 2)
				other.SetReadDeadline(time.Now().Add(10 * time.Second)) // it is sent again
				if _, err := other.Read(make([]byte, 1)); err != nil {
					t.Errorf("what was under way does not arrive after it is healed: %v", err)
				}
				check(t, p.Heal(background, n, [][2]*Endpoint{{eps[1], eps[0]}}))

				// It ends with one of the two.
				check(t, d.Disconnect(background, n, eps[2], in[2]))
				if _, all := partedObjects(t); len(all) != 0 {
					t.Errorf("left: %v", all)
				}
				check(t, d.Connect(background, n, eps[2], in[2]))
				reached(1, 2)
				for _, socket := range []net.Conn{c, other} { // one that waits for an answer would hold its namespace
					check(t, socket.(*net.TCPConn).SetLinger(0))
					socket.Close()
				}
				l.Close()
				check(t, p.Partition(background, n, [][2]*Endpoint{{eps[0], eps[1]}, {eps[2], eps[1]}}))
				in[2].Close()
				check(t, d.Forget(background, n, eps[2:]))
				if got, all := partedObjects(t); got != 2*3 || slices.ContainsFunc(all, func(o FirewallObject) bool { return strings.Contains(o.Text, eps[2].HostInterface) }) {
					t.Errorf("left: %v", all)
				}
				in[0].Close()
				in[1].Close()
				eventually(t, "the network is removed", func() bool { return d.Down(background, n) == nil })
				if _, all := partedObjects(t); len(all) != 0 {
					t.Errorf("left: %v", all)
				}
				var invalid *InvalidError
				if err := p.Partition(background, n, [][2]*Endpoint{{eps[0], eps[0]}}); !errors.As(err, &invalid) {
					t.Errorf("from itself: %v", err)
				}
			})
		})
	}
}

// flushTables removes all tables that belong to no socket, as nft flush ruleset does.
func flushTables(t testing.TB) error {
	nf, err := openNF()
	check(t, err)
	defer nf.Close()
	tables, err := nf.tables()
	check(t, err)
	var messages []nfMessage
	for _, table := range tables {
		if !table.owned {
			messages = append(messages, (&tableSpec{family: table.family, name: table.name}).remove()...)
		}
	}
	return nf.batch(0, messages...)
}

// TestPartitionTogether: many programs part and heal, and none undoes what another does.
func TestPartitionTogether(t *testing.T) {
	onHost(t, func(host *Namespace) {
		n := newNetwork(t, "bridge", "10.99.8.0/24")
		var eps []*Endpoint
		for i := range 8 {
			eps = append(eps, endpoint(n, 2+i))
		}
		first := up(t, n)
		errs := make(chan error)
		for i := range 4 {
			d := open(t, "bridge").(Partitioner)
			go func() {
				pair := [][2]*Endpoint{{eps[2*i], eps[2*i+1]}}
				for range 50 {
					if err := errors.Join(d.Partition(background, n, pair), d.Heal(background, n, pair), d.Partition(background, n, pair)); err != nil {
						errs <- fmt.Errorf("pair %d: %w", i, err)
						return
					}
				}
				errs <- nil
			}()
		}
		for range 4 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if got, all := partedObjects(t); got != 4*4 {
			t.Errorf("%d elements: %v", got, all)
		}
		check(t, first.Down(background, n))
		if _, all := partedObjects(t); len(all) != 0 {
			t.Errorf("left: %v", all)
		}
	})
}
