package coracle

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-dev/coracle/internal/crashpoint"
	"github.com/coracle-dev/coracle/internal/journal"
)

// An Event says that something has happened to an object of a root, whichever program has done it. docs/events.md lists
// the events with their attributes.
type Event struct {
	// Time is when it happened, by the clock of the host. Events of different programs may be some microseconds out of
	// order; Cursor is not.
	Time time.Time `json:"time"`
	// Type is what kind of object it happened to.
	Type EventType `json:"type"`
	// Action is what happened.
	Action EventAction `json:"action"`
	// ID is the id of the container or image. It is empty for an ActionPrune.
	ID string `json:"id,omitempty"`
	// Name is the name of the container, or the reference of the image in full. It may be empty for an image.
	Name string `json:"name,omitempty"`
	// Attributes say more, under Docker's names ("image", "exitCode", "signal"). An event of an object with labels has these
	// too, but for those with the name of an attribute.
	Attributes map[string]string `json:"attributes,omitempty"`
	// Cursor is the place of the event in the journal of the root. As strings they are in the order of the events. With
	// EventOptions.After a program goes on where it or another has stopped.
	Cursor string `json:"cursor,omitempty"`
}

// String gives time, type, action, id and name in one line.
func (e Event) String() string {
	return fmt.Sprintf("%s %s %s %s (%s)", e.Time.Format(time.RFC3339Nano), e.Type, e.Action, e.ID, e.Name)
}

// EventType is the kind of object that something happens to.
type EventType string

// The types of events.
const (
	EventContainer EventType = "container"
	EventImage     EventType = "image"
	EventNetwork   EventType = "network"
	EventVolume    EventType = "volume"
)

// EventAction is what happens to an object. The names are Docker's.
type EventAction string

// The actions. Those of exec and health have more after a colon, as in Docker: "exec_start: ls -l", "health_status: healthy".
const (
	ActionCreate       EventAction = "create"
	ActionStart        EventAction = "start"
	ActionRestart      EventAction = "restart"
	ActionStop         EventAction = "stop"
	ActionKill         EventAction = "kill"
	ActionOOM          EventAction = "oom"
	ActionDie          EventAction = "die"
	ActionDestroy      EventAction = "destroy"
	ActionPause        EventAction = "pause"
	ActionUnpause      EventAction = "unpause"
	ActionRename       EventAction = "rename"
	ActionUpdate       EventAction = "update"
	ActionAttach       EventAction = "attach"
	ActionDetach       EventAction = "detach"
	ActionResize       EventAction = "resize"
	ActionExecCreate   EventAction = "exec_create"
	ActionExecStart    EventAction = "exec_start"
	ActionExecDie      EventAction = "exec_die"
	ActionHealthStatus EventAction = "health_status"
	ActionPull         EventAction = "pull"
	ActionImport       EventAction = "import"
	ActionTag          EventAction = "tag"
	ActionUntag        EventAction = "untag"
	ActionDelete       EventAction = "delete"
	ActionPrune        EventAction = "prune"
	ActionConnect      EventAction = "connect"
	ActionDisconnect   EventAction = "disconnect"
	ActionMount        EventAction = "mount"
	ActionUnmount      EventAction = "unmount"
)

// The names of attributes.
const (
	attrImage        = "image"
	attrName         = "name"
	attrExitCode     = "exitCode"
	attrExecDuration = "execDuration"
	attrSignal       = "signal"
	attrExecID       = "execID"
	attrOldName      = "oldName"
	attrReclaimed    = "reclaimed"
	attrTruncated    = "truncated"
)

// reservedAttribute tells the names that a label must not take: who labels an image or a container does not get to say
// how it ended.
func reservedAttribute(name string) bool {
	switch name {
	case attrImage, attrName, attrExitCode, attrExecDuration, attrSignal, attrExecID, attrOldName, attrReclaimed, attrTruncated:
		return true
	}
	return false
}

// eventLog is what an engine appends events to.
type eventLog struct {
	mu      sync.Mutex
	journal *journal.Journal
	failing bool // and the log says so
}

func (e *Engine) eventsDir() string { return filepath.Join(e.root, "events") }

func (e *Engine) openEvents() { e.events.journal = journal.New(e.eventsDir(), nil) }

func (e *Engine) closeEvents() error {
	if e.events.journal == nil {
		return nil
	}
	return e.events.journal.Close()
}

// emit appends an event. The operation that it tells of has been done, and does not fail with it. Events of one program
// are in the order of their times.
func (e *Engine) emit(ev Event, labels map[string]string) {
	log := &e.events
	if log.journal == nil {
		return
	}
	if ev.Attributes == nil {
		ev.Attributes = make(map[string]string)
	}
	for k, v := range labels {
		if !reservedAttribute(k) {
			ev.Attributes[k] = v
		}
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	ev.Time = time.Now()
	b, err := json.Marshal(ev)
	if err == nil && len(b) > journal.MaxPayload {
		b, err = json.Marshal(ev.truncated())
	}
	if err == nil {
		err = log.journal.Append(b)
	}
	if err != nil && !log.failing {
		e.log.Warn("events are lost", "event", ev.String(), "error", err)
	}
	log.failing = err != nil
	if ev.Action != ActionKill { // whether a stop needs one signal or two is a matter of time
		crashpoint.At("event: written")
	}
}

// truncated is the event without labels, and with texts that are cut to a length at which all fit a record.
func (e Event) truncated() Event {
	const most = 1 << 10
	cut := func(s string) string { return s[:min(len(s), most)] }
	attrs := map[string]string{attrTruncated: "true"}
	for k, v := range e.Attributes {
		if reservedAttribute(k) {
			attrs[k] = cut(v)
		}
	}
	e.Action, e.ID, e.Name, e.Attributes = EventAction(cut(string(e.Action))), cut(e.ID), cut(e.Name), attrs
	return e
}

// emitContainer appends an event of a container, with further attributes as pairs of name and value.
func (e *Engine) emitContainer(st *containerState, action EventAction, pairs ...string) {
	attrs := map[string]string{attrImage: st.Spec.Image, attrName: st.Name}
	for i := 0; i+1 < len(pairs); i += 2 {
		attrs[pairs[i]] = pairs[i+1]
	}
	e.emit(Event{Type: EventContainer, Action: action, ID: st.ID, Name: st.Name, Attributes: attrs}, st.Resolved.Labels)
}

// emit appends an event of the container, if it still exists.
func (c *Container) emit(action EventAction, pairs ...string) {
	if st, err := c.current(); err == nil {
		c.eng.emitContainer(st, action, pairs...)
	}
}

// emitDied appends the events of a container's end. Its exit status is where others find it.
func (e *Engine) emitDied(st *containerState) {
	var pairs []string
	if x := st.Exit; x != nil {
		if x.OOMKilled {
			e.emitContainer(st, ActionOOM)
		}
		pairs = x.eventAttrs()
		if !st.Started.IsZero() && st.Finished.After(st.Started) {
			pairs = append(pairs, attrExecDuration, strconv.FormatInt(int64(st.Finished.Sub(st.Started)/time.Second), 10))
		}
	}
	e.emitContainer(st, ActionDie, pairs...)
}

// eventAttrs are the attributes that tell how a process ended.
func (s ExitStatus) eventAttrs() []string {
	switch {
	case s.Unknown: // and is not made up here
		return nil
	case s.Signal != 0:
		return []string{attrExitCode, strconv.Itoa(128 + int(s.Signal)), attrSignal, strconv.Itoa(int(s.Signal))}
	}
	return []string{attrExitCode, strconv.Itoa(s.Code)}
}

// emitKill appends the event of a signal that is about to be sent, if there is a process to send it to: what the signal
// brings about comes after it.
func (c *Container) emitKill(sig syscall.Signal, send func(syscall.Signal) error) {
	if sig != 0 && send(0) == nil {
		c.emit(ActionKill, attrSignal, strconv.Itoa(int(sig)))
	}
}

// emitImage appends an event of an image with the name that it is about.
func (i *Image) emit(action EventAction, name string) {
	i.eng.emit(Event{Type: EventImage, Action: action, ID: string(i.ID()), Name: name, Attributes: imageAttrs(name)}, i.config.Config.Labels)
}

func imageAttrs(name string) map[string]string {
	if name == "" {
		return nil
	}
	return map[string]string{attrName: name}
}

// emitDeleted appends the events of an image that has lost its names and was removed.
func (e *Engine) emitDeleted(id string, names []string, labels map[string]string) {
	for _, name := range names {
		e.emit(Event{Type: EventImage, Action: ActionUntag, ID: id, Name: name, Attributes: imageAttrs(name)}, labels)
	}
	e.emit(Event{Type: EventImage, Action: ActionDelete, ID: id}, labels)
}

// emitPruned appends the event of a pruning.
func (e *Engine) emitPruned(kind EventType, bytes int64) {
	e.emit(Event{Type: kind, Action: ActionPrune, Attributes: map[string]string{attrReclaimed: strconv.FormatInt(bytes, 10)}}, nil)
}

// kind is the action without what follows a colon.
func (a EventAction) kind() EventAction {
	kind, _, _ := strings.Cut(string(a), ":")
	return EventAction(kind)
}
