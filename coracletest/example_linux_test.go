package coracletest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/coracletest"
	"github.com/coracle-dev/coracle/nsexec"
)

// A test of a program that needs a database. The server is the test's alone; its port is not one of the host.
func ExampleRun() {
	test := func(t *testing.T) { // func TestOrders
		db := coracletest.Run(t, coracle.ContainerSpec{
			Image: "postgres:17",
			Env:   []string{"POSTGRES_HOST_AUTH_METHOD=trust"},
		}, coracletest.ForLog("database system is ready to accept connections", 2), coracletest.ForPort("5432/tcp"))

		conn, err := db.DialContext(t.Context(), "tcp", "localhost:5432")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	_ = test
}

// A client whose every connection is made inside the container's network namespace.
func ExampleForHTTP() {
	test := func(t *testing.T) { // func TestPage
		web := coracletest.Run(t, coracle.ContainerSpec{Image: "nginx:1.29"}, coracletest.ForHTTP(80, "/", nil))
		client := &http.Client{Transport: &http.Transport{DialContext: web.DialContext}}
		resp, err := client.Get("http://localhost/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	_ = test
}

// exampleContainer starts a container that says two lines and waits.
func exampleContainer(ctx context.Context) (c *coracle.Container, done func()) {
	root, err := os.MkdirTemp("", "coracle-example-")
	if err != nil {
		log.Fatal(err)
	}
	eng, err := coracle.Open(ctx, coracle.Config{Root: root})
	if err != nil {
		log.Fatal(err)
	}
	program := &nsexec.Plan{}
	const text = "starting\nready\n"
	program.Syscall("say", unix.SYS_WRITE, nsexec.Const(1), program.Str(text), nsexec.Int(len(text)))
	program.Syscall("wait", unix.SYS_PPOLL).Ignore()
	b, err := program.ELF()
	if err != nil {
		log.Fatal(err)
	}
	files := fstest.MapFS{"program": {Data: b, Mode: 0o755}}
	if _, err := eng.ImageFromFS(ctx, "server", files, nil); err != nil {
		log.Fatal(err)
	}
	c, err = eng.Create(ctx, &coracle.ContainerSpec{Name: "server", Image: "server", Args: []string{"/program"}})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	return c, func() {
		c.Remove(ctx, &coracle.RemoveOptions{Force: true})
		eng.Close()
		os.RemoveAll(root)
	}
}

// A wait works without a test too.
func ExampleWait() {
	ctx := context.Background()
	c, done := exampleContainer(ctx)
	defer done()
	var ready coracletest.Wait = coracletest.All(
		coracletest.ForLog("ready", 1),
		coracletest.Any(coracletest.ForPort("5432/tcp"), coracletest.ForFile("/program")),
	)
	fmt.Println(coracletest.WithTimeout(10*time.Second, ready).Wait(ctx, c))
	// Output: <nil>
}

// The error says what was waited for and shows the end of the log.
func ExampleWaitError() {
	ctx := context.Background()
	c, done := exampleContainer(ctx)
	defer done()
	if err := coracletest.ForLog("ready", 1).Wait(ctx, c); err != nil {
		log.Fatal(err)
	}
	err := coracletest.WithTimeout(50*time.Millisecond, coracletest.ForPort("5432/tcp")).Wait(ctx, c)
	var failed *coracletest.WaitError
	if errors.As(err, &failed) {
		fmt.Println(failed.What)
		fmt.Println(failed.Last)
		fmt.Println(strings.Join(failed.Log, "\n"))
	}
	// Output:
	// port 5432/tcp
	// nobody listens
	// stdout | starting
	// stdout | ready
}

// What only the driver of a database can say.
func ExampleWaitFunc() {
	ctx := context.Background()
	c, done := exampleContainer(ctx)
	defer done()
	var db *sql.DB // opened with a driver that dials with c.DialContext
	answers := coracletest.WaitFunc(func(ctx context.Context, c *coracle.Container) error {
		if db == nil {
			return nil
		}
		return db.PingContext(ctx)
	})
	fmt.Println(answers.Wait(ctx, c))
	// Output: <nil>
}

func ExampleHTTPOptions() {
	ctx := context.Background()
	c, done := exampleContainer(ctx)
	defer done()
	health := coracletest.ForHTTP(8080, "/healthz", &coracletest.HTTPOptions{Method: http.MethodHead, Status: []int{http.StatusNoContent}})
	err := coracletest.WithTimeout(50*time.Millisecond, health).Wait(ctx, c)
	var refused *net.OpError
	fmt.Println(errors.As(err, &refused))
	// Output: true
}
