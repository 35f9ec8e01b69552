package coracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/coracle-dev/coracle/internal/journal"
)

// EventOptions are the settings of one [Engine.Events]; nil means the defaults.
type EventOptions struct {
	// Follow waits for further events. If neither Since nor After is set, only those from the call of Events on are given;
	// without Follow, all that there are.
	Follow bool
	// After is the Cursor of an event: only later ones are given. Empty means no such bound.
	After string
	// Since and Until bound the time of the events; Until is not included. Zero means no bound. With Follow, reading ends
	// when Until comes.
	Since, Until time.Time
	// Filter chooses among the events.
	Filter EventFilter
}

// EventFilter chooses events as `docker events --filter` does. Of what a field lists one must apply, and of the fields that
// are set all; the zero filter chooses all events.
type EventFilter struct {
	// Types are types of objects.
	Types []EventType
	// Actions are actions; "exec_start" stands for all that begin "exec_start:", and so do the others.
	Actions []EventAction
	// Containers are names and ids of containers, or beginnings of ids.
	Containers []string
	// Images are references, ids or beginnings of ids, as events of images have them; events of containers are chosen by
	// the reference in their spec. A reference without tag stands for all tags.
	Images []string
	// Networks and Volumes are names or ids.
	Networks, Volumes []string
	// Labels are labels that the object has, by value; an empty value means that the label exists. All must hold.
	Labels map[string]string
}

// An EventGapError says that events are missing between those that were given before and those that come. It is not the
// end: the iteration goes on. What depends on every event is to be looked at anew.
type EventGapError struct {
	// After is the cursor after which events are missing, if they were removed before they were read: the journal keeps
	// the last 16 MiB or so. Events may come twice if the journal was damaged by a power failure.
	After string
	// Lost is how many events a program could not write, as on a full disk. It is 0 where they were removed.
	Lost uint64
}

// Error says why events are missing.
func (e *EventGapError) Error() string {
	if e.Lost > 0 {
		return fmt.Sprintf("%d events could not be written", e.Lost)
	}
	return "events after " + e.After + " were removed before they were read"
}

// Events returns events of the root, of this and of other programs, in the order of their cursors. An event comes after
// what it tells of: at "start" a container can be inspected as running, at "die" its exit status can be read, and at "destroy"
// it is gone.
//
// An error is an [*OpError]. If it wraps an [*EventGapError] the iteration goes on after it, else it ends: with Follow it
// does when ctx ends, and with [ErrClosed] when the engine is closed. A slow reader holds nobody up.
func (e *Engine) Events(ctx context.Context, opts *EventOptions) iter.Seq2[Event, error] {
	var o EventOptions
	if opts != nil {
		o = *opts
	}
	fail := func(err error) error { return &OpError{Op: "read", Kind: "events", Name: e.root, Err: err} }
	read := journal.ReadOptions{Follow: o.Follow, Since: o.Since}
	err := e.use()
	switch {
	case err != nil:
	case o.After != "":
		if read.After, err = journal.ParseCursor(o.After); err != nil {
			err = fmt.Errorf("%w: After: %w", ErrInvalid, err)
		}
	case o.Follow && o.Since.IsZero():
		read.After, err = e.events.journal.End() // now, and not when the iteration begins
	}
	filter := o.Filter.compile()
	return func(yield func(Event, error) bool) {
		if err != nil {
			yield(Event{}, fail(err))
			return
		}
		if err := e.readEvents(ctx, o, read, filter, yield); err != nil {
			yield(Event{}, fail(err))
		}
	}
}

// errUntil ends the following of events at EventOptions.Until.
var errUntil = errors.New("the time has come")

func (e *Engine) readEvents(ctx context.Context, o EventOptions, read journal.ReadOptions, filter *eventFilter, yield func(Event, error) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.closing, func() { cancel(ErrClosed) })()
	following := ctx
	if o.Follow && !o.Until.IsZero() {
		var stop context.CancelFunc
		following, stop = context.WithDeadlineCause(ctx, o.Until, errUntil)
		defer stop()
	}
	gap := func(g *EventGapError) bool {
		return yield(Event{}, &OpError{Op: "read", Kind: "events", Name: e.root, Err: g})
	}
	for rec, err := range e.events.journal.Read(following, read) {
		var removed *journal.Gap
		switch {
		case errors.As(err, &removed):
			if !gap(&EventGapError{After: removed.After.String()}) {
				return nil
			}
			continue
		case errors.Is(err, errUntil) && ctx.Err() == nil:
			// What happened until then may have come after the last look.
			read.Follow, o.Follow = false, false
			return e.readEvents(ctx, o, read, filter, yield)
		case err != nil:
			return err
		}
		read.After = rec.Cursor
		if rec.Lost > 0 && !gap(&EventGapError{Lost: rec.Lost}) {
			return nil
		}
		var ev Event
		if err := json.Unmarshal(rec.Payload, &ev); err != nil || ev.Action == "" {
			continue // of a later version, or none of ours
		}
		ev.Cursor = rec.Cursor.String()
		if ev.Time.Before(o.Since) || !o.Until.IsZero() && !ev.Time.Before(o.Until) || !filter.matches(&ev) {
			continue
		}
		if !yield(ev, nil) {
			return nil
		}
	}
	return nil
}

// eventFilter is an EventFilter with its references read.
type eventFilter struct {
	EventFilter
	images []wantedImage
}

// wantedImage is an entry of EventFilter.Images.
type wantedImage struct {
	text   string
	ref    Reference
	name   bool // ref is set
	tagged bool
}

func (f EventFilter) compile() *eventFilter {
	c := &eventFilter{EventFilter: f}
	for _, text := range f.Images {
		w := wantedImage{text: text}
		if ref, err := ParseReference(text); err == nil {
			w.ref, w.name = ref, true
			w.tagged = strings.ContainsAny(text[strings.LastIndexByte(text, '/')+1:], ":@")
		}
		c.images = append(c.images, w)
	}
	return c
}

func (f *eventFilter) matches(ev *Event) bool {
	if len(f.Types) > 0 && !slices.Contains(f.Types, ev.Type) {
		return false
	}
	if len(f.Actions) > 0 && !slices.Contains(f.Actions, ev.Action) && !slices.Contains(f.Actions, ev.Action.kind()) {
		return false
	}
	for kind, names := range map[EventType][]string{EventContainer: f.Containers, EventNetwork: f.Networks, EventVolume: f.Volumes} {
		if len(names) > 0 && !(ev.Type == kind && slices.ContainsFunc(names, func(n string) bool { return isNamed(ev, n) })) {
			return false
		}
	}
	if len(f.images) > 0 && !slices.ContainsFunc(f.images, func(w wantedImage) bool { return w.matches(ev) }) {
		return false
	}
	for k, want := range f.Labels {
		if v, ok := ev.Attributes[k]; !ok || reservedAttribute(k) || want != "" && v != want {
			return false
		}
	}
	return true
}

// isNamed says whether a name or the beginning of an id is that of the event's object.
func isNamed(ev *Event, name string) bool {
	return name != "" && (ev.Name == name || strings.HasPrefix(ev.ID, name))
}

func (w *wantedImage) matches(ev *Event) bool {
	var image string
	switch ev.Type {
	case EventContainer:
		image = ev.Attributes[attrImage]
	case EventImage:
		id := strings.TrimPrefix(ev.ID, "sha256:")
		if short := strings.TrimPrefix(w.text, "sha256:"); short != "" && strings.HasPrefix(id, short) {
			return true
		}
		image = ev.Name
	default:
		return false
	}
	if image == "" || w.text == "" {
		return false
	}
	if image == w.text {
		return true
	}
	ref, err := ParseReference(image)
	if err != nil || !w.name {
		return false
	}
	if w.tagged {
		return ref.key() == w.ref.key()
	}
	return ref.Name() == w.ref.Name()
}
