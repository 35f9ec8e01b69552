package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// selfFS returns a directory tree with this program in it as /quickstart. Where a C compiler made go link it against the
// C library, the library comes along.
func selfFS(tmp string) (fs.FS, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(tmp, "files")
	if err := add(dir, "quickstart", self); err != nil {
		return nil, err
	}
	libraries, err := sharedObjects(self)
	if err != nil {
		return nil, err
	}
	for _, path := range libraries {
		if err := add(dir, path, path); err != nil {
			return nil, err
		}
	}
	return os.DirFS(dir), nil
}

// add puts a file of the host into the tree, as a link where that is possible.
func add(dir, name, file string) error {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	if os.Link(file, path) == nil {
		return nil
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// sharedObjects lists the dynamic linker and the libraries that a program needs; none for a static one.
func sharedObjects(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []string
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(p.Open())
			if err != nil {
				return nil, err
			}
			found = append(found, strings.TrimRight(string(b), "\x00"))
		}
	}
	if found == nil {
		return nil, nil
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		lib, err := library(name)
		if err != nil {
			return nil, err
		}
		found = append(found, lib)
	}
	return found, nil
}

func library(name string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu*/", "/lib64/", "/lib/", "/usr/lib/*-linux-gnu*/", "/usr/lib64/", "/usr/lib/"} {
		if found, _ := filepath.Glob(pattern + name); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("cannot find %s: build without the C library (CGO_ENABLED=0)", name)
}
