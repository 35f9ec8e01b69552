package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle/internal/testutil"
)

// read returns a file of a group by its name in v1, or else by its name in v2. It returns "-" if the mode lacks it.
func (g *Group) testRead(t testing.TB, controller, v1, v2 string) string {
	t.Helper()
	file := v2
	if g.h.legacy(controller) || controller == "io" && g.h.legacy("blkio") {
		file = v1
	}
	data, err := os.ReadFile(filepath.Join(g.Path(controller), file))
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(data))
}

// Each limit, as the kernel has it afterwards.
func TestLimitsInKernel(t *testing.T) {
	h := open(t)
	for _, tt := range []struct {
		name       string
		limits     Limits
		controller string
		v1, v1want string
		v2, v2want string
	}{
		{"memory", Limits{Memory: 64 << 20}, "memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864"},
		{"reservation", Limits{MemoryReservation: 32 << 20}, "memory", "memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432"},
		{"cpus", Limits{CPUs: 1.5}, "cpu", "cpu.cfs_quota_us", "150000", "cpu.max", "150000 100000"},
		{"quota", Limits{CPUQuota: 20000, CPUPeriod: 50000}, "cpu", "cpu.cfs_period_us", "50000", "cpu.max", "20000 50000"},
		{"quota alone", Limits{CPUQuota: 20000}, "cpu", "cpu.cfs_quota_us", "20000", "cpu.max", "20000 100000"},
		{"period alone", Limits{CPUPeriod: 50000}, "cpu", "cpu.cfs_quota_us", "-1", "cpu.max", "max 50000"},
		{"shares", Limits{CPUShares: 512}, "cpu", "cpu.shares", "512", "cpu.weight", "59"},
		{"cpuset", Limits{CPUSetCPUs: "0"}, "cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"},
		{"mems", Limits{CPUSetMems: "0"}, "cpuset", "cpuset.mems", "0", "cpuset.mems", "0"},
		{"pids", Limits{PIDs: 17}, "pids", "pids.max", "17", "pids.max", "17"},
		{"no pids limit", Limits{PIDs: -1}, "pids", "pids.max", "max", "pids.max", "max"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t, h, tt.controller)
			g := create(t, h, resources(t, tt.limits))
			want := tt.v2want
			if h.legacy(tt.controller) {
				want = tt.v1want
			}
			if got := g.testRead(t, tt.controller, tt.v1, tt.v2); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// A v1 cpuset without a word about processors would take no process.
func TestNoLimits(t *testing.T) {
	h := open(t)
	for _, r := range []*specs.LinuxResources{nil, {}, resources(t, Limits{})} {
		g, err := h.Create("nolimits", r)
		if err != nil {
			t.Fatal(err)
		}
		start(t, g, "wait").line(t)
		if err := errors.Join(g.Kill(t.Context()), g.Remove(t.Context())); err != nil {
			t.Error(err)
		}
	}
}

func TestUpdate(t *testing.T) {
	h := open(t)
	needs(t, h, "memory")
	needs(t, h, "cpu")
	g := create(t, h, resources(t, Limits{Memory: 64 << 20, CPUQuota: 20000}))
	memory := func() string { return g.testRead(t, "memory", "memory.limit_in_bytes", "memory.max") }
	for _, m := range []int64{256 << 20, 32 << 20, 128 << 20} { // v1 minds the order: up and down
		if err := g.Update(resources(t, Limits{Memory: m})); err != nil {
			t.Fatal(err)
		}
		if got := memory(); got != itoa(m) {
			t.Errorf("memory %s, want %d", got, m)
		}
	}
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(-1)), Swap: new(int64(-1))}}); err != nil {
		t.Errorf("no limit any more: %v", err)
	}
	if s, err := g.Stats(); err != nil || s.Memory.Limit != 0 || s.Memory.SwapLimit != 0 {
		t.Errorf("after that the limit is %+v, %v", s.Memory, err)
	}
	if err := g.Update(resources(t, Limits{Memory: 64 << 20})); err != nil {
		t.Errorf("a limit after that: %v", err)
	}
	if err := g.Update(resources(t, Limits{CPUPeriod: 50000})); err != nil {
		t.Fatal(err)
	}
	if got := g.testRead(t, "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "20000" && got != "20000 50000" {
		t.Errorf("a new period changed the quota: %q", got)
	}
	if err := g.Update(resources(t, Limits{CPUQuota: 30000})); err != nil {
		t.Fatal(err)
	}
	if got := g.testRead(t, "cpu", "cpu.cfs_period_us", "cpu.max"); got != "50000" && got != "30000 50000" {
		t.Errorf("a new quota changed the period: %q", got)
	}
	start(t, g, "wait").line(t)
	err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(4096)), CheckBeforeUpdate: new(true)}})
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("less memory than is in use: %v", err)
	}
}

// TestUpdateFails: a value that the kernel refuses leaves all limits as they were, those too that were written before it.
func TestUpdateFails(t *testing.T) {
	h := open(t)
	for _, c := range []string{"memory", "cpu", "cpuset"} {
		needs(t, h, c)
	}
	g := create(t, h, resources(t, Limits{Memory: 64 << 20, CPUQuota: 20000, CPUSetCPUs: "0", CPUShares: 512, PIDs: 10}))
	limits := func() string {
		return strings.Join([]string{
			g.testRead(t, "memory", "memory.limit_in_bytes", "memory.max"), g.testRead(t, "cpu", "cpu.cfs_quota_us", "cpu.max"),
			g.testRead(t, "cpu", "cpu.shares", "cpu.weight"), g.testRead(t, "cpuset", "cpuset.cpus", "cpuset.cpus"),
		}, " ")
	}
	before := limits()
	for _, change := range []Limits{
		{Memory: 128 << 20, CPUQuota: 30000, CPUShares: 100, CPUSetCPUs: "4000", PIDs: 20},
		{Memory: 32 << 20, CPUPeriod: 50000, CPUSetCPUs: "4000"},
	} {
		err := g.Update(resources(t, change))
		var le *LimitError
		if !errors.As(err, &le) || le.Feature != "cpuset" {
			t.Fatalf("processors that there are not: %v", err)
		}
		if after := limits(); after != before {
			t.Errorf("limits were %s, and are %s", before, after)
		}
	}
	if err := g.Update(resources(t, Limits{Memory: 128 << 20})); err != nil {
		t.Error(err)
	}
}

func TestKeyedLine(t *testing.T) {
	for _, test := range []struct{ file, data, key, want string }{
		{"io.max", "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max\n", "8:16", "8:16 rbps=2 wbps=max riops=max wiops=max"},
		{"io.max", "8:0 rbps=1 wbps=max riops=max wiops=max\n", "8:1", "8:1 rbps=max wbps=max riops=max wiops=max"},
		{"blkio.throttle.read_bps_device", "8:0 100\n", "8:0", "8:0 100"},
		{"blkio.throttle.read_bps_device", "", "8:0", "8:0 0"},
		{"io.weight", "default 100\n8:0 50\n", "default", "default 100"},
		{"io.weight", "default 100\n", "8:0", "8:0 default"},
		{"blkio.weight_device", "", "8:0", "8:0 0"},
	} {
		if got := keyedLine(test.data, test.file, test.key); got != test.want {
			t.Errorf("%s of %q: %q, want %q", test.file, test.data, got, test.want)
		}
	}
}

func TestMissingController(t *testing.T) {
	h := open(t)
	if h.tree("hugetlb") == nil {
		_, err := h.Create("x", resources(t, Limits{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}}}))
		var u *UnsupportedError
		if !errors.As(err, &u) || u.Fix == "" || u.File == "" || u.Feature == "" {
			t.Errorf("a limit of huge pages: %#v", err)
		}
	}
	_, err := h.Create("x", resources(t, Limits{Unified: map[string]string{"memory.no_such_file": "1"}}))
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a file that no kernel has: %v", err)
	}
	if names, err := h.Names(); err != nil || len(names) > 0 {
		t.Errorf("names %q, %v", names, err)
	}
}

func TestOOM(t *testing.T) {
	h := open(t)
	needs(t, h, "memory")
	g := create(t, h, resources(t, Limits{Memory: 48 << 20, MemorySwap: 48 << 20}))
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Errorf("before: %d, %v", n, err)
	}
	p := start(t, g, "hog")
	for p.out.Scan() {
		t.Errorf("the hog %s", p.out.Text())
	}
	_ = p.Wait()
	if n, err := g.OOMKills(); n == 0 || err != nil {
		t.Errorf("%d kills, %v", n, err)
	}
	s, err := g.Stats()
	if err != nil || s.Memory.OOMKills == 0 || s.Memory.Limit != 48<<20 {
		t.Errorf("%+v, %v", s.Memory, err)
	}
	if h.Mode() == V2 && s.Memory.LimitHits == 0 { // v1 does not count this one in every kernel
		t.Errorf("%+v", s.Memory)
	}
}

func TestForkBomb(t *testing.T) {
	h := open(t)
	needs(t, h, "pids")
	const limit = 60
	g := create(t, h, resources(t, Limits{PIDs: limit}))
	p := start(t, g, "bomb")
	p.Stderr = nil
	p.line(t)
	eventually(t, "a process is refused", func() bool {
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if s.PIDs.Current > limit || s.PIDs.Limit != limit {
			t.Fatalf("%+v", s.PIDs)
		}
		return s.PIDs.LimitHits > 0
	})
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestThrottle(t *testing.T) {
	h := open(t)
	needs(t, h, "cpu")
	g := create(t, h, resources(t, Limits{CPUs: 0.05}))
	start(t, g, "spin").line(t)
	eventually(t, "it is throttled", func() bool {
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.CPU.Throttled > 0 && s.CPU.ThrottledTime > 0 && s.CPU.Usage > 0
	})
}

// dockerRules is the list that Docker gives every container.
func dockerRules() []specs.LinuxDeviceCgroup {
	list := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	add := func(kind string, major, minor int64, access string) {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major >= 0 {
			r.Major = new(major)
		}
		if minor >= 0 {
			r.Minor = new(minor)
		}
		list = append(list, r)
	}
	add("c", -1, -1, "m")
	add("b", -1, -1, "m")
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {10, 200}, {136, -1}} {
		add("c", d[0], d[1], "rwm")
	}
	return list
}

func TestDevices(t *testing.T) {
	h := open(t)
	if h.tree("devices") == nil && h.tree("") == nil {
		t.Skip("nothing can filter devices here")
	}
	check := func(g *Group, role, want string) {
		t.Helper()
		p := start(t, g, role)
		if got := p.line(t); got != want {
			t.Errorf("%s: %s, want %s", role, got, want)
		}
		_ = p.Wait()
	}
	g := create(t, h, &specs.LinuxResources{Devices: dockerRules()})
	node := filepath.Join(t.TempDir(), "null")
	check(g, "open /dev/full", "ok")
	check(g, "open /dev/kmsg", "EPERM")
	check(g, "mknod "+node, "ok")

	rules := append(dockerRules(), specs.LinuxDeviceCgroup{Type: "c", Major: new(int64(1)), Minor: new(int64(7)), Access: "r"},
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(1)), Minor: new(int64(11)), Access: "r"},
		specs.LinuxDeviceCgroup{Type: "c", Access: "m"})
	// The last rule takes mknod from everything.
	if err := g.Update(&specs.LinuxResources{Devices: rules}); err != nil {
		t.Fatal(err)
	}
	check(g, "open /dev/full", "EPERM")
	check(g, "open /dev/kmsg", "ok")
	check(g, "mknod "+node, "EPERM")

	// All but one.
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"},
		{Type: "c", Major: new(int64(1)), Minor: new(int64(11)), Access: "r"}}}); err != nil {
		t.Fatal(err)
	}
	check(g, "open /dev/kmsg", "EPERM")
	check(g, "open /dev/full", "ok")
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true}}}); err == nil {
		check(g, "open /dev/kmsg", "ok")
	} else {
		t.Error(err)
	}
}

// The filter of v2 works in a hybrid system, too: tested here so that it is tested on machines of either kind.
func TestDeviceProgram(t *testing.T) {
	h := open(t)
	if h.tree("") == nil {
		t.Skip("there is no v2 hierarchy")
	}
	g := create(t, h, nil)
	for _, tt := range []struct {
		rules []specs.LinuxDeviceCgroup
		want  map[string]string
	}{
		{dockerRules(), map[string]string{"open /dev/full": "ok", "open /dev/kmsg": "EPERM"}},
		{[]specs.LinuxDeviceCgroup{{Allow: true}, {Type: "c", Major: new(int64(1)), Minor: new(int64(7)), Access: "wm"}},
			map[string]string{"open /dev/full": "ok", "open /dev/kmsg": "ok"}},
		{[]specs.LinuxDeviceCgroup{{Allow: true}, {Type: "c", Major: new(int64(1)), Minor: new(int64(7)), Access: "rm"}},
			map[string]string{"open /dev/full": "EPERM", "open /dev/kmsg": "ok"}},
	} {
		rules, err := newDeviceRules(tt.rules)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the same program again is no error
			if err := g.attachDevices(rules, false); errors.Is(err, unix.EPERM) {
				testutil.Skip(t, "BPF programs cannot be attached here: "+err.Error())
			} else if err != nil {
				t.Fatal(err)
			}
		}
		for role, want := range tt.want {
			p := start(t, g, role)
			if got := p.line(t); got != want {
				t.Errorf("%s: %s, want %s", role, got, want)
			}
			_ = p.Wait()
		}
	}
}

// fakeUnified is a v2 group made of plain files.
func fakeUnified(t *testing.T, files ...string) (*Group, string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "x")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	tr := &tree{v2: true}
	tr.parent.Store(&parent{fd: fd, path: root, controllers: []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma"}})
	h := &Hierarchy{mode: V2, trees: []*tree{tr}}
	return &Group{h: h, name: "x"}, dir
}

// What is written, and that no other file is touched: a missing one would be an error.
func TestUnifiedFiles(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits Limits
		files  map[string]string
	}{
		{"memory", Limits{Memory: 64 << 20}, map[string]string{"memory.max": "67108864", "memory.swap.max": "67108864"}},
		{"memory without swap accounting", Limits{Memory: 64 << 20}, map[string]string{"memory.max": "67108864"}},
		{"no swap", Limits{Memory: 64 << 20, MemorySwap: 64 << 20}, map[string]string{"memory.max": "67108864", "memory.swap.max": "0"}},
		{"all swap", Limits{Memory: 64 << 20, MemorySwap: -1}, map[string]string{"memory.max": "67108864", "memory.swap.max": "max"}},
		{"cpus", Limits{CPUs: 0.5}, map[string]string{"cpu.max": "50000 100000"}},
		{"shares", Limits{CPUShares: 1024}, map[string]string{"cpu.weight": "100"}},
		{"cpuset", Limits{CPUSetCPUs: "0-1", CPUSetMems: "0"}, map[string]string{"cpuset.cpus": "0-1", "cpuset.mems": "0"}},
		{"bfq", Limits{BlkioWeight: 500}, map[string]string{"io.bfq.weight": "500"}},
		{"iocost", Limits{BlkioWeight: 500}, map[string]string{"io.weight": "default 4950"}},
		{"huge pages", Limits{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}},
			map[string]string{"hugetlb.2MB.max": "4194304"}},
		{"unified", Limits{Unified: map[string]string{"memory.high": "1048576"}}, map[string]string{"memory.high": "1048576"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var names []string
			for f := range tt.files {
				names = append(names, f)
			}
			g, dir := fakeUnified(t, names...)
			g.h.log = discard
			if err := g.set(resources(t, tt.limits), true); err != nil {
				t.Fatal(err)
			}
			for f, want := range tt.files {
				if got, err := os.ReadFile(filepath.Join(dir, f)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v; want %q", f, got, err, want)
				}
			}
		})
	}
	g, _ := fakeUnified(t, "memory.max")
	g.h.log = discard
	if err := g.set(resources(t, Limits{Memory: 64 << 20, MemorySwap: 64 << 20}), true); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a swap limit that was asked for, without swap accounting: %v", err)
	}
	for what, r := range map[string]*specs.LinuxResources{
		"swappiness":       {Memory: &specs.LinuxMemory{Swappiness: new(uint64(10))}},
		"disableOOMKiller": {Memory: &specs.LinuxMemory{DisableOOMKiller: new(true)}},
		"realtime":         {CPU: &specs.LinuxCPU{RealtimePeriod: new(uint64(1000))}},
		"classid":          {Network: &specs.LinuxNetwork{ClassID: new(uint32(1))}},
	} {
		if err := g.set(r, true); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, tt := range []struct{ root, own, want string }{
		{"/", "/", "/"}, {"/", "/a/b", "/a/b"}, {"/a", "/a", "/"}, {"/a", "/a/b", "/b"}, {"/a", "/ab", "/"},
		{"/a", "/b", "/"}, {"/..", "/", "/"}, {"/", "/../x", "/"}, {"/docker/1", "/docker/1/x/y", "/x/y"}, {"", "", "/"},
	} {
		if got := below(tt.root, tt.own); got != tt.want {
			t.Errorf("below(%q, %q) = %q, want %q", tt.root, tt.own, got, tt.want)
		}
	}
	if got := strings.Join(ancestors("/a/b/c"), " "); got != "/ /a /a/b /a/b/c" {
		t.Errorf("ancestors: %s", got)
	}
	if got := strings.Join(ancestors("/"), " "); got != "/" {
		t.Errorf("ancestors of the root: %s", got)
	}
}
