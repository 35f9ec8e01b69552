package coracle

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestRestartDecision compares the decision with Docker's rules, one row a rule.
func TestRestartDecision(t *testing.T) {
	var (
		no       = RestartPolicy{}
		never    = RestartPolicy{Mode: RestartNo}
		failure  = RestartPolicy{Mode: RestartOnFailure}
		failure3 = RestartPolicy{Mode: RestartOnFailure, MaxRetries: 3}
		always   = RestartPolicy{Mode: RestartAlways}
		unless   = RestartPolicy{Mode: RestartUnlessStopped}
	)
	type policies struct{ no, failure, failure3, always, unless bool }
	for name, test := range map[string]struct {
		in   ending
		want policies
	}{
		"code 0":                       {ending{}, policies{always: true, unless: true}},
		"failed":                       {ending{failed: true}, policies{failure: true, failure3: true, always: true, unless: true}},
		"failed, two restarts":         {ending{failed: true, restarts: 2}, policies{failure: true, failure3: true, always: true, unless: true}},
		"failed, three restarts":       {ending{failed: true, restarts: 3}, policies{failure: true, always: true, unless: true}},
		"failed, three, a long run":    {ending{failed: true, restarts: 3, ran: time.Hour}, policies{failure: true, always: true, unless: true}},
		"stopped":                      {ending{stopped: true}, policies{}},
		"stopped, failed":              {ending{stopped: true, failed: true}, policies{}},
		"boot":                         {ending{booted: true, failed: true}, policies{failure: true, failure3: true, always: true, unless: true}},
		"boot, code 0":                 {ending{booted: true}, policies{always: true, unless: true}},
		"boot, three restarts":         {ending{booted: true, failed: true, restarts: 3}, policies{failure: true, always: true, unless: true}},
		"boot, stopped before":         {ending{booted: true, stopped: true}, policies{always: true}},
		"boot, stopped before, failed": {ending{booted: true, stopped: true, failed: true}, policies{always: true}}, // Docker: on-failure too
	} {
		for _, p := range []struct {
			policy RestartPolicy
			want   bool
		}{{no, test.want.no}, {never, test.want.no}, {failure, test.want.failure}, {failure3, test.want.failure3}, {always, test.want.always}, {unless, test.want.unless}} {
			restart, delay := p.policy.decide(test.in)
			want := time.Duration(0)
			if restart && !test.in.booted {
				want = firstBackoff
			}
			if restart != p.want || delay != want {
				t.Errorf("%s, %+v: %v after %v, want %v after %v", name, p.policy, restart, delay, p.want, want)
			}
		}
	}
}

func TestBackoff(t *testing.T) {
	want := []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000}
	last := time.Duration(0)
	for i, w := range want {
		if last = nextBackoff(last, time.Second); last != w*time.Millisecond {
			t.Fatalf("pause %d is %v, want %v", i, last, w*time.Millisecond)
		}
	}
	if d := nextBackoff(last, longRun-1); d != lastBackoff {
		t.Errorf("after nearly ten seconds: %v", d)
	}
	if d := nextBackoff(last, longRun); d != firstBackoff {
		t.Errorf("after ten seconds: %v", d)
	}
}

// TestRestartOf goes from a state to the decision.
func TestRestartOf(t *testing.T) {
	now, boot := time.Now(), bootID()
	base := containerState{Spec: ContainerSpec{Detached: true, Restart: RestartPolicy{Mode: RestartAlways}}, Status: StatusExited,
		Started: now.Add(-time.Second), Finished: now, Starts: 4, BootID: boot, Exit: &ExitStatus{}}
	for name, test := range map[string]struct {
		change func(*containerState)
		wanted bool
		delay  time.Duration
	}{
		"ended":                   {func(*containerState) {}, true, firstBackoff},
		"again":                   {func(st *containerState) { st.Backoff = time.Second }, true, 2 * time.Second},
		"again after long":        {func(st *containerState) { st.Backoff, st.Started = time.Second, now.Add(-time.Minute) }, true, firstBackoff},
		"the clock was set back":  {func(st *containerState) { st.Backoff, st.Started = time.Second, now.Add(time.Minute) }, true, 2 * time.Second},
		"running":                 {func(st *containerState) { st.Status = StatusRunning }, false, 0},
		"never started":           {func(st *containerState) { st.Status, st.Started = StatusCreated, time.Time{} }, false, 0},
		"stopped":                 {func(st *containerState) { st.stopped = &stopMark{4, boot} }, false, 0},
		"stopped and started":     {func(st *containerState) { st.stopped = &stopMark{3, boot} }, true, firstBackoff},
		"stopped before the boot": {func(st *containerState) { st.stopped, st.BootID = &stopMark{4, "other"}, "other" }, true, 0},
		"stopped after the boot":  {func(st *containerState) { st.stopped, st.BootID = &stopMark{4, boot}, "other" }, false, 0},
		"ran before the boot":     {func(st *containerState) { st.BootID, st.Backoff = "other", time.Second }, true, 0},
		"failed":                  {func(st *containerState) { st.Spec.Restart.Mode, st.Exit = RestartOnFailure, &ExitStatus{Code: 1} }, true, firstBackoff},
		"not failed":              {func(st *containerState) { st.Spec.Restart.Mode = RestartOnFailure }, false, 0},
		"nobody knows": {func(st *containerState) {
			st.Spec.Restart.Mode, st.Exit = RestartOnFailure, &ExitStatus{Code: -1, Unknown: true}
		}, true, firstBackoff},
		"only its program could":         {func(st *containerState) { st.Customized = true }, false, 0},
		"stopped, a boot nobody noticed": {func(st *containerState) { st.stopped, st.BootID = &stopMark{4, "other"}, boot }, false, 0},
	} {
		st := base
		test.change(&st)
		if wanted, delay, _ := st.restart(); wanted != test.wanted || delay != test.delay {
			t.Errorf("%s: %v after %v, want %v after %v", name, wanted, delay, test.wanted, test.delay)
		}
	}
}

// TestHealthRecord goes through sequences of results: "+" is a success, "-" a failure, "s" a failure in the start period.
func TestHealthRecord(t *testing.T) {
	started := time.Now()
	check := &healthCheck{StartPeriod: 10 * time.Second, Retries: 3}
	for results, want := range map[string]string{
		"":           "starting 0",
		"+":          "healthy 0",
		"--":         "starting 2",
		"---":        "unhealthy 3",
		"ssss":       "starting 0",
		"ssss--":     "starting 2",
		"ssss---":    "unhealthy 3",
		"s+s":        "healthy 1", // after a success all count
		"s+sss":      "unhealthy 3",
		"--+--":      "healthy 2",
		"---+":       "healthy 0",
		"---s":       "unhealthy 4",
		"+---------": "unhealthy 9",
	} {
		h := Health{Status: HealthStarting}
		for i, r := range results {
			result := HealthResult{Start: started.Add(time.Minute), ExitCode: 1, Output: string(rune('a' + i))}
			switch r {
			case '+':
				result.ExitCode = 0
			case 's':
				result.Start = started.Add(time.Second)
			}
			h.record(check, started, result)
		}
		if got := string(h.Status) + " " + string(rune('0'+h.FailingStreak)); got != want {
			t.Errorf("%q gives %s, want %s", results, got, want)
		}
		if len(h.Log) != min(len(results), 5) || len(h.Log) > 0 && h.Log[len(h.Log)-1].Output != string(rune('a'+len(results)-1)) {
			t.Errorf("%q: log %v", results, h.Log)
		}
	}
}

func TestHealthNext(t *testing.T) {
	started := time.Now()
	check := &healthCheck{Interval: 30 * time.Second, StartInterval: time.Second, StartPeriod: 10 * time.Second}
	at := func(seconds int) time.Time { return started.Add(time.Duration(seconds) * time.Second) }
	for name, test := range map[string]struct {
		h        Health
		now, due int
	}{
		"the first":                    {Health{Status: HealthStarting}, 0, 1},
		"the next":                     {Health{Status: HealthStarting, Log: []HealthResult{{End: at(3)}}}, 3, 4},
		"after the start period":       {Health{Status: HealthStarting, Log: []HealthResult{{End: at(10)}}}, 10, 40},
		"healthy in the start period":  {Health{Status: HealthHealthy, Log: []HealthResult{{End: at(3)}}}, 3, 33},
		"taken over":                   {Health{Status: HealthHealthy, Log: []HealthResult{{End: at(3)}}}, 20, 33},
		"taken over late":              {Health{Status: HealthHealthy, Log: []HealthResult{{End: at(3)}}}, 200, 33},
		"the clock was set back by 1h": {Health{Status: HealthHealthy, Log: []HealthResult{{End: at(3600)}}}, 100, 130},
	} {
		if due := test.h.next(check, started, at(test.now)); !due.Equal(at(test.due)) {
			t.Errorf("%s: due at %v", name, due.Sub(started))
		}
	}
}

func TestResolveHealth(t *testing.T) {
	image := imageHealth{Healthcheck: &HealthSpec{Test: []string{"CMD", "/check"}, Interval: time.Second, Retries: 7}}
	shell := imageHealth{Healthcheck: &HealthSpec{Test: []string{"CMD-SHELL", "check | it"}}, Shell: []string{"/bin/ash", "-ec"}}
	defaults := healthCheck{Interval: 30 * time.Second, Timeout: 30 * time.Second, StartInterval: 5 * time.Second, Retries: 3}
	with := func(change func(*healthCheck)) *healthCheck {
		h := defaults
		change(&h)
		return &h
	}
	for name, test := range map[string]struct {
		spec  *HealthSpec
		image imageHealth
		want  *healthCheck
	}{
		"none":                  {nil, imageHealth{}, nil},
		"nothing but times":     {&HealthSpec{Interval: time.Second}, imageHealth{}, nil},
		"the image's":           {nil, image, with(func(h *healthCheck) { h.Args, h.Interval, h.Retries = []string{"/check"}, time.Second, 7 })},
		"the image's, unwanted": {&HealthSpec{Test: []string{"NONE"}}, image, nil},
		"none of the image":     {nil, imageHealth{Healthcheck: &HealthSpec{Test: []string{"NONE"}}}, nil},
		"the image's, otherwise": {&HealthSpec{Retries: 1, Timeout: time.Minute}, image, with(func(h *healthCheck) {
			h.Args, h.Interval, h.Retries, h.Timeout = []string{"/check"}, time.Second, 1, time.Minute
		})},
		"the spec's":        {&HealthSpec{Test: []string{"CMD", "a", "b"}}, imageHealth{}, with(func(h *healthCheck) { h.Args = []string{"a", "b"} })},
		"a shell":           {&HealthSpec{Test: []string{"CMD-SHELL", "a | b"}}, imageHealth{}, with(func(h *healthCheck) { h.Args = []string{"/bin/sh", "-c", "a | b"} })},
		"the image's shell": {nil, shell, with(func(h *healthCheck) { h.Args = []string{"/bin/ash", "-ec", "check | it"} })},
	} {
		got, err := (&ContainerSpec{Health: test.spec}).resolveHealth(test.image)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
	}
	for name, h := range map[string]HealthSpec{
		"a word of its own":     {Test: []string{"RUN", "x"}},
		"no program":            {Test: []string{"CMD"}},
		"an empty program":      {Test: []string{"CMD", ""}},
		"no command line":       {Test: []string{"CMD-SHELL"}},
		"more after none":       {Test: []string{"NONE", "x"}},
		"a NUL byte":            {Test: []string{"CMD", "a\x00b"}},
		"too long":              {Test: []string{"CMD", strings.Repeat("x", maxHealthTest)}},
		"negative":              {Interval: -1},
		"less than Docker's":    {Timeout: time.Microsecond},
		"less than no retries":  {Retries: -1},
		"a negative start":      {StartPeriod: -time.Second},
		"a short pause instead": {StartInterval: time.Nanosecond},
	} {
		if _, err := (&ContainerSpec{}).resolveHealth(imageHealth{Healthcheck: &h}); !errors.Is(err, ErrInvalid) {
			t.Errorf("the image has %s: %v", name, err)
		}
		if err := (&ContainerSpec{Image: "x", Health: &h}).validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("the spec has %s: %v", name, err)
		}
	}
}

func TestRestartPolicyInvalid(t *testing.T) {
	always := RestartPolicy{Mode: RestartAlways}
	for name, spec := range map[string]ContainerSpec{
		"unknown":           {Detached: true, Restart: RestartPolicy{Mode: "sometimes"}},
		"attached":          {Restart: always},
		"with AutoRemove":   {Detached: true, AutoRemove: true, Restart: always},
		"negative retries":  {Detached: true, Restart: RestartPolicy{Mode: RestartOnFailure, MaxRetries: -1}},
		"retries of no":     {Detached: true, Restart: RestartPolicy{MaxRetries: 1}},
		"retries of always": {Detached: true, Restart: RestartPolicy{Mode: RestartAlways, MaxRetries: 1}},
	} {
		spec.Image = "x"
		if err := spec.validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := ContainerSpec{Image: "x", Detached: true, Restart: RestartPolicy{Mode: RestartOnFailure, MaxRetries: 3}, Health: &HealthSpec{Test: []string{"CMD", "a"}, Interval: time.Second}}
	b, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	var back ContainerSpec
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(good.Restart, back.Restart) || !reflect.DeepEqual(good.Health, back.Health) {
		t.Errorf("as JSON it is %s: %v", b, err)
	}
	if copied := good.clone(); &copied.Health.Test[0] == &good.Health.Test[0] {
		t.Error("a copy shares the test")
	}
}

// FuzzImageHealth: whatever a configuration says of health checks, it is an error or something that can be run.
func FuzzImageHealth(f *testing.F) {
	for _, s := range []string{
		`{"config":{"Healthcheck":{"Test":["CMD-SHELL","curl -f http://localhost/ || exit 1"],"Interval":30000000000,"Timeout":3000000000,"StartPeriod":5000000000,"Retries":3}}}`,
		`{"config":{"Healthcheck":{"Test":["CMD","/check"]},"Shell":["/bin/bash","-c"]}}`,
		`{"config":{"Healthcheck":{"Test":["NONE"]}}}`, `{"config":{"Healthcheck":null}}`, `{"config":null}`, `{}`,
		`{"config":{"Healthcheck":{"Interval":-1}}}`, `{"config":{"Healthcheck":{"Test":"x"}}}`,
		`{"config":{"Healthcheck":{"Test":["CMD",""],"Retries":1e3}}}`, `[`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := (&parsedImage{rawConfig: raw}).health()
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		check, err := (&ContainerSpec{}).resolveHealth(h)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if check == nil {
			return
		}
		if len(check.Args) == 0 || check.Interval <= 0 || check.Timeout <= 0 || check.StartInterval <= 0 || check.StartPeriod < 0 || check.Retries <= 0 {
			t.Errorf("%q gives %+v", raw, check)
		}
	})
}

// FuzzHealthFile: whatever is in a health.json, it is a health that checks can go on from.
func FuzzHealthFile(f *testing.F) {
	for _, s := range []string{
		`{"Version":1,"Run":3,"Status":"healthy","FailingStreak":0,"Log":[{"Start":"2026-01-01T00:00:00Z","End":"2026-01-01T00:00:01Z","ExitCode":0,"Output":"ok"}]}`,
		`{"Version":1,"Run":3,"Status":"unhealthy","FailingStreak":4}`, `{"Version":1,"Run":3,"Status":"","FailingStreak":-4}`,
		`{"Version":1,"Run":2,"Status":"healthy"}`, `{}`, `[]`, ``, "\x00\x00\x00", `{"Version":1,"Run":3,"Status":"starting","Log":[{},{},{},{},{},{}]}`,
		`{"Version":1,"Run":3,"Status":"starting","Log":[{"End":"9999-01-01T00:00:00Z"}]}`,
	} {
		f.Add([]byte(s))
	}
	e := &Engine{root: f.TempDir()}
	st := &containerState{ID: strings.Repeat("a", idLength), Status: StatusRunning, Starts: 3, Started: time.Now()}
	st.Resolved.Health = &healthCheck{Args: []string{"x"}, Interval: time.Second, StartInterval: time.Second, Timeout: time.Second, Retries: 3}
	if err := os.MkdirAll(e.containerDir(st.ID), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(e.containerDir(st.ID), healthFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := e.health(st)
		if err != nil || h == nil || !h.sound() {
			t.Fatalf("%q gives %+v, %v", b, h, err)
		}
		now := time.Now()
		if due := h.next(st.Resolved.Health, st.Started, now); due.Sub(now) > time.Second {
			t.Errorf("%q: the next check in %v", b, due.Sub(now))
		}
		h.record(st.Resolved.Health, st.Started, HealthResult{ExitCode: 1, Start: now})
		if !h.sound() {
			t.Errorf("%q becomes %+v", b, h)
		}
	})
}
