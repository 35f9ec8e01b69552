package nsexec

import (
	"errors"
	"os"
	"time"
)

// A Log says where a guard writes what its program writes to its standard streams: a directory of files of records. The
// guard closes nothing of it; who starts the program keeps the other ends and closes these once it runs.
type Log struct {
	// Dir is the directory, open for reading, and File its file "0", open for writing.
	Dir, File *os.File
	// Offset is where File ends, in bytes, and Sequence the number of the first record to come.
	Offset   int64
	Sequence uint64
	// MaxSize is the size in bytes at which a file is followed by the next; zero means never.
	MaxSize int64
	// MaxFiles is how many files there may be, the current one included; less than one means one.
	MaxFiles int
	// Block makes the program wait while the disk is full. Otherwise what cannot be written is dropped and counted.
	Block bool
	// Stdout and Stderr are the reading ends of the pipes that the program writes to. Nil means that the stream goes
	// elsewhere. A program with a terminal (process.terminal) has neither: the guard reads the terminal.
	Stdout, Stderr *os.File
}

// A Keeper makes the guard outlive the importing program, and what it needs for that. Nil files are done without.
type Keeper struct {
	// Record is the file that the exit status goes to, made by [PrepareRecord].
	Record *os.File
	// MemoryEvents is memory.events or memory.oom_control of the program's cgroup, copied into the record at the end.
	MemoryEvents *os.File
	// Note is a file that loses its last name at the moment when the importing program notes the container, as it does by a
	// rename of another file over it: a program that dies between that and [Detached.Release] has let the container go.
	Note *os.File
	// Cgroup and Tasks are where the keeper itself lives, as those of [Options] for the program: not in the group of
	// the importing program, which may be ended as a whole.
	Cgroup *os.File
	Tasks  []*os.File
	// Hold are files that the keeper keeps open and does nothing with: what exists as long as somebody has them ends with
	// the program.
	Hold []*os.File
}

// Input is what others say to a guard that writes a log or is a keeper.
type Input struct {
	// Control is a FIFO, open for reading and writing, for messages of [ControlSize] bytes.
	Control *os.File
	// Stdin is a FIFO, open for reading and writing, from which the guard reads what others write to the program. When
	// the program takes no more input, or the guard is told to end it, nobody reads the FIFO any more.
	Stdin *os.File
	// Pipe is the writing end of the pipe that the program reads as its standard input. Nil for a program with a
	// terminal, to which the guard types.
	Pipe *os.File
}

// ControlSize is the size in bytes of a message to a guard, small enough that the kernel never mixes two: the kind (4
// bytes), 4 bytes of zero and 8 bytes of data, all in the machine's byte order.
const ControlSize = 16

// Kinds of messages to a guard.
const (
	ControlCloseStdin = 1 // end the program's standard input
	ControlResize     = 2 // the data is a struct winsize, ioctl_tty(2)
)

// A Record is what a keeper leaves behind. The file is laid out in the machine's byte order:
//
//	  0  magic "CKR1", state (4): 0 armed, 1 ended
//	  8  wait status (4), zero (4), struct rusage (144)
//	160  time of the end, seconds and nanoseconds (16)
//	176  size of the log's current file (8), number of its next record (8)
//	192  bytes of output dropped (8), reads dropped (8), 1 while the disk is full (8)
//	216  length of the memory events (8)
//	224  memory events: the text of memory.events or memory.oom_control (512)
//	736  zero, magic and state once more
type Record struct {
	// Ended says that the program has ended; what follows is then set.
	Ended  bool
	Status Status
	// Finished is when it ended.
	Finished time.Time
	// LogOffset is the size in bytes of the log's current file, and LogSequence the number of the next record.
	LogOffset   int64
	LogSequence uint64
	// MemoryEvents is the text of memory.events or memory.oom_control of the program's cgroup at its end.
	MemoryEvents []byte

	// DroppedBytes and DroppedReads count the output that was dropped because the disk was full, and LogFull says
	// whether it is at present. They are right while the program runs.
	DroppedBytes, DroppedReads uint64
	LogFull                    bool
}

// ErrNoRecord says that a file is no record of a keeper, or was torn by a power failure.
var ErrNoRecord = errors.New("nsexec: not the record of a keeper")
