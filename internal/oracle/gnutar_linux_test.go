package oracle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// gnuTar extracts a layer into root with GNU tar, after doing what only the specification knows: removing what whiteouts
// name, what is no directory in the place of one and the other way round, and the attributes of directories that get an
// entry. The paths of the layer must not lead through links (see tarCan).
func gnuTar(ctx context.Context, root string, layer []entry) error {
	for _, e := range layer {
		dir, base := path.Split(e.name)
		hidden, whiteout := strings.CutPrefix(base, ".wh.")
		// A file in the place of the directory is replaced by the layer: it has nothing in it that could be removed.
		switch {
		case base == opaque:
			if st, err := os.Lstat(path.Join(root, dir)); err != nil || !st.IsDir() {
				continue
			}
			ents, err := os.ReadDir(path.Join(root, dir))
			if err != nil {
				return err
			}
			for _, e := range ents {
				if err := os.RemoveAll(path.Join(root, dir, e.Name())); err != nil {
					return err
				}
			}
		case whiteout:
			if st, err := os.Lstat(path.Join(root, dir)); err != nil || !st.IsDir() {
				continue
			}
			if err := os.RemoveAll(path.Join(root, dir, hidden)); err != nil {
				return err
			}
		}
	}
	var entries []entry
	for _, e := range layer {
		dir, base := path.Split(e.name)
		if strings.HasPrefix(base, ".wh.") {
			// Its directory is made where nothing else does; tar would need an entry for that.
			if err := os.MkdirAll(path.Join(root, dir), 0o755); err != nil {
				return errors.Join(errRefused, err)
			}
			continue
		}
		entries = append(entries, e)
		p := path.Join(root, e.name)
		st, err := os.Lstat(p)
		if err != nil {
			continue
		}
		switch {
		case st.IsDir() != (e.kind == tar.TypeDir):
			err = os.RemoveAll(p)
		case st.IsDir():
			var names []string
			names, err = listXattrs(p)
			for _, n := range names {
				err = errors.Join(err, unix.Lremovexattr(p, n))
			}
		}
		if err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "tar", "--extract", "--file=-", "--directory", root, "--numeric-owner", "--same-owner",
		"--preserve-permissions", "--xattrs", "--xattrs-include=*", "--delay-directory-restore")
	cmd.Stdin = bytes.NewReader(archiveOf(entries...))
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(errRefused, fmt.Errorf("tar: %w: %s", err, out))
	}
	return nil
}

// tarCan reports whether GNU tar, given the order of its entries, can say what the layer says. Where a whiteout stands
// among the entries does not matter, as all are done before; what they name must not lie behind something that the layer
// replaces.
func tarCan(layer []entry) bool {
	kinds := map[string]byte{}
	for _, e := range layer {
		if _, ok := kinds[e.name]; ok {
			return false
		}
		kinds[e.name] = e.kind
	}
	for _, e := range layer {
		// Below a name that is no directory, or a whiteout of what is above.
		for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
			if k, ok := kinds[dir]; ok && k != tar.TypeDir {
				return false
			}
			up, base := path.Split(dir)
			if _, ok := kinds[up+".wh."+base]; ok {
				return false
			}
			if _, ok := kinds[path.Join(dir, opaque)]; ok {
				return false
			}
		}
		if _, ok := kinds[opaque]; ok {
			return false
		}
		if e.kind != tar.TypeLink {
			continue
		}
		// A link to what is deleted in the same layer, or has been replaced by then, means what the order says.
		up, base := path.Split(e.link)
		if _, ok := kinds[up+".wh."+base]; ok || e.link == e.name {
			return false
		}
		for dir := e.link; dir != "."; dir = path.Dir(dir) {
			if _, ok := kinds[dir]; ok && dir != e.link {
				return false
			}
		}
		if _, ok := kinds[e.link]; ok {
			for _, first := range layer {
				if first.name == e.link {
					break
				}
				if first.name == e.name {
					return false
				}
			}
		}
	}
	return true
}
