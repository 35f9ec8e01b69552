package nsexec

import (
	"os"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// everyOption has the options of config.md, "Linux mount options", of runtime-spec 1.3, and those of tmpfs(5) that
// containers use.
const everyOption = `async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime noexec
	noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime relatime remount
	rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared
	rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable
	size mode uid gid nr_inodes`

// optionRow is a mount with options, and what a container must see of it.
type optionRow struct {
	from        string // a source of optionSources, or a type of filesystem
	options     string
	top, below  string // the options of the mount, and of the one below it
	propagation [2]string
	super       string // of the filesystem's options; with a ! in front, what must not be there
}

const (
	plainOptions = "rw,relatime"
	hardOptions  = "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"
)

func optionRows() (rows []optionRow) {
	// Each attribute, on a source that has it not and on one that has it, alone and with an r in front.
	for _, a := range []struct{ option, plain, hard string }{
		{"ro", "ro,relatime", hardOptions},
		{"rw", plainOptions, "rw,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"},
		{"nosuid", "rw,nosuid,relatime", hardOptions},
		{"suid", plainOptions, "ro,nodev,noexec,noatime,nodiratime,nosymfollow"},
		{"nodev", "rw,nodev,relatime", hardOptions},
		{"dev", plainOptions, "ro,nosuid,noexec,noatime,nodiratime,nosymfollow"},
		{"noexec", "rw,noexec,relatime", hardOptions},
		{"exec", plainOptions, "ro,nosuid,nodev,noatime,nodiratime,nosymfollow"},
		{"nodiratime", "rw,nodiratime,relatime", hardOptions},
		{"diratime", plainOptions, "ro,nosuid,nodev,noexec,noatime,nosymfollow"},
		{"nosymfollow", "rw,relatime,nosymfollow", hardOptions},
		{"symfollow", plainOptions, "ro,nosuid,nodev,noexec,noatime,nodiratime"},
		{"noatime", "rw,noatime", hardOptions},
		{"strictatime", "rw", "ro,nosuid,nodev,noexec,nodiratime,nosymfollow"},
		// Without any of the two, the kernel's default is relatime.
		{"atime", plainOptions, "ro,nosuid,nodev,noexec,nodiratime,relatime,nosymfollow"},
		{"relatime", plainOptions, "ro,nosuid,nodev,noexec,nodiratime,relatime,nosymfollow"},
		{"norelatime", plainOptions, "ro,nosuid,nodev,noexec,nodiratime,relatime,nosymfollow"},
		{"nostrictatime", plainOptions, "ro,nosuid,nodev,noexec,nodiratime,relatime,nosymfollow"},
	} {
		rows = append(rows,
			optionRow{from: "plain", options: "rbind " + a.option, top: a.plain, below: plainOptions},
			optionRow{from: "plain", options: "rbind r" + a.option, top: a.plain, below: a.plain},
			optionRow{from: "hard", options: "rbind " + a.option, top: a.hard, below: hardOptions},
			optionRow{from: "hard", options: "rbind r" + a.option, top: a.hard, below: a.hard},
			optionRow{from: "tmpfs", options: a.option, top: a.plain},
			optionRow{from: "tmpfs", options: "r" + a.option, top: a.plain},
		)
	}
	for _, p := range []struct {
		option             string
		shared, plain      [2]string
		ofAFreshFilesystem string
	}{
		{"defaults", [2]string{}, [2]string{}, ""},
		{"private", [2]string{}, [2]string{}, ""},
		{"rprivate", [2]string{}, [2]string{}, ""},
		{"slave", [2]string{"master:", "master:"}, [2]string{}, ""}, // what is below must not lead back to the host either
		{"rslave", [2]string{"master:", "master:"}, [2]string{}, ""},
		{"shared", [2]string{"shared:", "shared:"}, [2]string{"shared:", ""}, "shared:"},
		{"rshared", [2]string{"shared:", "shared:"}, [2]string{"shared:", "shared:"}, "shared:"},
		{"unbindable", [2]string{"unbindable", ""}, [2]string{"unbindable", ""}, "unbindable"},
		{"runbindable", [2]string{"unbindable", "unbindable"}, [2]string{"unbindable", "unbindable"}, "unbindable"},
		{"slave rshared", [2]string{"shared:", "shared:"}, [2]string{"shared:", "shared:"}, "shared:"},
	} {
		rows = append(rows,
			optionRow{from: "shared", options: "rbind " + p.option, top: plainOptions, below: plainOptions, propagation: p.shared},
			optionRow{from: "plain", options: "rbind " + p.option, top: plainOptions, below: plainOptions, propagation: p.plain},
			optionRow{from: "tmpfs", options: p.option, top: plainOptions, propagation: [2]string{p.ofAFreshFilesystem, ""}},
		)
	}
	for _, s := range []struct{ options, super string }{
		{"sync", "sync"}, {"async", "!sync"}, {"sync async", "!sync"}, {"dirsync", "dirsync"},
		{"lazytime", "lazytime"}, {"nolazytime", "!lazytime"}, {"lazytime nolazytime", "!lazytime"},
		{"mand", "mand"}, {"nomand", "!mand"}, {"mand nomand", "!mand"},
		// These show nowhere: they must do no harm.
		{"iversion", "!iversion"}, {"noiversion", "!iversion"}, {"silent", "!silent"}, {"loud", "!loud"}, {"defaults", "!defaults"},
		{"size=1m", "size=1024k"}, {"size=1m,nr_inodes=77", "nr_inodes=77"}, {"mode=711", "mode=711"}, {"nr_inodes=5", "nr_inodes=5"},
	} {
		rows = append(rows, optionRow{from: "tmpfs", options: s.options, top: plainOptions, super: s.super})
	}
	return append(rows,
		optionRow{from: "tmpfs", options: "sync ro dirsync", top: "ro,relatime", super: "sync"},
		optionRow{from: "tmpfs", options: "tmpcopyup nosuid", top: "rw,nosuid,relatime", super: "upperdir=upper"},
		optionRow{from: "tmpfs", options: "uid=3 gid=4 mode=1750", top: plainOptions, super: "mode=1750"},
		optionRow{from: "plain", options: "bind", top: plainOptions},
		optionRow{from: "plain", options: "bind rro", top: "ro,relatime"},
		optionRow{from: "plain", options: "rbind", top: plainOptions, below: plainOptions},
		optionRow{from: "plain", options: "rbind ro rw noexec", top: "rw,noexec,relatime", below: plainOptions},
		optionRow{from: "hard", options: "rbind rrw ro", top: "rw,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow", below: "rw,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"},
	)
}

// optionSources mounts what the rows bind: two filesystems one below the other, with and without all attributes, and as
// members of peer groups.
func optionSources(t *testing.T) map[string]string {
	t.Helper()
	sources := make(map[string]string)
	for _, name := range []string{"plain", "hard", "shared"} {
		dir := t.TempDir()
		sources[name] = dir
		check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		check(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
		check(t, os.Mkdir(dir+"/below", 0o755))
		check(t, unix.Mount("tmpfs", dir+"/below", "tmpfs", 0, ""))
		switch name {
		case "hard":
			check(t, unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &unix.MountAttr{
				Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC |
					unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW,
				Attr_clr: unix.MOUNT_ATTR__ATIME,
			}))
		case "shared":
			check(t, unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""))
		}
	}
	return sources
}

// TestMountOptionsInside has every option of config.md against what /proc/self/mountinfo shows in a container: of bind
// mounts and of new filesystems, with a user namespace and without.
func TestMountOptionsInside(t *testing.T) {
	requireRoot(t)
	rows, sources := optionRows(), optionSources(t)
	for _, test := range []struct {
		name   string
		change func(testing.TB, *specs.Spec)
	}{
		{"of the host", func(testing.TB, *specs.Spec) {}},
		{"in a user namespace", mapped},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := newRoot(t)
			s := newSpec(root, "view")
			test.change(t, s)
			place := func(i int) string { return "/m/" + strconv.Itoa(i) }
			for i, row := range rows {
				m := specs.Mount{Destination: place(i), Type: row.from, Options: strings.Fields(row.options)}
				if source, ok := sources[row.from]; ok {
					m.Type, m.Source = "bind", source
				}
				s.Mounts = append(s.Mounts, m)
			}
			again := len(rows)
			s.Mounts = append(s.Mounts, specs.Mount{Destination: place(again), Type: "tmpfs"},
				specs.Mount{Destination: place(again), Options: []string{"remount", "bind", "ro", "nodev"}})
			v := viewOf(t, s, nil)
			for i, row := range rows {
				top, below := v.on(place(i)), v.on(place(i)+"/below")
				if top.Options != row.top || below.Options != row.below {
					t.Errorf("%s with %q: %q, below %q, want %q and %q", row.from, row.options, top.Options, below.Options, row.top, row.below)
				}
				for k, got := range []string{top.Propagation, below.Propagation} {
					if want := row.propagation[k]; !strings.HasPrefix(got, want) || want == "" && got != "" {
						t.Errorf("%s with %q: propagation %q, want %q (%d)", row.from, row.options, got, want, k)
					}
				}
				option, absent := strings.CutPrefix(row.super, "!")
				if strings.Contains(","+top.Super+",", ","+option+",") == absent && row.super != "" {
					t.Errorf("%s with %q: the filesystem has %q, want %q", row.from, row.options, top.Super, row.super)
				}
			}
			if m := v.on(place(again)); m.Options != "ro,nodev,relatime" {
				t.Errorf("the remount is %+v", m)
			}
		})
	}
	covered := " remount "
	for _, row := range rows {
		covered += strings.NewReplacer(",", " ", "=", " ").Replace(row.options) + " "
	}
	for _, option := range strings.Fields(everyOption) {
		if !strings.Contains(covered, " "+option+" ") {
			t.Errorf("no row has %s", option)
		}
	}
}

// TestTmpfsOptionsInside: owner, mode and size of a tmpfs as its user meets them.
func TestTmpfsOptionsInside(t *testing.T) {
	requireRoot(t)
	for name, change := range map[string]func(testing.TB, *specs.Spec){"host": func(testing.TB, *specs.Spec) {}, "user namespace": mapped} {
		t.Run(name, func(t *testing.T) {
			s := newSpec(newRoot(t), "stat", "/a", "/b", ";", "try", "write big", "/b/file", "8192", ";", "try", "write big", "/b/file", "4096", ";", "try", "create", "/c/1", ";", "try", "create", "/c/2")
			change(t, s)
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/a", Type: "tmpfs", Options: []string{"uid=3", "gid=4", "mode=1750"}},
				specs.Mount{Destination: "/b", Type: "tmpfs", Options: []string{"size=4k"}},
				specs.Mount{Destination: "/c", Type: "tmpfs", Options: []string{"nr_inodes=2"}}, // one for the root
			)
			want := "/a 41750 3:4 0:0 \n/b 41777 0:0 0:0 \nwrite big /b/file 8192: write /b/file: no space left on device\nwrite big /b/file 4096: <nil>\n" +
				"create /c/1: <nil>\ncreate /c/2: open /c/2: no space left on device\n"
			if got := mustRun(t, s, nil); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// mapped gives a spec a new user namespace, and the root filesystem to its root.
func mapped(t testing.TB, s *specs.Spec) {
	t.Helper()
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	for _, dir := range []string{s.Root.Path, s.Root.Path + "/bin"} {
		check(t, os.Chown(dir, 100000, 100000))
	}
}
