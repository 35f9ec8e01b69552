# The usual jobs. Everything that CI does is in .ci/run.

GO ?= go

.PHONY: all build test race vet lint bench test-vm test-vm-arm64 test-reboot fuzz ci

all: build vet test

build:
	CGO_ENABLED=0 $(GO) build ./...

test:
	$(GO) test ./...

race:
	$(GO) test -race ./...

vet:
	$(GO) vet ./...

lint:
	golangci-lint run

bench:
	$(GO) test -run '^$$' -bench . ./...

# The same tests under Debian's kernel in qemu: pure cgroup v2, AppArmor, no lowerdir+. PKGS and VMFLAGS narrow it.
PKGS ?= ./...

test-vm:
	$(GO) run ./internal/vmtest $(VMFLAGS) $(PKGS)

test-vm-arm64:
	$(GO) run ./internal/vmtest -arch arm64 $(VMFLAGS) $(PKGS)

# The machine is reset while detached containers run, and booted again: two minutes.
test-reboot:
	$(GO) run ./internal/vmtest -reboot -run TestReboot .

# Each fuzz target for FUZZTIME.
FUZZTIME ?= 1m

fuzz:
	.ci/fuzz $(FUZZTIME)

ci:
	.ci/run
