package coracle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/internal/statefile"
)

// A HealthSpec is a health check: a command that is run in the container again and again and says by its exit code
// whether the container does what it is for. [Engine.Supervise] runs it. Fields that are zero mean what the image says,
// and where it says nothing, or the spec's Test is its own, the defaults below.
type HealthSpec struct {
	// Test is what is run: {"CMD", program, arguments...}, {"CMD-SHELL", command line} with the image's shell or
	// /bin/sh -c, or {"NONE"} for no check at all, in spite of the image. Empty means the image's. It runs as the container's
	// own process does: user, environment and working directory are the same. Exit code 0 is success.
	Test []string `json:",omitempty"`
	// Interval is the time between the end of a check and the beginning of the next, and from the start to the first.
	// Zero means 30 s.
	Interval time.Duration `json:",omitempty"`
	// Timeout is how long a check may take. Then it is killed, and has failed. Zero means 30 s.
	Timeout time.Duration `json:",omitempty"`
	// StartPeriod is how long after the start failures do not count, as long as no check has succeeded. Zero means that
	// all count.
	StartPeriod time.Duration `json:",omitempty"`
	// StartInterval takes the place of Interval in the StartPeriod, until a check succeeds. Zero means 5 s.
	StartInterval time.Duration `json:",omitempty"`
	// Retries is how many failures in a row make the container unhealthy. Zero means 3.
	Retries int `json:",omitempty"`
}

// HealthStatus is what the health checks of a container say of it.
type HealthStatus string

// The health of a container.
const (
	HealthStarting  HealthStatus = "starting" // no check has succeeded yet, and too few have failed
	HealthHealthy   HealthStatus = "healthy"
	HealthUnhealthy HealthStatus = "unhealthy"
)

// Health is what the health checks of a container's last start have found. After the container's end it is what it was.
type Health struct {
	Status HealthStatus
	// FailingStreak is how many checks have failed since the last one that did not.
	FailingStreak int
	// Log are the last results, at most five, the oldest first.
	Log []HealthResult
}

// A HealthResult is the result of one health check.
type HealthResult struct {
	Start, End time.Time
	// ExitCode is the command's, 128 and the number of the signal that ended it, or -1 if it could not be run or took too
	// long.
	ExitCode int
	// Output is the beginning of what it wrote to its standard output and standard error, at most 4096 bytes, or why it
	// could not be run.
	Output string
}

const (
	healthFile      = "health.json"
	maxHealthLog    = 5
	maxHealthOutput = 4096
	maxHealthTest   = 64 << 10 // bytes of a Test
)

// healthCheck is what spec and image say together. Nothing in it is zero but StartPeriod.
type healthCheck struct {
	Args                                          []string
	Interval, Timeout, StartPeriod, StartInterval time.Duration
	Retries                                       int
}

// imageHealth is what a configuration has beyond the OCI specification: Docker's health check, and the shell of its commands.
type imageHealth struct {
	Healthcheck *HealthSpec `json:",omitempty"`
	Shell       []string    `json:",omitempty"`
}

// health returns what the image's configuration says of health checks.
func (p *parsedImage) health() (h imageHealth, err error) {
	var c struct {
		Config imageHealth `json:"config"`
	}
	if len(p.rawConfig) == 0 {
		return h, nil
	}
	if err := json.Unmarshal(p.rawConfig, &c); err != nil {
		return h, fmt.Errorf("%w: the image's Healthcheck: %v", ErrInvalid, err)
	}
	return c.Config, nil
}

// Health returns the health check of the image's configuration, or nil where it has none. The error matches ErrInvalid
// where it makes no sense.
func (i *Image) Health() (*HealthSpec, error) {
	h, err := i.health()
	if err == nil && h.Healthcheck != nil {
		err = h.Healthcheck.validate()
	}
	if err != nil {
		return nil, imageError("read", i.Ref(), err)
	}
	return h.Healthcheck, nil
}

// validate checks what can be checked of a health check by itself.
func (h *HealthSpec) validate() error {
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.value != 0 && d.value < time.Millisecond {
			return fmt.Errorf("%w: Health.%s: %v is less than a millisecond", ErrInvalid, d.field, d.value)
		}
	}
	if h.Retries < 0 {
		return fmt.Errorf("%w: Health.Retries: negative", ErrInvalid)
	}
	size := 0
	for _, arg := range h.Test {
		size += len(arg) + 1
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("%w: Health.Test: an argument has a NUL byte", ErrInvalid)
		}
	}
	if size > maxHealthTest {
		return fmt.Errorf("%w: Health.Test: more than %d bytes", ErrInvalid, maxHealthTest)
	}
	switch {
	case len(h.Test) == 0, h.Test[0] == "NONE" && len(h.Test) == 1:
		return nil
	case h.Test[0] == "NONE":
		return fmt.Errorf("%w: Health.Test: something follows NONE", ErrInvalid)
	case h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL":
		return fmt.Errorf("%w: Health.Test: it begins with %s, and not with CMD, CMD-SHELL or NONE", ErrInvalid, quoteShort(h.Test[0]))
	case len(h.Test) == 1 || h.Test[1] == "":
		return fmt.Errorf("%w: Health.Test: nothing to execute", ErrInvalid)
	}
	return nil
}

// none reports whether there is to be no health check, whatever the image says.
func (h *HealthSpec) none() bool { return h != nil && len(h.Test) > 0 && h.Test[0] == "NONE" }

// resolveHealth settles what is checked and how often; nil means that nothing is.
func (s *ContainerSpec) resolveHealth(image imageHealth) (*healthCheck, error) {
	if s.Health.none() {
		return nil, nil
	}
	var h HealthSpec
	if image.Healthcheck != nil {
		h = *image.Healthcheck
	}
	if own := s.Health; own != nil {
		if len(own.Test) > 0 {
			h.Test = own.Test
		}
		setIf(&h.Interval, own.Interval)
		setIf(&h.Timeout, own.Timeout)
		setIf(&h.StartPeriod, own.StartPeriod)
		setIf(&h.StartInterval, own.StartInterval)
		setIf(&h.Retries, own.Retries)
	}
	if err := h.validate(); err != nil {
		return nil, err
	}
	if len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil, nil
	}
	c := &healthCheck{Args: h.Test[1:], Interval: 30 * time.Second, Timeout: 30 * time.Second, StartPeriod: h.StartPeriod, StartInterval: 5 * time.Second, Retries: 3}
	if h.Test[0] == "CMD-SHELL" {
		shell := image.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		if size := len(strings.Join(shell, " ")); size > maxHealthTest || shell[0] == "" {
			return nil, fmt.Errorf("%w: the image's Shell: empty, or more than %d bytes", ErrInvalid, maxHealthTest)
		}
		c.Args = slices.Concat(shell, c.Args)
	}
	setIf(&c.Interval, h.Interval)
	setIf(&c.Timeout, h.Timeout)
	setIf(&c.StartInterval, h.StartInterval)
	setIf(&c.Retries, h.Retries)
	return c, nil
}

// record adds a result, by the rules of Docker. started is when the container was.
func (h *Health) record(check *healthCheck, started time.Time, r HealthResult) {
	h.Log = append(slices.Clone(h.Log), r)
	h.Log = h.Log[max(0, len(h.Log)-maxHealthLog):]
	switch {
	case r.ExitCode == 0:
		h.Status, h.FailingStreak = HealthHealthy, 0
	case h.Status == HealthStarting && r.Start.Sub(started) < check.StartPeriod:
		// It may take its time.
	default:
		if h.FailingStreak++; h.FailingStreak >= check.Retries {
			h.Status = HealthUnhealthy
		}
	}
}

// next is when the next check is due, and how long that is from now at most.
func (h *Health) next(check *healthCheck, started, now time.Time) (at time.Time) {
	pause, last := check.Interval, started
	if h.Status == HealthStarting && now.Sub(started) < check.StartPeriod {
		pause = check.StartInterval
	}
	if n := len(h.Log); n > 0 {
		last = h.Log[n-1].End
	}
	if at = last.Add(pause); at.Sub(now) > pause {
		at = now.Add(pause) // the clock was set back
	}
	return at
}

// healthRecord is health.json: the health of one start of a container. The supervisor writes it, under the container's
// lock. It is not synced: nothing runs on through a power failure.
type healthRecord struct {
	Version int
	Run     int // containerState.Starts
	Health
}

// health returns the health of the container's last start, or nil if it has no health check or was never started.
func (e *Engine) health(st *containerState) (*Health, error) {
	if st.Resolved.Health == nil || st.Status == StatusCreated {
		return nil, nil
	}
	var r healthRecord
	err := statefile.Read(e.containerDir(st.ID), healthFile, &r)
	var io *fs.PathError
	if errors.As(err, &io) && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil || r.Version != stateVersion || r.Run != st.Starts || !r.sound() {
		return &Health{Status: HealthStarting}, nil // nothing, or what a power failure has left
	}
	return &r.Health, nil
}

// sound reports whether this is something that a supervisor may have written.
func (h *Health) sound() bool {
	switch h.Status {
	case HealthStarting, HealthHealthy, HealthUnhealthy:
	default:
		return false
	}
	long := func(r HealthResult) bool { return len(r.Output) > maxHealthOutput }
	return h.FailingStreak >= 0 && len(h.Log) <= maxHealthLog && !slices.ContainsFunc(h.Log, long)
}

// healthy reports whether the container runs and is healthy. One without a health check never will be.
func (e *Engine) healthy(st *containerState) (bool, error) {
	if st.Resolved.Health == nil {
		return false, fmt.Errorf("%w: the container has no health check: set Health in its spec", ErrInvalid)
	}
	if !alive(st) {
		return false, nil
	}
	h, err := e.health(st)
	return err == nil && h != nil && h.Status == HealthHealthy, err
}
