package coracle

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-dev/coracle/internal/journal"
	"github.com/coracle-dev/coracle/internal/testutil"
)

// TestEventFilter: what each filter chooses.
func TestEventFilter(t *testing.T) {
	id := strings.Repeat("ab12", 16)
	container := func(action EventAction, attrs ...string) *Event {
		ev := &Event{Type: EventContainer, Action: action, ID: id, Name: "web", Attributes: map[string]string{"image": "nginx", "name": "web", "app": "shop"}}
		for i := 0; i < len(attrs); i += 2 {
			ev.Attributes[attrs[i]] = attrs[i+1]
		}
		return ev
	}
	image := &Event{Type: EventImage, Action: ActionPull, ID: "sha256:" + id, Name: "docker.io/library/nginx:1.27", Attributes: map[string]string{"name": "docker.io/library/nginx:1.27"}}
	network := &Event{Type: EventNetwork, Action: ActionConnect, ID: "feed", Name: "app"}
	byDigest := &Event{Type: EventImage, Action: ActionPull, ID: "sha256:" + id, Name: "quay.io/x@sha256:" + id}
	for _, test := range []struct {
		name   string
		filter EventFilter
		event  *Event
		want   bool
	}{
		{"nothing", EventFilter{}, container(ActionStart), true},
		{"type", EventFilter{Types: []EventType{EventImage, EventContainer}}, container(ActionStart), true},
		{"another type", EventFilter{Types: []EventType{EventImage}}, container(ActionStart), false},
		{"action", EventFilter{Actions: []EventAction{ActionDie, ActionStart}}, container(ActionStart), true},
		{"another action", EventFilter{Actions: []EventAction{ActionDie}}, container(ActionStart), false},
		{"action with more", EventFilter{Actions: []EventAction{ActionHealthStatus}}, container("health_status: healthy"), true},
		{"exact action", EventFilter{Actions: []EventAction{"health_status: healthy"}}, container("health_status: healthy"), true},
		{"exact action, another", EventFilter{Actions: []EventAction{"health_status: healthy"}}, container("health_status: unhealthy"), false},
		{"beginning of an action", EventFilter{Actions: []EventAction{"exec"}}, container("exec_start: ls"), false},
		{"container by name", EventFilter{Containers: []string{"db", "web"}}, container(ActionStart), true},
		{"container by beginning of a name", EventFilter{Containers: []string{"we"}}, container(ActionStart), false},
		{"container by id", EventFilter{Containers: []string{id}}, container(ActionStart), true},
		{"container by short id", EventFilter{Containers: []string{id[:12]}}, container(ActionStart), true},
		{"container by nothing", EventFilter{Containers: []string{""}}, container(ActionStart), false},
		{"container, event of an image", EventFilter{Containers: []string{"web"}}, image, false},
		{"image of a container", EventFilter{Images: []string{"nginx"}}, container(ActionStart), true},
		{"image of a container, with tag", EventFilter{Images: []string{"nginx:latest"}}, container(ActionStart), true},
		{"image of a container, another tag", EventFilter{Images: []string{"nginx:1.27"}}, container(ActionStart), false},
		{"another image", EventFilter{Images: []string{"postgres"}}, container(ActionStart), false},
		{"image, any tag", EventFilter{Images: []string{"nginx"}}, image, true},
		{"image, in full", EventFilter{Images: []string{"docker.io/library/nginx:1.27"}}, image, true},
		{"image, registry with a port", EventFilter{Images: []string{"localhost:5000/nginx"}}, image, false},
		{"image by id", EventFilter{Images: []string{"sha256:" + id}}, image, true},
		{"image by short id", EventFilter{Images: []string{id[:10]}}, image, true},
		{"image by nothing", EventFilter{Images: []string{""}}, image, false},
		{"image by digest", EventFilter{Images: []string{"quay.io/x@sha256:" + id}}, byDigest, true},
		{"image by name, has a digest", EventFilter{Images: []string{"quay.io/x"}}, byDigest, true},
		{"image, event of a network", EventFilter{Images: []string{"app"}}, network, false},
		{"network", EventFilter{Networks: []string{"app"}}, network, true},
		{"volume", EventFilter{Volumes: []string{"app"}}, network, false},
		{"label", EventFilter{Labels: map[string]string{"app": "shop"}}, container(ActionStart), true},
		{"label with any value", EventFilter{Labels: map[string]string{"app": ""}}, container(ActionStart), true},
		{"label with another value", EventFilter{Labels: map[string]string{"app": "x"}}, container(ActionStart), false},
		{"all labels", EventFilter{Labels: map[string]string{"app": "", "team": ""}}, container(ActionStart), false},
		{"an attribute is no label", EventFilter{Labels: map[string]string{"exitCode": ""}}, container(ActionDie, "exitCode", "0"), false},
		{"all fields", EventFilter{Types: []EventType{EventContainer}, Actions: []EventAction{ActionDie}, Containers: []string{"web"}, Images: []string{"nginx"}}, container(ActionDie), true},
		{"all fields but one", EventFilter{Types: []EventType{EventContainer}, Actions: []EventAction{ActionDie}, Containers: []string{"web"}, Images: []string{"db"}}, container(ActionDie), false},
	} {
		if got := test.filter.compile().matches(test.event); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// TestLargeEvent: an event of any size is written, if need be without its labels.
func TestLargeEvent(t *testing.T) {
	j := journal.New(t.TempDir(), nil)
	defer j.Close()
	e := &Engine{events: eventLog{journal: j}}
	long := strings.Repeat("x", 100<<10)
	st := &containerState{ID: "id", Name: "c", Spec: ContainerSpec{Image: long}, Resolved: resolvedSpec{}}
	st.Resolved.Labels = map[string]string{"a": long, "b": "c"}
	e.emitContainer(st, EventAction("exec_start: "+strings.Repeat("\x01", 100<<10)), attrExecID, "7")
	st.Spec.Image = "x"
	e.emitContainer(st, ActionDie)
	st.Resolved.Labels = map[string]string{"b": "c"}
	e.emitContainer(st, ActionDestroy)
	var list []Event
	for rec, err := range j.Read(t.Context(), journal.ReadOptions{}) {
		if err != nil || rec.Lost > 0 {
			t.Fatal(rec.Lost, err)
		}
		var ev Event
		if err := json.Unmarshal(rec.Payload, &ev); err != nil {
			t.Fatal(err)
		}
		list = append(list, ev)
	}
	if len(list) != 3 || list[0].Action.kind() != ActionExecStart || list[0].Attributes["execID"] != "7" || list[0].Attributes["truncated"] != "true" {
		t.Fatalf("read %v", list)
	}
	if a := list[1].Attributes; a["truncated"] != "true" || a["b"] != "" || a["image"] != "x" {
		t.Errorf("die: %v", a)
	}
	if a := list[2].Attributes; a["truncated"] != "" || a["b"] != "c" {
		t.Errorf("destroy: %v", a)
	}
}

// TestEventsDocument compares docs/events.md with the code: types, actions and attributes.
func TestEventsDocument(t *testing.T) {
	testutil.NotInVM(t, "there is no source")
	text, err := os.ReadFile("docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]map[string]bool{"type": {}, "action": {}, "attribute": {}}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || cells[0] == "type" || cells[0] == "attribute":
		case len(cells) == 4:
			documented["type"][cells[0]], documented["action"][cells[1]] = true, true
			for _, a := range strings.FieldsFunc(cells[2], func(r rune) bool { return r == ',' || r == ' ' }) {
				if !reservedAttribute(a) {
					t.Errorf("%s of %s %s is no attribute", a, cells[0], cells[1])
				}
			}
		default:
			documented["attribute"][cells[0]] = true
		}
	}
	file, err := parser.ParseFile(token.NewFileSet(), "events.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	code := map[string]map[string]bool{"type": {}, "action": {}, "attribute": {}}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		lit, ok := spec.Values[0].(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		value, _ := strconv.Unquote(lit.Value)
		switch name := spec.Names[0].Name; {
		case strings.HasPrefix(name, "Event"):
			code["type"][value] = true
		case strings.HasPrefix(name, "Action"):
			code["action"][value] = true
		case strings.HasPrefix(name, "attr"):
			code["attribute"][value] = true
			if !reservedAttribute(value) {
				t.Errorf("a label may be called %s", value)
			}
		}
		return true
	})
	for kind := range code {
		if !maps.Equal(code[kind], documented[kind]) {
			t.Errorf("%ss: the code has %v, the document %v", kind, slices.Sorted(maps.Keys(code[kind])), slices.Sorted(maps.Keys(documented[kind])))
		}
	}
}

// BenchmarkEmit measures what an operation pays for its event.
func BenchmarkEmit(b *testing.B) {
	j := journal.New(b.TempDir(), nil)
	defer j.Close()
	e := &Engine{events: eventLog{journal: j}}
	st := &containerState{ID: strings.Repeat("0", 64), Name: "web", Spec: ContainerSpec{Image: "docker.io/library/nginx:1.27"}}
	st.Resolved.Labels = map[string]string{"app": "shop", "team": "a"}
	b.ReportAllocs()
	for b.Loop() {
		e.emitContainer(st, ActionStart)
	}
}
