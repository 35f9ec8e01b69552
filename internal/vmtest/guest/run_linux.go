package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/internal/vmtest/guestplan"
)

var errFailed = errors.New("tests failed")

func appletNames(busybox string) ([]string, error) {
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", busybox, err)
	}
	return strings.Fields(string(out)), nil
}

// runTests runs every binary of the plan and prints go test's result lines.
func runTests(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var plan guestplan.Plan
	if err := json.Unmarshal(data, &plan); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	printMachine()
	failed := false
	for _, test := range plan.Tests {
		failed = !runTest(&plan, &test) || failed
	}
	if failed {
		return errFailed
	}
	return nil
}

// printMachine says what the tests run on.
func printMachine() {
	for _, path := range []string{"/proc/version", "/sys/kernel/security/lsm", "/sys/fs/cgroup/cgroup.controllers"} {
		if text, err := os.ReadFile(path); err == nil {
			fmt.Printf("guest: %s: %s\n", path, strings.TrimSpace(string(text)))
		}
	}
}

func runTest(plan *guestplan.Plan, test *guestplan.Test) (ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), plan.Timeout)
	defer cancel()
	args := []string{"-test.paniconexit0", "-test.v", "-test.timeout=" + plan.Timeout.String()}
	if plan.Short {
		args = append(args, "-test.short")
	}
	if plan.Run != "" {
		args = append(args, "-test.run="+plan.Run)
	}
	if plan.Bench != "" {
		args = append(args, "-test.bench="+plan.Bench, "-test.benchtime=1x")
	}
	cmd := exec.CommandContext(ctx, test.Binary, args...)
	cmd.Dir = test.Dir
	cmd.Env = append(append(os.Environ(), "PWD="+test.Dir), plan.Env...)
	if boot := commandLine(guestplan.Boot); boot != "" {
		cmd.Env = append(cmd.Env, guestplan.BootEnv+"="+boot)
	}
	var output bytes.Buffer
	cmd.Stdout = &output
	if plan.Verbose || plan.Bench != "" {
		cmd.Stdout = io.MultiWriter(os.Stdout, &output)
	}
	cmd.Stderr = cmd.Stdout
	fmt.Println("guest: running", test.Package) // a kernel that dies leaves this as its last words
	start := time.Now()
	err := cmd.Run()
	seconds := time.Since(start).Seconds()
	passed, skipped := count(output.String())
	if err != nil {
		if !plan.Verbose {
			printFailure(output.String())
		}
		fmt.Printf("FAIL\t%s\t%.3fs\t(%v)\n", test.Package, seconds, err)
		return false
	}
	for _, line := range skipped {
		fmt.Println(line)
	}
	fmt.Printf("ok  \t%s\t%.3fs\t(%d passed, %d skipped)\n", test.Package, seconds, passed, len(skipped))
	return true
}

// printFailure prints what -test.v wrote without what passed.
func printFailure(output string) {
	for line := range strings.Lines(output) {
		trimmed := strings.TrimSpace(line)
		if !strings.HasPrefix(trimmed, "=== ") && !strings.HasPrefix(trimmed, "--- PASS: ") {
			fmt.Print(line)
		}
	}
}

// count returns the number of passed tests and, for each skipped one, its name and reason, from the output of -test.v.
func count(output string) (passed int, skipped []string) {
	lines := strings.Split(output, "\n")
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "--- PASS: "):
			passed++
		case strings.HasPrefix(trimmed, "--- SKIP: "):
			// The reason stands above the result of a test, and below it where the test has a parent.
			reason := ""
			for _, j := range []int{i - 1, i + 1} {
				if j >= 0 && j < len(lines) && strings.HasPrefix(lines[j], "    ") && !strings.Contains(lines[j], "--- ") {
					reason = strings.TrimSpace(lines[j])
					break
				}
			}
			skipped = append(skipped, trimmed+" "+reason)
		}
	}
	return passed, skipped
}
