package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coracle-dev/coracle/internal/debian"
	"github.com/coracle-dev/coracle/internal/testutil"
)

//go:embed testdata/floor.c
var floorSource []byte

// errNoCompiler says that there is no C compiler.
var errNoCompiler = errors.New("needs gcc and libc6-dev")

// floorProgram compiles the floor, once for each version of its source.
var floorProgram = sync.OnceValues(func() (string, error) {
	dir, err := debian.CacheDir("floor")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(floorSource)))
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", errNoCompiler
	}
	tmp, err := os.MkdirTemp(dir, "compile-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.Command(gcc, "-O2", "-static", "-Wall", "-o", filepath.Join(tmp, "floor"), "-x", "c", "-")
	cmd.Stdin = bytes.NewReader(floorSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the floor: %w\n%s", err, out)
	}
	return program, os.Rename(filepath.Join(tmp, "floor"), program)
})

// Floor reports what the kernel alone takes for c: testdata/floor.c says exactly what it does. It skips without root or
// a C compiler.
func Floor(b *testing.B, c *Container) {
	b.Helper()
	times := c.runFloor(b, b.N)
	report(b, times)
}

// FloorParallel is Floor with several starts at a time, each in a program of its own; ns/op is the time of all divided
// by b.N.
func FloorParallel(b *testing.B, c *Container, atOnce int) {
	b.Helper()
	c.runFloor(b, 1) // compiles
	start := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, atOnce)
	for i := range atOnce {
		if n := (b.N + atOnce - 1 - i) / atOnce; n > 0 {
			state := b.TempDir()
			wg.Go(func() { _, errs[i] = c.floor(n, false, state, state) })
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N), "ns/op")
}

// runFloor starts c n times and returns the time of each.
func (c *Container) runFloor(t testing.TB, n int) []time.Duration {
	t.Helper()
	require(t)
	if _, err := floorProgram(); errors.Is(err, errNoCompiler) {
		testutil.Skip(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	times, err := c.floor(n, true, t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return times
}

func (c *Container) floor(n int, warm bool, state, files string) ([]time.Duration, error) {
	program, err := floorProgram()
	if err != nil {
		return nil, err
	}
	// Each of several programs needs a parent of its own: the last to leave would take it from the others.
	state, err = os.MkdirTemp(state, "s")
	if err != nil {
		return nil, err
	}
	args := []string{"-n", strconv.Itoa(n), "-s", state, "-p", "coracle-floor-" + filepath.Base(state) + strconv.Itoa(os.Getpid())}
	if len(c.Filter) > 0 {
		filter := filepath.Join(files, "filter")
		if err := os.WriteFile(filter, c.Filter, 0o600); err != nil {
			return nil, err
		}
		args = append(args, "-f", filter)
	}
	if warm {
		args = append(args, "-w")
	}
	if c.Gap > 0 {
		args = append(args, "-g", strconv.FormatInt(c.Gap.Milliseconds(), 10))
	}
	if c.Join > 0 {
		args = append(args, "-x", strconv.Itoa(c.Join))
	}
	args = append(args, floorArgs(c.Spec, c.Lower)...)
	cmd := exec.Command(program, append(args, c.Spec.Process.Args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("the floor: %w\n%s", err, stderr.Bytes())
	}
	times := make([]time.Duration, 0, n)
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		ns, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("the floor's output: %w", err)
		}
		times = append(times, time.Duration(ns))
	}
	if len(times) != n {
		return nil, fmt.Errorf("the floor ran %d of %d rounds", len(times), n)
	}
	return times, nil
}

// floorArgs are the floor's options for what differs between specs.
func floorArgs(spec *specs.Spec, lower []string) []string {
	var args []string
	for _, dir := range lower {
		args = append(args, "-l", dir)
	}
	if spec.Hostname != "" {
		args = append(args, "-h", spec.Hostname)
	}
	l := spec.Linux
	if l == nil {
		return args
	}
	network := false
	for _, ns := range l.Namespaces {
		network = network || ns.Type == specs.NetworkNamespace
	}
	if !network {
		args = append(args, "-H")
	}
	for _, path := range l.MaskedPaths {
		args = append(args, "-m", path)
	}
	for _, path := range l.ReadonlyPaths {
		args = append(args, "-r", path)
	}
	r := l.Resources
	if r == nil {
		return args
	}
	if r.Memory != nil && r.Memory.Limit != nil {
		args = append(args, "-M", strconv.FormatInt(*r.Memory.Limit, 10))
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit > 0 {
		args = append(args, "-P", strconv.FormatInt(*r.Pids.Limit, 10))
	}
	if r.CPU != nil {
		if r.CPU.Quota != nil {
			args = append(args, "-Q", strconv.FormatInt(*r.CPU.Quota, 10))
		}
		if r.CPU.Period != nil {
			args = append(args, "-T", strconv.FormatUint(*r.CPU.Period, 10))
		}
		if r.CPU.Shares != nil {
			args = append(args, "-W", strconv.FormatUint(*r.CPU.Shares, 10))
		}
	}
	return args
}
