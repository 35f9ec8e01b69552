// Package powerloss records what a filesystem writes to its disk, and replays what a power cut may leave of it. It is for
// tests: durable is only what is there whichever moment the cut chose, and whichever of the writes that no flush had
// confirmed the disk happened to have kept.
//
// The disk is a file in memory, the only one of a FUSE filesystem that another process serves, below a loop device. The
// loop driver sends each flush of the filesystem above (REQ_PREFLUSH, and FUA, which it does not have and the block layer
// turns into a flush) as FUSE_FSYNC, so the log of the server is the truth: writes, flushes, and between them the marks
// of the test.
//
//	test: ext4 -> loop -> FUSE file -> server: log of writes and flushes in shared memory
//	cut:  ext4 -> loop -> memory file: all writes up to the last flush, and some of those after it
//
// Everything is attached to descriptors: the mounts are in no mount table, the loop devices clear themselves, and the
// server dies with the test. It is a process of its own because a test that is killed while it waits for its own disk
// could never end.
package powerloss
