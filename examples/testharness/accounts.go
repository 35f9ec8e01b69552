// Package testharness shows how a program's tests get a real PostgreSQL: see accounts_linux_test.go. The program is this file,
// accounts in a database.
//
//	go test .   # as root; elsewhere the tests skip and say why
//
// One server, in a container without a network, serves all tests of the package; each test has a database of its own, made
// from a template in some milliseconds, so that they run in parallel. The driver's connections are made inside the
// container's network namespace: no port is published, and none can clash.
//
// It is a module of its own because of the driver. In a program of yours the image would be "postgres:17" or the like; here
// it is Debian's, built by the tests of coracle, which know no network but the machine's package archive.
package testharness

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// ErrFunds is returned for a transfer of what is not there.
var ErrFunds = errors.New("not enough in the account")

// Accounts keeps balances in a database.
type Accounts struct{ DB *sql.DB }

// Create makes the table.
func (a *Accounts) Create(ctx context.Context) error {
	_, err := a.DB.ExecContext(ctx, `CREATE TABLE account (owner text PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0))`)
	return err
}

// Open makes an account.
func (a *Accounts) Open(ctx context.Context, owner string, balance int64) error {
	_, err := a.DB.ExecContext(ctx, `INSERT INTO account VALUES ($1, $2)`, owner, balance)
	return err
}

// Balance returns what is in an account. The error matches sql.ErrNoRows if there is no such account.
func (a *Accounts) Balance(ctx context.Context, owner string) (balance int64, err error) {
	err = a.DB.QueryRowContext(ctx, `SELECT balance FROM account WHERE owner = $1`, owner).Scan(&balance)
	return balance, err
}

// Transfer moves an amount from one account to another, or nothing: the error is ErrFunds if there is not enough.
func (a *Accounts) Transfer(ctx context.Context, from, to string, amount int64) error {
	tx, err := a.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	// In one order, whoever pays whom: transfers back and forth would wait for each other.
	rows, err := tx.QueryContext(ctx, `SELECT owner FROM account WHERE owner IN ($1, $2) ORDER BY owner FOR UPDATE`, from, to)
	if err != nil {
		return err
	}
	found := 0
	for rows.Next() {
		found++
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if found != 2 {
		return fmt.Errorf("transfer from %s to %s: %w", from, to, sql.ErrNoRows)
	}
	result, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - $2 WHERE owner = $1 AND balance >= $2`, from, amount)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, ErrFunds)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + $2 WHERE owner = $1`, to, amount); err != nil {
		return err
	}
	return tx.Commit()
}
