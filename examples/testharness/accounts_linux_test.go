package testharness

import (
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// TestAccounts: one server for all subtests, which run in parallel, each in a database of its own.
func TestAccounts(t *testing.T) {
	s := serve(t)
	// What all databases have, made once.
	template := s.open(t, "postgres")
	if _, err := template.ExecContext(t.Context(), "CREATE DATABASE accounts"); err != nil {
		t.Fatal(err)
	}
	db := s.open(t, "accounts")
	if err := (&Accounts{db}).Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Close() // a template must have no connections
	s.template = "accounts"

	for _, test := range []struct {
		name       string
		amount     int64
		from, to   string
		want       error
		ann, bob   int64
		concurrent int
	}{
		{name: "transfer", amount: 30, from: "ann", to: "bob", ann: 70, bob: 80},
		{name: "all of it", amount: 100, from: "ann", to: "bob", ann: 0, bob: 150},
		{name: "too much", amount: 101, from: "ann", to: "bob", want: ErrFunds, ann: 100, bob: 50},
		{name: "to nobody", amount: 1, from: "ann", to: "eve", want: sql.ErrNoRows, ann: 100, bob: 50},
		{name: "from nobody", amount: 1, from: "eve", to: "bob", want: sql.ErrNoRows, ann: 100, bob: 50},
		{name: "many at once", amount: 1, from: "ann", to: "bob", ann: 80, bob: 70, concurrent: 20},
		{name: "quotes", amount: 1, from: "ann", to: "'; DROP TABLE account; --", want: sql.ErrNoRows, ann: 100, bob: 50},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, accounts := t.Context(), &Accounts{s.database(t)}
			for owner, balance := range map[string]int64{"ann": 100, "bob": 50} {
				if err := accounts.Open(ctx, owner, balance); err != nil {
					t.Fatal(err)
				}
			}
			var transfers sync.WaitGroup
			for range max(test.concurrent, 1) {
				transfers.Go(func() {
					if err := accounts.Transfer(ctx, test.from, test.to, test.amount); !errors.Is(err, test.want) {
						t.Errorf("transfer: %v, want %v", err, test.want)
					}
				})
			}
			transfers.Wait()
			for owner, want := range map[string]int64{"ann": test.ann, "bob": test.bob} {
				if got, err := accounts.Balance(ctx, owner); err != nil || got != want {
					t.Errorf("%s has %d, %v; want %d", owner, got, err, want)
				}
			}
		})
	}
	for i := range 20 {
		t.Run(fmt.Sprintf("empty %d", i), func(t *testing.T) {
			t.Parallel()
			accounts := &Accounts{s.database(t)}
			if _, err := accounts.Balance(t.Context(), "ann"); !errors.Is(err, sql.ErrNoRows) {
				t.Errorf("an account of another test: %v", err)
			}
		})
	}
}
