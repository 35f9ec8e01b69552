package coracletest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coracle-dev/coracle"
)

const (
	failureLines = 50  // of a log that a failed test shows
	waitLines    = 20  // of a log that a WaitError has
	lineRunes    = 500 // of a line
)

// lastLines returns the last lines of a container's log, made fit for a terminal, each with its stream in front. What
// cannot be read is such a line too.
func lastLines(ctx context.Context, c *coracle.Container, n int) []string {
	var lines []string
	for line, err := range c.LogLines(ctx, &coracle.LogOptions{Tail: n}) {
		if errors.Is(err, errors.ErrUnsupported) {
			return nil // it keeps no log
		}
		if err != nil {
			lines = append(lines, "(its log: "+printable(err.Error())+")")
			continue
		}
		lines = append(lines, line.Stream.String()+" | "+printable(line.Text))
	}
	if over := len(lines) - n; over > 0 {
		lines = lines[over:]
	}
	return lines
}

func logText(lines []string) string {
	switch len(lines) {
	case 0:
		return "\nthere is nothing in its log"
	case 1:
		return "\nthe last line of its log:\n    " + lines[0]
	}
	return fmt.Sprintf("\nthe last %d lines of its log:\n    %s", len(lines), strings.Join(lines, "\n    "))
}

// printable makes what a container wrote harmless: control characters, escape sequences, what turns the direction of text
// and invalid UTF-8 are escaped, and there is an end to it.
func printable(text string) string {
	var b strings.Builder
	for n := 0; text != ""; n++ {
		if n == lineRunes {
			fmt.Fprintf(&b, "... (%d bytes more)", len(text))
			break
		}
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case r == '\t' || unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		text = text[size:]
	}
	return b.String()
}
