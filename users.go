package coracle

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxUserFile is the largest /etc/passwd or /etc/group that is read, in bytes (CVE-2024-9676).
const maxUserFile = 4 << 20

// maxID is the largest user or group id that is accepted. The kernel has room for more, but who reads ids into signed
// 32-bit numbers may take those for root (CVE-2024-40635).
const maxID = 1<<31 - 1

// passwdEntry is one line of /etc/passwd; passwd(5).
type passwdEntry struct {
	name, home string
	uid, gid   uint32
}

// groupEntry is one line of /etc/group; group(5).
type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

// parsePasswd skips lines that are not well-formed: a number that cannot be read must never become 0, which is root.
func parsePasswd(b []byte) []passwdEntry {
	var list []passwdEntry
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[0] == "" {
			continue
		}
		uid, uidErr := parseID(f[2])
		gid, gidErr := parseID(f[3])
		if uidErr != nil || gidErr != nil {
			continue
		}
		e := passwdEntry{name: f[0], uid: uid, gid: gid}
		if len(f) > 5 {
			e.home = f[5]
		}
		list = append(list, e)
	}
	return list
}

func parseGroup(b []byte) []groupEntry {
	var list []groupEntry
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 3 || f[0] == "" {
			continue
		}
		gid, err := parseID(f[2])
		if err != nil {
			continue
		}
		e := groupEntry{name: f[0], gid: gid}
		if len(f) > 3 && f[3] != "" {
			e.members = strings.Split(f[3], ",")
		}
		list = append(list, e)
	}
	return list
}

// parseID reads a decimal user or group id.
func parseID(s string) (uint32, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("%w: %q is no number", ErrInvalid, s)
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID {
		return 0, fmt.Errorf("%w: the id %s is above %d", ErrInvalid, s, maxID)
	}
	return uint32(n), nil
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// lookUpUser finds user, groups and home directory for "user", "user:group" and further groups, in the image's own
// files. passwd and group return their content; a missing file counts as empty.
func lookUpUser(user string, groupAdd []string, passwd, group func() ([]byte, error)) (u specs.User, home string, err error) {
	read := func(f func() ([]byte, error)) ([]byte, error) {
		b, err := f()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	name, groupName, hasGroup := strings.Cut(user, ":")
	b, err := read(passwd)
	if err != nil {
		return u, "", err
	}
	entry, err := findUser(name, parsePasswd(b))
	if err != nil {
		return u, "", err
	}
	u.UID, u.GID, home = entry.uid, entry.gid, entry.home
	if home == "" {
		home = "/"
	}

	if b, err = read(group); err != nil {
		return u, "", err
	}
	groups := parseGroup(b)
	if hasGroup && groupName != "" {
		// As in Docker, naming a group replaces those that the user is a member of.
		if u.GID, err = findGroup(groupName, groups); err != nil {
			return u, "", err
		}
	} else if entry.name != "" {
		for _, g := range groups {
			if slices.Contains(g.members, entry.name) && !slices.Contains(u.AdditionalGids, g.gid) {
				u.AdditionalGids = append(u.AdditionalGids, g.gid)
			}
		}
	}
	for _, name := range groupAdd {
		gid, err := findGroup(name, groups)
		if err != nil {
			return u, "", err
		}
		if !slices.Contains(u.AdditionalGids, gid) {
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	// The primary group is in the list too (CVE-2022-36109): dropping it must not be a way to gain access.
	if !slices.Contains(u.AdditionalGids, u.GID) {
		u.AdditionalGids = append([]uint32{u.GID}, u.AdditionalGids...)
	}
	return u, home, nil
}

// findUser finds a user by name or number. A number is never looked up as a name: an image whose passwd file calls uid
// 0 "1000" does not get root out of "USER 1000".
func findUser(name string, list []passwdEntry) (passwdEntry, error) {
	if name == "" {
		name = "0"
	}
	if isNumber(name) {
		uid, err := parseID(name)
		if err != nil {
			return passwdEntry{}, fmt.Errorf("user: %w", err)
		}
		for _, e := range list {
			if e.uid == uid {
				return e, nil
			}
		}
		return passwdEntry{uid: uid}, nil
	}
	for _, e := range list {
		if e.name == name {
			return e, nil
		}
	}
	return passwdEntry{}, fmt.Errorf("%w: the image's /etc/passwd has no user %q", ErrInvalid, name)
}

func findGroup(name string, list []groupEntry) (uint32, error) {
	if isNumber(name) {
		gid, err := parseID(name)
		if err != nil {
			return 0, fmt.Errorf("group: %w", err)
		}
		return gid, nil
	}
	for _, e := range list {
		if e.name == name {
			return e.gid, nil
		}
	}
	return 0, fmt.Errorf("%w: the image's /etc/group has no group %q", ErrInvalid, name)
}
