package netdrv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// ports is what a listing has published.
func ports(t testing.TB) []string {
	t.Helper()
	objects, err := FirewallObjects(background)
	check(t, err)
	var all []string
	for _, o := range objects {
		if o.Kind == "element" && strings.HasPrefix(o.Name, "a") {
			all = append(all, o.Table+" "+o.Text)
		}
	}
	slices.Sort(all)
	return all
}

func TestPublishElements(t *testing.T) {
	onHost(t, func(host *Namespace) {
		p := publisher(t, "engine-1")
		first := port("tcp", "", 8000, "10.0.0.2", 80)
		some, err := first.Range(3)
		check(t, err)
		check(t, p.Publish(background, append(some, port("sctp", "::", 7, "fd00::2", 8), port("udp", "192.0.2.1", 53, "10.0.0.2", 5353))))
		want := []string{
			"coracle-engine-1 192.0.2.1 . udp . 53 : 10.0.0.2 . 5353",
			"coracle-engine-1 sctp . 7 : fd00::2 . 8",
			"coracle-engine-1 tcp . 8000 : 10.0.0.2 . 80",
			"coracle-engine-1 tcp . 8001 : 10.0.0.2 . 81",
			"coracle-engine-1 tcp . 8002 : 10.0.0.2 . 82",
		}
		if got := ports(t); !slices.Equal(got, want) {
			t.Errorf("published %q, want %q", got, want)
		}

		// All or none, and the error names the port.
		err = p.Publish(background, []Port{port("tcp", "", 9000, "10.0.0.3", 1), port("tcp", "0.0.0.0", 8001, "10.0.0.3", 2), port("tcp", "", 9001, "10.0.0.3", 3)})
		var which *PortError
		if !errors.Is(err, fs.ErrExist) || !errors.As(err, &which) || which.Port.HostPort != 8001 {
			t.Errorf("a port that is there: %v", err)
		}
		if err := p.Publish(background, some[:1]); !errors.Is(err, fs.ErrExist) {
			t.Errorf("the same port again: %v", err)
		}
		if err := p.Publish(background, []Port{port("udp", "", 1, "10.0.0.3", 1), port("udp", "", 1, "10.0.0.4", 1)}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("twice at once: %v", err)
		}
		err = p.Publish(background, some)
		if n := strings.Count(err.Error(), "publish tcp"); n != 3 {
			t.Errorf("%d ports are named: %v", n, err)
		}
		for _, bad := range []Port{
			{}, port("icmp", "", 1, "10.0.0.2", 1), port("tcp", "", 0, "10.0.0.2", 1), port("tcp", "", 1, "10.0.0.2", 0),
			port("tcp", "::", 1, "0.0.0.0", 1), port("tcp", "::2", 1, "10.0.0.2", 1), port("tcp", "::1", 1, "fd00::2", 1),
		} {
			var invalid *InvalidError
			if err := p.Publish(background, []Port{bad}); !errors.As(err, &invalid) {
				t.Errorf("%v: %v", bad, err)
			}
		}
		gone, cancel := context.WithCancel(background)
		cancel()
		if err := p.Publish(gone, []Port{port("tcp", "", 1, "10.0.0.2", 1)}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if got := ports(t); !slices.Equal(got, want) {
			t.Errorf("published %q, want %q", got, want)
		}

		// Withdrawn and published again at once. The flows are forgotten soon.
		begun := time.Now()
		forgotten := withdraw(t, p, some...)
		none := withdraw(t, p, port("tcp", "", 4711, "10.0.0.2", 1))
		check(t, p.Publish(background, []Port{port("tcp", "", 8001, "10.0.0.9", 99)}))
		if got := ports(t); len(got) != 3 {
			t.Errorf("published %q", got)
		}
		<-forgotten
		<-none
		t.Log("forgotten after", time.Since(begun))
		<-withdraw(t, p)
		check(t, p.Flush(background))
		if got := ports(t); !slices.Contains(got, "coracle-engine-1 tcp . 8001 : 10.0.0.9 . 99") || len(got) != 3 {
			t.Errorf("published %q", got)
		}

		if _, err := first.Range(60000); err == nil {
			t.Error("a range that does not fit is no error")
		}
		for _, name := range []string{"", "forward", "dns", "0123456789ab", "a b", "A", strings.Repeat("x", 101)} {
			if p, err := NewPublisher(name); err == nil {
				p.Close()
				t.Errorf("%q is a name", name)
			}
		}
		if _, err := NewPublisher("engine-1"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("the same name again: %v", err)
		}
		check(t, p.Close())
		check(t, p.Close())
		<-withdraw(t, p, some...)
		if got := ports(t); len(got) != 0 {
			t.Errorf("left after Close: %q", got)
		}
		if err := p.Publish(background, some); !errors.Is(err, os.ErrClosed) {
			t.Errorf("published after Close: %v", err)
		}
		check(t, publisher(t, "engine-1").Close())
	})
}

func withdraw(t testing.TB, p *Publisher, ports ...Port) <-chan struct{} {
	t.Helper()
	forgotten, err := p.Withdraw(ports)
	check(t, err)
	return forgotten
}

// TestPublisherFlows: who keeps sending udp reaches who has the port now, not who had it.
func TestPublisherFlows(t *testing.T) {
	onHost(t, func(host *Namespace) {
		outside := newOutside(t, host)
		n := dual(t, 1)
		d := up(t, n)
		a, b := container(t, d, n, endpoint(n, 2)), container(t, d, n, endpoint(n, 3))
		serve(t, a, "udp", "[::]:53", "a")
		serve(t, b, "udp", "[::]:53", "b")
		for _, family := range []struct{ host, a, b string }{{hostOutside4, "10.88.1.2", "10.88.1.3"}, {hostOutside6, "fd00:1::2", "fd00:1::3"}} {
			var c net.Conn
			to := netip.AddrPortFrom(netip.MustParseAddr(family.host), 5353).String()
			check(t, outside.Do(func() (err error) { c, err = net.Dial("udp", to); return err }))
			defer c.Close()
			ask := func() string {
				c.SetDeadline(time.Now().Add(300 * time.Millisecond))
				buffer := make([]byte, 100)
				c.Write([]byte("?"))
				n, err := c.Read(buffer)
				if err != nil {
					return "nobody"
				}
				return strings.Fields(string(buffer[:n]))[1]
			}
			if who := ask(); who != "nobody" { // and a flow to the host itself is known now
				t.Errorf("%s answers before the port is published", who)
			}
			p := publisher(t, "flows")
			pa, pb := port("udp", "", 5353, family.a, 53), port("udp", "", 5353, family.b, 53)
			check(t, p.Publish(background, []Port{pa}))
			check(t, p.Flush(background))
			if who := ask(); who != "a" {
				t.Errorf("%s answers, want a", who)
			}
			withdraw(t, p, pa)
			check(t, p.Publish(background, []Port{pb}))
			if who := ask(); who != "b" {
				t.Errorf("%s answers, want b", who)
			}
			withdraw(t, p, pb)
			check(t, p.Flush(background))
			if who := ask(); who != "nobody" {
				t.Errorf("%s answers after the port was withdrawn", who)
			}
			check(t, p.Close())
		}
	})
}

// TestPublisherSocket: the table lives as long as somebody holds its socket, whoever dies how.
func TestPublisherSocket(t *testing.T) {
	onHost(t, func(host *Namespace) {
		tables := func() string {
			objects, err := FirewallObjects(background)
			check(t, err)
			var names []string
			for _, o := range objects {
				if o.Kind == "table" {
					names = append(names, o.Table)
				}
			}
			return strings.Join(names, " ")
		}
		// The parent, which makes the table, is a process of its own, since it is to be killed; its child holds the socket.
		child := func(role string, extra ...*os.File) *exec.Cmd {
			cmd := exec.Command(os.Args[0], "-test.run=^TestPublisherChild$")
			cmd.Env = append(os.Environ(), "CORACLE_TEST_PUBLISHER="+role)
			cmd.ExtraFiles = extra
			cmd.Stderr = os.Stderr
			check(t, cmd.Start())
			return cmd
		}
		r, w, err := os.Pipe()
		check(t, err)
		defer r.Close()
		parent := child("parent", w)
		w.Close()
		var pid int
		if _, err := fmt.Fscan(r, &pid); err != nil {
			t.Fatal(err)
		}
		keeper, err := os.FindProcess(pid)
		check(t, err)
		if tables() != "coracle-keeper" || len(ports(t)) != 1 {
			t.Fatalf("tables %q, ports %q", tables(), ports(t))
		}
		if _, err := NewPublisher("keeper"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("the name of a table of another process: %v", err)
		}
		check(t, parent.Process.Kill())
		parent.Wait()
		time.Sleep(100 * time.Millisecond)
		if tables() != "coracle-keeper" || len(ports(t)) != 1 {
			t.Errorf("after the death of the parent: tables %q, ports %q", tables(), ports(t))
		}
		check(t, keeper.Kill())
		begun := time.Now()
		eventually(t, "the table goes with its last holder", func() bool { return tables() == "" })
		t.Log("gone after", time.Since(begun))
	})
}

// TestPublisherChild is what runs in the processes of TestPublisherSocket.
func TestPublisherChild(t *testing.T) {
	switch os.Getenv("CORACLE_TEST_PUBLISHER") {
	case "":
		return // it is run by TestPublisherSocket
	case "parent":
		p, err := NewPublisher("keeper")
		check(t, err)
		s, err := p.Socket()
		check(t, err)
		cmd := exec.Command(os.Args[0], "-test.run=^TestPublisherChild$")
		cmd.Env = append(os.Environ(), "CORACLE_TEST_PUBLISHER=keeper")
		r, w, err := os.Pipe()
		check(t, err)
		cmd.ExtraFiles = []*os.File{s, w}
		check(t, cmd.Start())
		w.Close()
		var word string
		if _, err := fmt.Fscan(r, &word); err != nil { // the child has published
			t.Fatal(err)
		}
		fmt.Fprintln(os.NewFile(3, "pipe"), cmd.Process.Pid)
	case "keeper":
		p, err := OpenPublisher("keeper", os.NewFile(3, "socket"))
		check(t, err)
		check(t, p.Publish(background, []Port{port("tcp", "", 80, "10.0.0.2", 80)}))
		fmt.Fprintln(os.NewFile(4, "pipe"), "published")
	}
	time.Sleep(time.Minute) // until it is killed
}

// TestPublisherTogether: many goroutines publish, withdraw and flush.
func TestPublisherTogether(t *testing.T) {
	onHost(t, func(host *Namespace) {
		p := publisher(t, "together")
		errs := make(chan error)
		for g := range 8 {
			go func() {
				var all error
				for i := range 40 {
					some, err := port([]string{"tcp", "udp"}[i%2], "", uint16(1000*(g+1)), "10.0.0.2", uint16(i+1)).Range(20)
					all = errors.Join(all, err, p.Publish(background, some))
					if i < 38 { // what is published again with another value was withdrawn before
						_, err := p.Withdraw(some)
						all = errors.Join(all, err)
					}
					if i%10 == g {
						all = errors.Join(all, p.Flush(background))
					}
				}
				errs <- all
			}()
		}
		for range 8 {
			check(t, <-errs)
		}
		check(t, p.Flush(background))
		if have := ports(t); len(have) != 8*20*2 || !strings.HasSuffix(have[0], ": 10.0.0.2 . 39") {
			t.Errorf("%d ports are published, the first %s", len(have), have[0])
		}
	})
}

// BenchmarkPublish publishes, among n, the first ports and the last: an element of a map costs the same.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			onHost(b, func(host *Namespace) {
				p := publisher(b, "bench")
				one := func(i int) []Port {
					return []Port{port("tcp", "", uint16(i+1), "10.0.0.2", 80)}
				}
				var first, last, drop []time.Duration
				for b.Loop() {
					for i := range n {
						begun := time.Now()
						check(b, p.Publish(background, one(i)))
						took := time.Since(begun)
						if i < 100 {
							first = append(first, took)
						} else if i >= n-100 {
							last = append(last, took)
						}
					}
					b.StopTimer()
					if have := len(ports(b)); have != n {
						b.Fatalf("%d ports are published, want %d", have, n)
					}
					var all []Port
					for i := range n {
						all = append(all, one(i)...)
					}
					begun := time.Now()
					withdraw(b, p, all...)
					check(b, p.Flush(background))
					drop = append(drop, time.Since(begun))
					b.StartTimer()
				}
				median := func(d []time.Duration) float64 { slices.Sort(d); return float64(d[len(d)/2].Nanoseconds()) / 1000 }
				b.ReportMetric(median(first), "first-us")
				b.ReportMetric(median(last), "last-us")
				b.ReportMetric(median(drop), "withdraw-all-us")
				b.ReportMetric(0, "ns/op")
			})
		})
	}
}
