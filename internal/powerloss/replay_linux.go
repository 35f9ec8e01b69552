package powerloss

import (
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	cutsFlag = flag.Int("powerloss.cuts", 0, "cuts of each power-loss test; 0 means as many as the test asks for")
	seedFlag = flag.Uint64("powerloss.seed", 0, "seed of the power-loss tests; 0 means the test's own")
	onlyFlag = flag.Int("powerloss.only", -1, "the only cut to look at")
)

// mode is what happens to the writes that no flush has confirmed.
type mode int

const (
	modeNone   mode = iota // all are lost
	modePrefix             // those up to some moment are there
	modeSubset             // any of them are there
	modeTorn               // any blocks of any of them are there
	modeAll                // all are there
	modeCount
)

func (m mode) String() string { return [...]string{"none", "prefix", "subset", "torn", "all"}[m] }

// tearSize is the unit that a disk writes as a whole. With 512 bytes no filesystem survives its own superblock: ext4 is
// then refused for its checksum (EBADMSG), btrfs as well (EINVAL).
const tearSize = 4096

// Cut is what a power cut left of a disk.
type Cut struct {
	// Index is the number of the cut, for -powerloss.only.
	Index int

	disk  *Disk
	pos   int // writes, flushes and marks before it
	mode  mode
	seed  uint64
	marks []string
	kept  int // of the unconfirmed writes
	open  int // unconfirmed writes

	image int // memfd
	loop  *loop
	mount *mount
}

// String says how to see the same cut again.
func (c *Cut) String() string {
	return fmt.Sprintf("cut %d: after record %d, %d of %d unconfirmed writes kept (%v); -powerloss.seed=%d -powerloss.only=%d",
		c.Index, c.pos, c.kept, c.open, c.mode, c.seed, c.Index)
}

// Marks are the names of what was seen to be done before the cut, in order.
func (c *Cut) Marks() []string { return c.marks }

// Marked says whether that was seen to be done before the cut.
func (c *Cut) Marked(name string) bool { return slices.Contains(c.marks, name) }

// Mount mounts what the cut left, writable. All on it must be closed before the next cut is looked at.
func (c *Cut) Mount(t testing.TB) (dir string) {
	t.Helper()
	if c.mount != nil {
		return c.mount.path
	}
	var err error
	if c.loop, err = attachLoop(c.image, imageName); err != nil {
		t.Fatal(err)
	}
	defer c.loop.close()
	if c.mount, err = c.loop.mount(c.disk.fstype); err != nil {
		t.Fatalf("the filesystem itself did not survive %v: %v", c, err)
	}
	return c.mount.path
}

const imageName = "powerloss-image"

func (c *Cut) close() error {
	var err error
	c.mount.close()
	if c.loop != nil {
		c.loop.close()
		err = c.loop.wait()
	}
	unix.Close(c.image)
	return err
}

// plannedCut is where and how.
type plannedCut struct {
	pos  int
	mode mode
}

// plan chooses at most about n cuts: one right after each mark, when nothing but what was flushed is left, and a sample
// of the moments before each flush and of all others.
func plan(list []entry, n int, rnd *rand.Rand) []plannedCut {
	var must, may []plannedCut
	writes := 0 // since the last flush
	for i, e := range list {
		switch e.Kind {
		case recWrite, recZero:
			writes++
		case recMark:
			must = append(must, plannedCut{i + 1, modeNone})
		case recFlush:
			if writes > 0 {
				for m := range modeCount {
					may = append(may, plannedCut{i, m})
				}
			}
			writes = 0
		}
	}
	rnd.Shuffle(len(may), func(i, j int) { may[i], may[j] = may[j], may[i] })
	cuts := must
	seen := make(map[plannedCut]bool)
	for _, c := range must {
		seen[c] = true
	}
	for _, c := range may {
		// Two thirds at flushes, the rest anywhere.
		if len(cuts) >= len(must)+max(0, n-len(must))*2/3 {
			break
		}
		if !seen[c] {
			seen[c] = true
			cuts = append(cuts, c)
		}
	}
	for len(list) > 0 && len(cuts) < n {
		cuts = append(cuts, plannedCut{rnd.IntN(len(list) + 1), modePrefix + mode(rnd.IntN(int(modeTorn-modePrefix)+1))})
	}
	slices.SortStableFunc(cuts, func(a, b plannedCut) int { return a.pos - b.pos })
	return cuts
}

// Cuts unmounts the disk and goes through n cuts of its power, in the order of time: right after each mark, around
// flushes, and at random moments.
func (d *Disk) Cuts(n int, seed uint64) iter.Seq[*Cut] {
	d.t.Helper()
	d.Unmount()
	if *cutsFlag > 0 {
		n = *cutsFlag
	}
	if *seedFlag > 0 {
		seed = *seedFlag
	}
	return func(yield func(*Cut) bool) {
		list, before, done := d.entries()
		defer done()
		base, err := newImage(d.size)
		if err != nil {
			d.t.Fatal(err)
		}
		defer base.close()
		for _, e := range before {
			if err := base.apply(e); err != nil {
				d.t.Fatal(err)
			}
		}
		began, count := time.Now(), 0
		var marks []string
		at := 0 // base has all of list[:at], which ends with a flush
		scanned := 0
		for index, p := range plan(list, n, rand.New(rand.NewPCG(seed, 0))) {
			for ; scanned < p.pos; scanned++ {
				switch e := list[scanned]; e.Kind {
				case recMark:
					marks = append(marks, e.mark)
				case recFlush:
					for ; at <= scanned; at++ {
						if err := base.apply(list[at]); err != nil {
							d.t.Fatal(err)
						}
					}
				}
			}
			if *onlyFlag >= 0 && index != *onlyFlag {
				continue
			}
			c := &Cut{Index: index, disk: d, pos: p.pos, mode: p.mode, seed: seed, marks: slices.Clone(marks)}
			if err := c.make(base, list[at:p.pos]); err != nil {
				d.t.Fatal(err)
			}
			count++
			if !d.show(c, yield) {
				break
			}
		}
		if count > 0 {
			s := d.Stats()
			d.t.Logf("%s: %d writes of %d kB, %d flushes, %d marks; %d cuts, %v each, seed %d",
				d.fstype, s.Writes, s.Bytes>>10, s.Flushes, s.Marks, count, (time.Since(began) / time.Duration(count)).Round(100*time.Microsecond), seed)
		}
	}
}

// show lets the test look at a cut, and frees it even when the test ends there.
func (d *Disk) show(c *Cut, yield func(*Cut) bool) bool {
	defer func() {
		if err := c.close(); err != nil {
			d.t.Errorf("%v: %v", c, err)
		}
	}()
	return yield(c)
}

// make builds the disk: what was flushed, and some of the writes after that.
func (c *Cut) make(base *image, writes []entry) error {
	img, err := base.copy()
	if err != nil {
		return err
	}
	c.image = img.fd
	writes = slices.DeleteFunc(slices.Clone(writes), func(e entry) bool { return e.Kind != recWrite && e.Kind != recZero })
	c.open = len(writes)
	rnd := rand.New(rand.NewPCG(c.seed, uint64(c.Index)+1))
	keep := func(int) bool { return true }
	switch c.mode {
	case modeNone:
		return nil
	case modePrefix:
		n := rnd.IntN(len(writes) + 1)
		keep = func(i int) bool { return i < n }
	case modeSubset:
		part := rnd.Float64()
		keep = func(int) bool { return rnd.Float64() < part }
	}
	part := rnd.Float64()
	for i, e := range writes {
		if c.mode != modeTorn {
			if keep(i) {
				c.kept++
				if err := img.apply(e); err != nil {
					return err
				}
			}
			continue
		}
		some := false
		for off := int64(0); off < e.Len; off += tearSize {
			if rnd.Float64() >= part {
				continue
			}
			some = true
			piece := e
			piece.Off, piece.Len = e.Off+off, min(tearSize, e.Len-off)
			if e.Kind == recWrite {
				piece.data = e.data[off : off+piece.Len]
			}
			if err := img.apply(piece); err != nil {
				return err
			}
		}
		if some {
			c.kept++
		}
	}
	return nil
}

// image is a disk in memory.
type image struct {
	fd   int
	size int64
}

func newImage(size int64) (*image, error) {
	fd, err := unix.MemfdCreate(imageName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return &image{fd, size}, nil
}

func (i *image) close() { unix.Close(i.fd) }

// apply does a write. Other records change nothing.
func (i *image) apply(e entry) error {
	switch e.Kind {
	case recWrite:
		for done := 0; done < len(e.data); {
			n, err := unix.Pwrite(i.fd, e.data[done:], e.Off+int64(done))
			if err != nil {
				return fmt.Errorf("write the image: %w", err)
			}
			done += n
		}
	case recZero:
		if err := unix.Fallocate(i.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Off, e.Len); err != nil {
			return fmt.Errorf("clear a part of the image: %w", err)
		}
	}
	return nil
}

// copy copies what is not a hole.
func (i *image) copy() (*image, error) {
	c, err := newImage(i.size)
	if err != nil {
		return nil, err
	}
	for off := int64(0); off < i.size; {
		start, err := unix.Seek(i.fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		end := i.size
		if err == nil {
			end, err = unix.Seek(i.fd, start, unix.SEEK_HOLE)
		}
		if err == nil {
			err = copyRange(c.fd, i.fd, start, end)
		}
		if err != nil {
			c.close()
			return nil, fmt.Errorf("copy the image: %w", err)
		}
		off = end
	}
	return c, nil
}

func copyRange(dst, src int, start, end int64) error {
	buf := make([]byte, min(end-start, 1<<20))
	for start < end {
		n, err := unix.Pread(src, buf[:min(end-start, int64(len(buf)))], start)
		if err != nil {
			return err
		}
		if _, err := unix.Pwrite(dst, buf[:n], start); err != nil {
			return err
		}
		start += int64(n)
	}
	return nil
}
