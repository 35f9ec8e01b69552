package coracle

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/coracle-dev/coracle/internal/journal"
)

// pastEvents is what the journal says of the containers that a sweep looks at. A program that is killed between an
// operation and its event leaves the event to the sweep; one that is killed after it must not have it twice. Who writes events
// of a container's life holds its lock, so what is read under the lock is all that there is.
type pastEvents struct {
	eng        *Engine
	at         journal.Cursor // what was read
	oldest     time.Time      // what happened before this the journal does not know any more
	containers map[string]*pastContainer
}

// pastContainer is a container in the journal.
type pastContainer struct {
	last      Event // any with the attributes that all have
	created   bool  // it was created
	running   bool  // it was started, and has not died
	destroyed bool
}

// load reads the journal, and later what has come since: others may have written events of a container until it was locked.
func (p *pastEvents) load(ctx context.Context) {
	if p.containers == nil {
		p.containers = make(map[string]*pastContainer)
	}
	// To its end: with half of it, events would come twice. It takes a moment.
	for rec, err := range p.eng.events.journal.Read(context.WithoutCancel(ctx), journal.ReadOptions{After: p.at}) {
		var gap *journal.Gap
		if errors.As(err, &gap) {
			continue
		}
		if err != nil {
			p.eng.log.Warn("the sweep cannot read the events", "error", err)
			return
		}
		p.at = rec.Cursor
		var ev Event
		if json.Unmarshal(rec.Payload, &ev) != nil {
			continue
		}
		if p.oldest.IsZero() {
			p.oldest = ev.Time
		}
		if ev.Type != EventContainer || ev.ID == "" {
			continue
		}
		c := p.containers[ev.ID]
		if c == nil {
			c = &pastContainer{}
			p.containers[ev.ID] = c
		}
		switch ev.Action {
		case ActionStart:
			c.running = true
		case ActionDie:
			c.running = false
		case ActionDestroy:
			*c = pastContainer{destroyed: true}
			continue
		case ActionCreate:
			c.created = true
		case ActionRename:
		default:
			continue
		}
		c.last = ev
	}
}

// of returns what the journal knows of a container, or nil if it never knew it: then nobody has been told that there is such
// a container. The journal forgets; what was made before its oldest event it knew.
func (p *pastEvents) of(ctx context.Context, st *containerState) *pastContainer {
	p.load(ctx)
	c := p.containers[st.ID]
	before := !p.oldest.IsZero() && st.Created.Before(p.oldest)
	if c == nil && before {
		return &pastContainer{running: st.Status == StatusRunning}
	}
	if c != nil && !c.created && !c.destroyed && !before {
		return nil // it has a new name, and its engine was killed before its first event
	}
	return c
}

// settle appends the events that the container's engine was killed before: that it was created, if it is to stay, and that it
// has died. The container is locked, and its engine dead.
func (p *pastEvents) settle(ctx context.Context, st *containerState, stays bool) {
	c := p.of(ctx, st)
	if c == nil && stays {
		p.eng.emitContainer(st, ActionCreate)
	}
	if c != nil && c.running {
		c.running = false
		p.eng.emitDied(st)
	}
}

// settleEvents is settle for a container that an operation found before any sweep did: it is locked.
func (e *Engine) settleEvents(ctx context.Context, st *containerState) {
	if st.Owner != "" && st.Owner != e.owner.id && !e.ownerAlive(st.Owner) || st.Owner == "" && !st.unsettled() && e.marked(st.ID) {
		(&pastEvents{eng: e}).settle(ctx, st, true)
	}
}

// discard is Engine.discard with its event.
func (p *pastEvents) discard(ctx context.Context, st *containerState) error {
	if c := p.of(ctx, st); c == nil || c.destroyed {
		return p.eng.discard(ctx, st)
	}
	return p.eng.destroy(ctx, st)
}

// removed appends the event of a container that was being removed when its engine was killed. There may be nothing left of
// it but the remainder of its directory.
func (p *pastEvents) removed(ctx context.Context, id string) {
	p.load(ctx)
	if c := p.containers[id]; c != nil && !c.destroyed && c.last.ID != "" {
		c.destroyed = true
		labels := c.last.Attributes
		name := c.last.Name
		p.eng.emit(Event{Type: EventContainer, Action: ActionDestroy, ID: id, Name: name,
			Attributes: map[string]string{attrName: name, attrImage: labels[attrImage]}}, labels)
	}
}
