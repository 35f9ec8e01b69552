package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/coracle-dev/coracle"
)

func ExampleEvent() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	// From here on, also what happens before the loop begins.
	events := eng.Events(ctx, &coracle.EventOptions{Follow: true})

	if err := eng.Run(ctx, &coracle.ContainerSpec{Name: "greeter", Image: "hello", Networks: []coracle.Attachment{{Network: coracle.NetworkNone}}}); err != nil {
		log.Fatal(err)
	}
	for ev, err := range events {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ev.Type, ev.Name, ev.Action, ev.Attributes["exitCode"] == "0")
		if ev.Action == coracle.ActionDestroy {
			break
		}
	}
	// Output:
	// container greeter create false
	// container greeter start false
	// container greeter die true
	// container greeter destroy false
}

func ExampleEventOptions() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()
	var cursor string // a program that is to go on later keeps it in a file
	for ev, err := range eng.Events(ctx, nil) {
		if err != nil {
			log.Fatal(err)
		}
		cursor = ev.Cursor
	}
	if err := img.Tag(ctx, "app:tested"); err != nil {
		log.Fatal(err)
	}
	for ev, err := range eng.Events(ctx, &coracle.EventOptions{After: cursor}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ev.Action, ev.Name)
	}
	// Output: tag docker.io/library/app:tested
}

func ExampleEventFilter() {
	ctx := context.Background()
	eng, img, done := pulledExample(ctx)
	defer done()
	if err := img.Tag(ctx, "app:tested"); err != nil {
		log.Fatal(err)
	}
	filter := coracle.EventFilter{
		Types:  []coracle.EventType{coracle.EventImage},
		Images: []string{"app"}, // with any tag
	}
	for ev, err := range eng.Events(ctx, &coracle.EventOptions{Filter: filter}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ev.Action, ev.Name)
	}
	// Output: tag docker.io/library/app:tested
}

func ExampleEventGapError() {
	ctx := context.Background()
	eng, _, done := pulledExample(ctx)
	defer done()
	for ev, err := range eng.Events(ctx, &coracle.EventOptions{Until: time.Now()}) {
		var gap *coracle.EventGapError
		if errors.As(err, &gap) {
			fmt.Println("look at all objects anew:", gap) // and go on
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ev.Action)
	}
	// Output: pull
}

func ExampleEventType() {
	ev := coracle.Event{Type: coracle.EventImage, Action: coracle.ActionPull, ID: "sha256:1", Name: "docker.io/library/alpine:3.22"}
	fmt.Println(ev.Type == coracle.EventImage, ev.Type)
	// Output: true image
}

func ExampleEventAction() {
	// Health and exec say more after a colon; a filter takes them with and without it.
	healthy := coracle.EventFilter{Actions: []coracle.EventAction{coracle.ActionHealthStatus + ": healthy"}}
	any := coracle.EventFilter{Actions: []coracle.EventAction{coracle.ActionHealthStatus}}
	fmt.Println(healthy.Actions, any.Actions)
	// Output: [health_status: healthy] [health_status]
}
