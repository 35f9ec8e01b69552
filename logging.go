package coracle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coracle-dev/coracle/internal/logfile"
	"github.com/coracle-dev/coracle/nsexec"
)

// guardFiles are what a guard gets that does more than wait: it writes a log, takes input, or keeps a detached container.
type guardFiles struct {
	log    *nsexec.Log
	keeper *nsexec.Keeper
	input  *nsexec.Input

	files []*os.File // ours, to be closed when the guard has its own
}

func (g *guardFiles) close() {
	for _, f := range g.files {
		f.Close()
	}
	g.files = nil
}

// open opens a file of the container's directory for the guard.
func (g *guardFiles) open(dir, name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), flags, 0o600)
	if err == nil {
		g.files = append(g.files, f)
	}
	return f, err
}

const (
	logDirName  = "log"
	stdinName   = "stdin"
	controlName = "control"
)

// guardFiles makes and opens what the container's guard needs, and connects the streams of the process to it.
func (c *Container) guardFiles(st *containerState, s *streams) (_ *guardFiles, err error) {
	g := &guardFiles{}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	dir := c.eng.containerDir(c.id)
	if st.Spec.OpenStdin || st.Spec.TTY && !st.Spec.takesStreams() {
		if err := g.takeInput(dir, &st.Spec, s); err != nil {
			return nil, err
		}
	}
	stdout, stderr := st.Spec.logged()
	var last nsexec.Record
	if st.Spec.Detached && st.Starts > 0 {
		// The last keeper's record says where the log ends: it is read before it is made anew. One that cannot be read says
		// nothing.
		last, _ = c.eng.keeperRecord(c.id)
	}
	if st.Spec.Detached {
		record, err := g.open(dir, recordName, os.O_RDWR|os.O_CREATE)
		if err == nil {
			err = nsexec.PrepareRecord(record)
		}
		if err != nil {
			return nil, err
		}
		// The state that says that the container does not run: see release.
		note, err := g.open(dir, "state.json", os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		g.keeper = &nsexec.Keeper{Record: record, Note: note}
	}
	if !stdout && !stderr {
		return g, nil
	}
	if err := os.Mkdir(filepath.Join(dir, logDirName), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	g.log = &nsexec.Log{Block: st.Spec.Log.Full == LogBlock, MaxFiles: st.Spec.Log.files(), MaxSize: st.Spec.Log.size()}
	if g.log.Dir, err = g.open(dir, logDirName, os.O_RDONLY); err != nil {
		return nil, err
	}
	if g.log.File, err = g.open(dir, logDirName+"/0", os.O_RDWR|os.O_CREATE); err != nil {
		return nil, err
	}
	if err := g.resumeLog(st, last); err != nil {
		return nil, fmt.Errorf("go on with the log: %w", err)
	}
	if st.Spec.TTY {
		return g, nil // what the guard reads comes from the terminal
	}
	g.log.Stdout, g.log.Stderr, err = s.toLog(stdout, stderr)
	g.files = append(g.files, s.logEnds...)
	return g, err
}

// resumeLog finds where the log goes on. What a keeper that was killed has left half done is cut off.
func (g *guardFiles) resumeLog(st *containerState, last nsexec.Record) error {
	info, err := g.log.File.Stat()
	if err != nil {
		return err
	}
	run := uint64(st.Starts) + 1
	switch {
	case info.Size() == 0:
	case last.Ended && last.LogOffset == info.Size():
		g.log.Offset = last.LogOffset
	default:
		end, seq, err := logfile.End(g.log.File)
		if err != nil {
			return err
		}
		if err := g.log.File.Truncate(end); err != nil {
			return err
		}
		g.log.Offset = end
		lastRun, _ := logfile.SplitSequence(seq)
		run = max(run, lastRun+1)
	}
	g.log.Sequence = logfile.Sequence(run, 1)
	return nil
}

// takeInput makes the FIFOs that anybody may write the container's input and messages to.
func (g *guardFiles) takeInput(dir string, spec *ContainerSpec, s *streams) (err error) {
	for _, name := range []string{stdinName, controlName} {
		// Of an earlier start there may be bytes in it, and writers.
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if name == stdinName && !spec.OpenStdin {
			continue
		}
		if err := makeFIFO(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("make the container's input: %w", err)
		}
	}
	g.input = &nsexec.Input{}
	if g.input.Control, err = g.open(dir, controlName, os.O_RDWR); err != nil || !spec.OpenStdin {
		return err
	}
	if g.input.Stdin, err = g.open(dir, stdinName, os.O_RDWR); err != nil || spec.TTY {
		return err
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make the container's input: %w", err)
	}
	g.files = append(g.files, ours)
	g.input.Pipe = ours
	s.give(theirs)
	return nil
}
