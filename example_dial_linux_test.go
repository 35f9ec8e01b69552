package coracle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
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

// A fake of a service that the container's program expects on its own localhost. Here the test calls it itself, from inside
// the container's network namespace, as the program would.
func ExampleContainer_Listen() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "app", AutoRemove: true})
	defer done()
	listener, err := c.Listen(ctx, "tcp", "localhost:8080")
	if err != nil {
		log.Fatal(err)
	}
	fake := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "you want", r.URL.Path) })}
	go fake.Serve(listener)
	defer fake.Close()

	transport := &http.Transport{DialContext: c.DialContext}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://localhost:8080/orders/1")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	fmt.Printf("%s%v\n", text, err)
	// Output:
	// you want /orders/1
	// <nil>
}

// A UDP service on the container's own localhost, until the container ends.
func ExampleContainer_ListenPacket() {
	ctx := context.Background()
	c, done := exampleRunning(ctx, coracle.ContainerSpec{Name: "app", AutoRemove: true})
	defer done()
	socket, err := c.ListenPacket(ctx, "udp", "localhost:8125")
	if err != nil {
		log.Fatal(err)
	}
	defer socket.Close()
	client, err := c.DialContext(ctx, "udp", "localhost:8125")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "requests:1|c")
	buf := make([]byte, 1500)
	n, _, err := socket.ReadFrom(buf)
	fmt.Printf("%s %v\n", buf[:n], err)

	c.Kill(ctx)
	_, _, err = socket.ReadFrom(buf)
	fmt.Println(errors.Is(err, coracle.ErrNotRunning), errors.Is(err, net.ErrClosed))
	// Output:
	// requests:1|c <nil>
	// true true
}
