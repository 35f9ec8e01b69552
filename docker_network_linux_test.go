package coracle_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/internal/testtool"
	"github.com/coracle-dev/coracle/internal/testutil"
	"github.com/coracle-dev/coracle/netdrv"
)

// besideEnv says to TestBesideDocker that it is in a network namespace of its own, and who comes first.
const besideEnv = "CORACLE_TEST_BESIDE_DOCKER"

// TestBesideDocker runs Docker's engine, with its bridge and its firewall, beside ours: whichever comes first, both work, and Docker's
// rules are what they are without us. Both are in a network namespace that plays the host.
func TestBesideDocker(t *testing.T) {
	orders := map[string]func(*testing.T, *netdrv.Namespace){"Docker first": dockerFirst, "coracle first": coracleFirst}
	if order := orders[os.Getenv(besideEnv)]; order != nil {
		order(t, playHost(t))
		return
	}
	requireDocker(t)
	for name := range orders {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestBesideDocker$", "-test.v")
			cmd.Env = append(os.Environ(), besideEnv+"="+name)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestBesideDocker ") {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

func dockerFirst(t *testing.T, outside *netdrv.Namespace) {
	theirs := dockerOnBridge(t)
	theirs.works(t, outside)
	alone := theirs.rules(t)
	if !strings.Contains(alone, ":FORWARD DROP") {
		t.Fatalf("Docker's policy does not drop:\n%s", alone)
	}
	ours := coracleOnBridge(t)
	ours.works(t, outside)
	theirs.works(t, outside)
	theirs.untouched(t, alone)
	// Docker makes its chains anew when it starts.
	theirs.stop(t)
	ours.works(t, outside)
	theirs.start(t)
	ours.works(t, outside)
	theirs.works(t, outside)
	theirs.untouched(t, alone)
	// Who flushes the chain takes ours along.
	iptablesRun(t, "iptables", "-F", "DOCKER-USER")
	ours.works(t, outside)
	ours.ends(t)
	theirs.works(t, outside)
	theirs.alone(t)
}

func coracleFirst(t *testing.T, outside *netdrv.Namespace) {
	ours := coracleOnBridge(t)
	ours.works(t, outside)
	theirs := dockerOnBridge(t)
	theirs.works(t, outside)
	ours.works(t, outside)
	with := theirs.rules(t)
	// We have made the host a router, as Docker needs it: it stays one, and the table that keeps it from being one for others.
	ours.ends(t, "coracle-forward")
	theirs.works(t, outside) // for which the host has to forward still
	theirs.alone(t)
	theirs.untouched(t, with)
	again := coracleOnBridge(t)
	again.works(t, outside)
	theirs.works(t, outside)
	theirs.untouched(t, with)
	again.ends(t, "coracle-forward")
	theirs.alone(t)
}

func requireDocker(t *testing.T) {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.NotInVM(t, "there is no Docker")
	for _, program := range []string{"dockerd", "docker", "containerd", "ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			testutil.Skip(t, "needs Docker and its tools: "+err.Error())
		}
	}
}

// The addresses of the host and of somebody outside, whose server answers with the address that it sees.
const (
	hostAddress    = "192.0.2.1"
	outsideAddress = "192.0.2.2"
)

// playHost gives this network namespace an interface, and somebody at the other end.
func playHost(t *testing.T) *netdrv.Namespace {
	t.Helper()
	outside, err := netdrv.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outside.Close() })
	ip := func(words string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(words)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", words, err, out)
		}
	}
	// A host that is no router yet: Docker makes it one, with a policy that drops what nobody accepts.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	ip("link set lo up")
	ip("link add up0 type veth peer name out0")
	ip(fmt.Sprintf("link set out0 netns /proc/%d/fd/%d", os.Getpid(), outside.File().Fd()))
	ip("address add " + hostAddress + "/24 dev up0")
	ip("link set up0 up")
	ip("route add default via " + outsideAddress)
	var l net.Listener
	err = outside.Do(func() (err error) { // a program that is started here is outside
		ip("address add " + outsideAddress + "/24 dev out0")
		ip("link set out0 up")
		l, err = net.Listen("tcp", outsideAddress+":80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Read(make([]byte, 64))
			fmt.Fprintf(c, "hello to %s\n", c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	return outside
}

// answers dials until something answers, for as long as the others' firewall may take to be seen to, and returns what it says.
func answers(t *testing.T, dial func(ctx context.Context) (net.Conn, error)) (string, error) {
	t.Helper()
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		var c net.Conn
		if c, err = dial(ctx); err == nil {
			c.SetDeadline(time.Now().Add(time.Second))
			fmt.Fprintln(c, "hello")
			var line string
			line, err = bufio.NewReader(c).ReadString('\n')
			c.Close()
			if err == nil {
				cancel()
				return strings.TrimSpace(line), nil
			}
		}
		cancel()
	}
	return "", err
}

func dialFrom(ns *netdrv.Namespace, addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (c net.Conn, err error) {
		err = ns.Do(func() (err error) { c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr); return })
		return c, err
	}
}

func dialHere(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) }
}

func iptablesRun(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, append([]string{"-w"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", program, args, err, out)
	}
	return string(out)
}

// besides is Docker's engine with a container.
type besides struct {
	dir, socket string
	daemon      *exec.Cmd
}

func dockerOnBridge(t *testing.T) *besides {
	t.Helper()
	dir, err := os.MkdirTemp("", "docker") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d := &besides{dir: dir, socket: "unix://" + dir + "/docker.sock"}
	t.Cleanup(func() {
		if d.daemon != nil {
			d.stop(t)
		}
		for _, pattern := range []string{"/sys/fs/cgroup/*/coracle-docker-beside", "/sys/fs/cgroup/coracle-docker-beside"} {
			groups, _ := filepath.Glob(pattern)
			for _, g := range groups {
				os.Remove(g)
			}
		}
	})
	d.run(t)
	d.docker(t, tarOf(t, testtool.FS(t, nil)), "import", "-", "tool")
	d.docker(t, nil, "create", "--name", "web", "--publish", "8081:80", "tool", "/tool", "serve", "tcp", "0.0.0.0:80")
	d.docker(t, nil, "start", "web")
	return d
}

// run starts the daemon.
func (d *besides) run(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(d.dir+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d.daemon = exec.Command("dockerd", "--host", d.socket, "--data-root", d.dir+"/data", "--exec-root", d.dir+"/exec", "--pidfile", d.dir+"/pid",
		"--storage-driver", "vfs", "--log-level", "warn", "--cgroup-parent", "/coracle-docker-beside")
	d.daemon.Stdout, d.daemon.Stderr = log, log
	if err := d.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if exec.Command("docker", "--host", d.socket, "version").Run() == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not answer:\n%s", d.log())
		}
	}
}

func (d *besides) log() []byte {
	b, _ := os.ReadFile(d.dir + "/log")
	return b
}

func (d *besides) docker(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	cmd := exec.Command("docker", append([]string{"--host", d.socket}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("docker %q: %v\n%s\n%s", args, err, out, d.log())
	}
	return string(out)
}

// stop ends the daemon, which ends its containers.
func (d *besides) stop(t *testing.T) {
	t.Helper()
	d.daemon.Process.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- d.daemon.Wait() }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Errorf("dockerd does not end:\n%s", d.log())
		d.daemon.Process.Kill()
		<-ended
	}
	d.daemon = nil
}

func (d *besides) start(t *testing.T) {
	t.Helper()
	d.run(t)
	d.docker(t, nil, "start", "web")
}

// works looks whether its container is reached and reaches the outside.
func (d *besides) works(t *testing.T, outside *netdrv.Namespace) {
	t.Helper()
	if got, err := answers(t, dialFrom(outside, hostAddress+":8081")); err != nil || got != "hello" {
		t.Errorf("Docker's container, from outside: %q, %v\n%s", got, err, d.all(t))
	}
	if got := d.docker(t, nil, "exec", "web", "/tool", "dial", "tcp", outsideAddress+":80"); !strings.HasPrefix(got, "hello to "+hostAddress+"\n") {
		t.Errorf("the outside, from Docker's container: %q", got)
	}
}

// all are the rules of iptables, without counters.
func (d *besides) all(t *testing.T) string {
	t.Helper()
	var rules strings.Builder
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(program).Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		for line := range strings.Lines(string(out)) {
			if line[0] == '#' {
				continue
			}
			if line[0] == ':' { // a chain, its policy and counters
				line, _, _ = strings.Cut(line, "[")
				line += "\n"
			}
			rules.WriteString(line)
		}
	}
	return rules.String()
}

// rules are all but those that are documented as ours.
func (d *besides) rules(t *testing.T) string {
	t.Helper()
	var rules strings.Builder
	for line := range strings.Lines(d.all(t)) {
		if !strings.HasPrefix(line, "-A DOCKER-USER ") || !strings.Contains(line, `--comment "coracle: `) {
			rules.WriteString(line)
		}
	}
	return rules.String()
}

// alone looks whether there is nothing of ours in its rules.
func (d *besides) alone(t *testing.T) {
	t.Helper()
	if got := d.all(t); strings.Contains(got, "cor-") || strings.Contains(got, "coracle") {
		t.Errorf("ours are gone, their rules are not:\n%s", got)
	}
}

func (d *besides) untouched(t *testing.T, want string) {
	t.Helper()
	if got := d.rules(t); got != want {
		t.Errorf("Docker's rules are\n%s\nand were without us\n%s", got, want)
	}
}

// fleet is an engine of ours with two containers on its bridge.
type fleet struct {
	eng         *coracle.Engine
	first, next *coracle.Container
}

func coracleOnBridge(t *testing.T) *fleet {
	t.Helper()
	eng, err := coracle.Open(t.Context(), coracle.Config{Root: t.TempDir(), Run: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eng.Close() })
	toolImage(t, eng, nil)
	f := &fleet{eng: eng}
	f.first = serving(t, eng, coracle.ContainerSpec{Ports: []coracle.Port{{Container: 80, Host: 8082, HostAddr: netip.IPv4Unspecified()}}}, "tcp", "0.0.0.0:80")
	f.next = serving(t, eng, coracle.ContainerSpec{Networks: onNetworks(coracle.NetworkBridge)}, "tcp", "0.0.0.0:80")
	return f
}

// works looks whether its containers are reached, reach the outside and each other.
func (f *fleet) works(t *testing.T, outside *netdrv.Namespace) {
	t.Helper()
	for from, dial := range map[string]func(context.Context) (net.Conn, error){
		"outside":             dialFrom(outside, hostAddress+":8082"),
		"the host":            dialHere(hostAddress + ":8082"),
		"the host's loopback": dialHere("127.0.0.1:8082"),
		"its neighbour": func(ctx context.Context) (net.Conn, error) {
			return f.next.DialContext(ctx, "tcp", addressOf(t, f.first, "bridge").String()+":80")
		},
	} {
		if got, err := answers(t, dial); err != nil || got != "hello" {
			t.Errorf("our container, from %s: %q, %v", from, got, err)
		}
	}
	got, err := answers(t, func(ctx context.Context) (net.Conn, error) {
		return f.first.DialContext(ctx, "tcp", outsideAddress+":80")
	})
	if err != nil || got != "hello to "+hostAddress {
		t.Errorf("the outside, from our container: %q, %v", got, err)
	}
}

// ends takes all of it off the host, but for a table that stays.
func (f *fleet) ends(t *testing.T, stays ...string) {
	t.Helper()
	for _, c := range []*coracle.Container{f.first, f.next} {
		if err := c.Remove(t.Context(), &coracle.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	if err := f.eng.Close(); err != nil && !errors.Is(err, coracle.ErrClosed) {
		t.Error(err)
	}
	objects, err := netdrv.FirewallObjects(t.Context())
	objects = slices.DeleteFunc(objects, func(o netdrv.FirewallObject) bool { return slices.Contains(stays, o.Table) })
	if err != nil || len(objects) != 0 {
		t.Errorf("left in the firewall: %v, %v", objects, err)
	}
}
