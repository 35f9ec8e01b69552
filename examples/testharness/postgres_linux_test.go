package testharness

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/coracle-dev/coracle"
	"github.com/coracle-dev/coracle/coracletest"
	"github.com/coracle-dev/coracle/internal/debian"
	"github.com/coracle-dev/coracle/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.LeakCheck(m)) }

// A server is PostgreSQL in a container of the test.
type server struct {
	container *coracle.Container
	databases atomic.Int32
	template  string
}

// serve starts a server, ready to be asked. What a test database need not do is switched off: to survive a power failure.
func serve(t testing.TB) *server {
	t.Helper()
	c := coracletest.Run(t, coracle.ContainerSpec{
		Image: image(t),
		User:  "postgres",
		Args: []string{
			"postgres", "-D", "/var/lib/postgresql/data", "-c", "unix_socket_directories=/tmp",
			"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "max_connections=200",
		},
		StopSignal: "SIGINT", // which does not wait for clients
	},
		coracletest.ForLog("database system is ready to accept connections", 1),
		coracletest.ForPort("5432/tcp"),
	)
	return &server{container: c}
}

// image returns Debian's PostgreSQL, which is brought into the tests' root the first time that they run on this machine.
func image(t testing.TB) string {
	t.Helper()
	const name = "debian/postgres:" + debian.PostgresVersion
	ctx, eng := t.Context(), coracletest.Engine(t)
	_, err := eng.Image(ctx, name)
	if err == nil {
		return name
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	began, ref := time.Now(), debian.Postgres(t)
	pulled, err := eng.Pull(ctx, ref, nil)
	if err == nil {
		err = pulled.Tag(ctx, name)
	}
	if err == nil {
		err = pulled.Untag(ctx, ref) // the registry is the test's
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("made %s in %v", name, time.Since(began).Round(time.Millisecond))
	return name
}

// open opens a database of the server. Each connection of the pool is a socket inside the container's network namespace.
func (s *server) open(t testing.TB, database string) *sql.DB {
	t.Helper()
	config, err := pgx.ParseConfig("host=127.0.0.1 port=5432 user=postgres sslmode=disable dbname=" + database)
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = s.container.DialContext
	db := stdlib.OpenDB(*config)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// database makes a database for a test alone, a copy of the template if there is one.
func (s *server) database(t testing.TB) *sql.DB {
	t.Helper()
	template := s.template
	if template == "" {
		template = "template1"
	}
	name := fmt.Sprintf("test_%d", s.databases.Add(1))
	admin := s.open(t, "postgres")
	if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		t.Fatal(err)
	}
	return s.open(t, name)
}

// TestServer: what the container is.
func TestServer(t *testing.T) {
	s := serve(t)
	var version, address string
	err := s.database(t).QueryRowContext(t.Context(), "SELECT version(), host(inet_server_addr())").Scan(&version, &address)
	if err != nil || !strings.HasPrefix(version, "PostgreSQL ") || address != "127.0.0.1" {
		t.Errorf("%q at %q, %v", version, address, err)
	}
	t.Log(version)
	// Another client, in the container.
	out, err := s.container.Command("psql", "-h", "/tmp", "-Atc", "SELECT 6*7").Output(t.Context())
	if err != nil || string(out) != "42\n" {
		t.Errorf("psql: %q, %v", out, err)
	}
	conn, err := s.container.DialContext(t.Context(), "unix", "/tmp/.s.PGSQL.5432")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := s.container.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if exit, err := s.container.Wait(t.Context()); err != nil || !exit.Success() {
		t.Errorf("it ended with %v, %v", exit, err)
	}
}
