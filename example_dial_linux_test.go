package coracle_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/coracle-dev/coracle"
)

// An HTTP client inside a container's network namespace. To have somebody who answers, this container has the host's.
func ExampleContainer_DialContext() {
	ctx := context.Background()
	eng, done := exampleImages(ctx)
	defer done()
	c, err := eng.Create(ctx, &coracle.ContainerSpec{Image: "pause", Networks: []coracle.Attachment{{Network: coracle.NetworkHost}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") }))
	defer server.Close()

	transport := &http.Transport{DialContext: c.DialContext}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	fmt.Printf("%s%v\n", text, err)
	// Output:
	// hello
	// <nil>
}
