package coracle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/netdrv"
)

// The model of networks: three programs make, use and remove the same few networks and containers, each thing at random, and
// are killed at random moments. What control_model_linux_test.go says of operations holds here. A watcher looks all the time whether an
// address is somebody's twice: in the records, and in what the kernel says of the containers that run. In the end nothing
// is left.

const (
	modelNetworks = 3
	modelPorts    = 42_871 // and the two after it
)

// modelSubnet is that of the network of the model with addresses that are asked for.
func modelSubnet(seed uint64) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 219, byte(seed), 32}), 28)
}

func modelNetwork(rnd *rand.Rand) string { return fmt.Sprint("net-", rnd.IntN(modelNetworks)) }

func modelAttachment(name string, rnd *rand.Rand, seed uint64) coracle.Attachment {
	a := coracle.Attachment{Network: name}
	if name == "net-0" && rnd.IntN(2) == 0 {
		a.IPv4 = netip.AddrFrom4([4]byte{10, 219, byte(seed), byte(34 + rnd.IntN(5))})
	}
	if rnd.IntN(4) == 0 {
		a.Aliases = []string{"alias"}
	}
	return a
}

func networkOps() []controlOp {
	seed, _ := strconv.ParseUint(os.Getenv(controlModelSeedEnv), 10, 64)
	onNetwork := func(do func(context.Context, *coracle.Network, *rand.Rand) error) func(context.Context, *coracle.Engine, *rand.Rand) error {
		return func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
			n, err := eng.Network(ctx, modelNetwork(rnd))
			if err != nil {
				return err
			}
			return do(ctx, n, rnd)
		}
	}
	connect := func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
		n, err := eng.Network(ctx, modelNetwork(rnd))
		if err != nil {
			return err
		}
		return controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			a := modelAttachment(n.Name(), rnd, seed)
			return n.Connect(ctx, c, &a)
		})(ctx, eng, rnd)
	}
	disconnect := func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
		n, err := eng.Network(ctx, modelNetwork(rnd))
		if err != nil {
			return err
		}
		return controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return n.Disconnect(ctx, c) })(ctx, eng, rnd)
	}
	invalid := func(err error) error {
		if err == nil || errors.Is(err, coracle.ErrInvalid) {
			return nil
		}
		return err
	}
	makeNet := func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
		spec := &coracle.NetworkSpec{Name: modelNetwork(rnd), IPv6: rnd.IntN(3) == 0, Isolated: rnd.IntN(4) == 0, Internal: rnd.IntN(4) == 0}
		if spec.Name == "net-0" {
			spec.Subnets = []coracle.Subnet{{Prefix: modelSubnet(seed)}}
		}
		_, err := eng.CreateNetwork(ctx, spec)
		return err
	}
	ops := []controlOp{
		{"create network", true, makeNet},
		{"create network", true, makeNet},
		{"create", true, func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
			spec := &coracle.ContainerSpec{
				Name: fmt.Sprint("name-", rnd.IntN(controlNames)), Image: "model", Args: []string{"/pause"}, Detached: rnd.IntN(2) == 0, AutoRemove: rnd.IntN(4) == 0,
			}
			if rnd.IntN(6) == 0 {
				spec.Args = []string{"/exit"}
			}
			for _, i := range rnd.Perm(modelNetworks)[:rnd.IntN(modelNetworks)] {
				spec.Networks = append(spec.Networks, modelAttachment(fmt.Sprint("net-", i), rnd, seed))
			}
			switch rnd.IntN(6) {
			case 0:
				spec.Ports = []coracle.Port{{Container: 80, Host: modelPorts + uint16(rnd.IntN(3))}}
			case 1:
				spec.Ports = []coracle.Port{{Container: 80, Protocol: "udp"}}
			}
			_, err := eng.Create(ctx, spec)
			return err
		}},
		// A container on internal networks only has no ports to publish.
		{"start", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return invalid(c.Start(ctx)) })},
		{"start", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return invalid(c.Start(ctx)) })},
		{"start", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error { return invalid(c.Start(ctx)) })},
		{"restart", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			return invalid(c.Restart(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce}))
		})},
		{"connect", true, connect},
		{"connect", true, connect},
		{"connect", true, connect},
		{"disconnect", true, disconnect},
		{"disconnect", true, disconnect},
		{"wrong address", true, func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
			n, err := eng.Network(ctx, modelNetwork(rnd))
			if err != nil {
				return err
			}
			return controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
				info, err := c.Inspect(ctx)
				if err != nil || info.Status != coracle.StatusRunning {
					return err
				}
				err = n.Connect(ctx, c, &coracle.Attachment{IPv4: netip.MustParseAddr("192.0.2.1")})
				if err == nil {
					if info, inspectErr := c.Inspect(ctx); inspectErr != nil || info.Status != coracle.StatusRunning {
						return inspectErr
					}
					return errors.New("a wrong address was taken")
				}
				return invalid(err)
			})(ctx, eng, rnd)
		}},
		{"remove network", true, onNetwork(func(ctx context.Context, n *coracle.Network, rnd *rand.Rand) error { return n.Remove(ctx) })},
		{"inspect network", true, onNetwork(func(ctx context.Context, n *coracle.Network, rnd *rand.Rand) error {
			_, err := n.Inspect(ctx)
			return err
		})},
		{"prune networks", true, func(ctx context.Context, eng *coracle.Engine, rnd *rand.Rand) error {
			if rnd.IntN(4) != 0 {
				return nil
			}
			_, err := eng.PruneNetworks(ctx, nil)
			return err
		}},
		{"stop", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			return c.Stop(ctx, &coracle.StopOptions{Timeout: coracle.StopAtOnce})
		})},
		{"remove", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			return c.Remove(ctx, &coracle.RemoveOptions{Force: rnd.IntN(2) == 0})
		})},
		{"address", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			_, err := c.Addr(ctx, "tcp", 80)
			return invalid(err)
		})},
		{"rename", true, controlAny(func(ctx context.Context, c *coracle.Container, rnd *rand.Rand) error {
			return c.Rename(ctx, fmt.Sprint("name-", rnd.IntN(controlNames)))
		})},
	}
	return ops
}

func TestNetworkModel(t *testing.T) {
	testutil.RequireRoot(t)
	if exitProgram(0, false) == nil {
		testutil.Skip(t, "the model's containers have programs for amd64 and arm64 only")
	}
	programs, seeds := 25, []uint64{1, 2, 3}
	if testutil.Short() {
		programs, seeds = 8, seeds[:1]
	}
	if s := os.Getenv(controlModelSeedEnv); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runNetworkModel(t, seed, programs) })
	}
}

func runNetworkModel(t *testing.T, seed uint64, programs int) {
	t.Logf("again: %s=%d go test -run TestNetworkModel .", controlModelSeedEnv, seed)
	root := modelRoot(t)
	eng := openAgain(t, root)
	if _, err := eng.ImageFromFS(t.Context(), "model", controlModelFS(), nil); err != nil {
		t.Fatal(err)
	}
	prefix := eng.GroupPrefix()
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	watcher := &networkWatcher{t: t, eng: openAgain(t, root), links: make(map[string]bool)}
	over := make(chan struct{})
	var watching, wg sync.WaitGroup
	watching.Go(func() { watcher.watch(over) })
	for i := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(2000+i)))
			for n := range programs {
				config := controlModelConfig{Root: root, Seed: seed, Index: i*1000 + n, Ops: 80, Dies: 1 + rnd.Int64N(400), Networks: true}
				life := time.Duration(20+rnd.IntN(2500)) * time.Millisecond
				switch n % 4 {
				case 1:
					config.Dies = 1 << 40 // by its clock only
				case 3:
					config.Dies, life = 0, time.Hour
				}
				if out, err := config.runFor(life); err != nil {
					t.Errorf("program %d: %v\n%s", config.Index, err, out[max(0, len(out)-4000):])
					return
				}
			}
		})
	}
	wg.Wait()
	close(over)
	watching.Wait()
	if err := watcher.eng.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d looks at %d interfaces, at most %d containers at a time", watcher.looks, len(watcher.links), watcher.most)
	eng = openAgain(t, root)
	watcher.eng = eng
	wantElements(t, eng)
	list, err := eng.Containers(t.Context(), nil)
	if err != nil {
		t.Error(err)
	}
	for _, c := range list {
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	networks, err := eng.Networks(t.Context(), nil)
	if err != nil {
		t.Error(err)
	}
	for _, n := range networks { // each works
		if n.Name() != coracle.NetworkBridge {
			if err := eng.Run(t.Context(), &coracle.ContainerSpec{Image: "model", Args: []string{"/exit"}, Networks: onNetworks(n.Name())}); !exitedWith(err, modelExit) {
				t.Errorf("on %s: %v", n.Name(), err)
			}
		}
	}
	if err := eng.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "no process is left", func() bool { return len(processesOf(prefix)) == 0 })
	wantEventsBut(t, root, coracle.ActionKill, coracle.ActionStop, coracle.ActionRestart, coracle.ActionRename)
	checkEmpty(t, root, prefix)
	for name := range watcher.links {
		if _, err := net.InterfaceByName(name); err == nil {
			t.Errorf("the interface %s is left", name)
		}
	}
}

func exitedWith(err error, code int) bool {
	var exit *coracle.ExitError
	return errors.As(err, &exit) && exit.Code == code
}

// runFor is one program, which is killed when its time is over.
func (config controlModelConfig) runFor(life time.Duration) (out string, err error) {
	text, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), controlModelEnv+"="+string(text), fmt.Sprintf("%s=%d", controlModelSeedEnv, config.Seed))
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(life, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err = cmd.Wait()
	if config.Dies > 0 && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		err = nil
	}
	said := b.String()
	if err == nil && (strings.HasPrefix(said, "!") || strings.Contains(said, "\n!") || strings.Contains(said, "level=WARN")) {
		err = errors.New("it complains")
	}
	return b.String(), err
}

// networkWatcher looks whether an address is somebody's twice.
type networkWatcher struct {
	t           *testing.T
	eng         *coracle.Engine
	looks, most int
	links       map[string]bool // host's ends that were seen
}

func (w *networkWatcher) watch(over chan struct{}) {
	for {
		select {
		case <-over:
			return
		case <-time.After(5 * time.Millisecond):
		}
		w.looks++
		// What is read is not one moment: an address may move from one to the other meanwhile, but not twice.
		for try := 0; ; try++ {
			twice := append(w.records(), w.kernel()...)
			if len(twice) == 0 {
				break
			}
			if try == 5 {
				w.t.Errorf("addresses that are somebody's twice: %q", twice)
				return
			}
		}
	}
}

// records looks at what the files say.
func (w *networkWatcher) records() (twice []string) {
	networks, err := w.eng.Networks(w.t.Context(), nil)
	if err != nil {
		w.t.Error(err)
	}
	for _, n := range networks {
		info, err := n.Inspect(w.t.Context())
		if err != nil {
			continue // removed
		}
		of := make(map[netip.Addr]string)
		for id, ep := range info.Endpoints {
			w.links[ep.HostInterface] = true
			for _, p := range ep.Addresses {
				if other, ok := of[p.Addr()]; ok {
					twice = append(twice, fmt.Sprintf("%v of %.12s and %.12s", p.Addr(), id, other))
				}
				of[p.Addr()] = id
			}
		}
	}
	return twice
}

// kernel looks at the containers that run.
func (w *networkWatcher) kernel() (twice []string) {
	list, err := w.eng.Containers(w.t.Context(), nil)
	if err != nil {
		w.t.Error(err)
	}
	type at struct {
		pid       int
		namespace uint64
	}
	of := make(map[string]at)
	most := 0
	for _, c := range list {
		info, err := c.Inspect(w.t.Context())
		if err != nil || info.PID == 0 || info.Status != coracle.StatusRunning {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", info.PID))
		if err != nil {
			continue
		}
		var st unix.Stat_t
		unix.Fstat(int(f.Fd()), &st)
		addresses := addressesIn(f)
		f.Close()
		most++
		if zombie(fmt.Sprintf("/proc/%d", info.PID)) {
			continue
		}
		for _, a := range addresses {
			other, ok := of[a]
			if ok && other.namespace != st.Ino && !zombie(fmt.Sprintf("/proc/%d", other.pid)) && syscall.Kill(other.pid, 0) == nil && syscall.Kill(info.PID, 0) == nil {
				twice = append(twice, fmt.Sprintf("%s of the processes %d and %d", a, info.PID, other.pid))
			}
			of[a] = at{info.PID, st.Ino}
		}
	}
	w.most = max(w.most, most)
	return twice
}

// addressesIn lists the addresses in a network namespace but those that every one has.
func addressesIn(f *os.File) []string {
	ns, err := netdrv.OpenNamespace(f)
	if err != nil {
		return nil
	}
	defer ns.Close()
	var list []string
	ns.Do(func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if p, ok := a.(*net.IPNet); ok && !p.IP.IsLoopback() && !p.IP.IsLinkLocalUnicast() {
				list = append(list, p.IP.String())
			}
		}
		return err
	})
	return list
}

// wantElements looks for elements of the tables of networks that are of no endpoint.
func wantElements(t *testing.T, eng *coracle.Engine) {
	t.Helper()
	networks, err := eng.Networks(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := netdrv.FirewallObjects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		info, err := n.Inspect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var links []string
		for _, ep := range info.Endpoints {
			links = append(links, ep.HostInterface)
		}
		for _, o := range objects {
			if strings.HasSuffix(o.Table, info.ID[:12]) && o.Kind == "element" && !slices.ContainsFunc(links, func(l string) bool { return strings.Contains(o.Text, l) }) {
				t.Errorf("an element of nobody's: %+v", o)
			}
		}
	}
}
