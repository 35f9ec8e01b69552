// Package oracle holds no code, only tests: random stacks of layers are unpacked and mounted by layerfs, and extracted one
// after another into one directory by implementations that share nothing with it, containerd's pkg/archive and GNU tar.
// What the trees differ in is a bug of one of the three. It is a module of its own because of what containerd brings
// along.
//
//	go test .                          # as root; a hundred stacks of each flavour
//	go test . -rapid.checks=5000       # more
//	go test . -oracle.dir=/some/disk   # in a directory on a disk instead of a tmpfs
//
// A failing stack is reduced and saved under testdata/rapid, from where every later run starts with it.
//
// # What is not compared, and why
//
// Where containerd does something else than the OCI image specification says (layer.md) or than the kernel does, the test
// does that step itself (see sequence in containerd_linux_test.go). Nothing is left out for it:
//
//   - A whiteout that comes after entries of its own layer that it names: "Whiteout files MUST only apply to resources in
//     lower/parent layers". containerd removes both.
//   - A directory's entry over an existing directory: "the existing path's attributes MUST be replaced". containerd leaves
//     extended attributes that the new entry does not have.
//   - A hard link's entry has attributes too, which containerd gives to the file; they are those of the file here, as
//     every writer of archives makes them.
//   - The modification time of a directory that a later entry of the same layer replaces: containerd sets it by name at the
//     end, on whatever has that name then.
//   - A directory without an entry, made in a setgid directory: containerd lets the kernel give it that directory's group,
//     if the directory has an entry before. Here its owner is root wherever the entry stands.
//   - A link to ".." reached through other links: containerd's path resolution is textual, the kernel's is not.
//   - A hard link to itself, of which GNU tar makes nothing: containerd removes the file first.
//
// What no layer can say, or nobody defines:
//
//   - Character device 0:0 is not generated: to overlayfs it is a whiteout.
//   - ".." in names, names of directories that start with ".wh.": layerfs refuses them. The specification reserves the
//     latter; for the former see layerfs's own tests.
//   - The modification time of a directory whose content changed in a layer without an entry for it: extraction leaves the
//     time of extraction, layerfs the time that the directory had, as containerd's overlay snapshotter does. It is checked
//     to be one of the two.
//   - Times before 1970 are 1970 to containerd. GNU tar has them.
//   - Attributes trusted.*: containerd ignores them. GNU tar has them.
//   - The root directory's own attributes: containerd ignores entries for it. GNU tar has them.
//   - Which names are one file, across layers: a link to a file of a lower layer takes that one name along; other names
//     that the file has in lower layers stay what they were, as they would in a running container (overlayfs with
//     index=off, which breaks links when it copies up). The test expects exactly that.
//   - GNU tar is asked where no path leads through a link (it would follow it on the host), where no layer has two entries
//     for one name (it does not replace directories by files), and where no directory is setgid (it leaves the bit on what
//     is made in it).
package oracle
