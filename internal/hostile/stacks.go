package hostile

import "archive/tar"

// Stack is an image of two layers, of which the upper attacks with what the lower has.
type Stack struct {
	Name string
	// Layers are archives, lowest first.
	Layers [2][]byte
}

// Stacks are attacks through the layers below: links there that lead outside. Those that unpack are harmless, the others
// end in an error of the types that archives end in.
func Stacks(outside string) []Stack {
	base := Tar(
		Entry{Name: "abs", Type: symlink, Link: outside}, Entry{Name: "d/"}, Entry{Name: "d/rel", Type: symlink, Link: wayOut(outside)},
		Entry{Name: "loop", Type: symlink, Link: "loop"}, Entry{Name: "chain", Type: symlink, Link: "d/rel"}, Entry{Name: "file", Data: "x"},
		Entry{Name: "victim", Type: symlink, Link: outside + "/victim"}, Entry{Name: "fifo", Type: tar.TypeFifo}, Entry{Name: "zero", Type: tar.TypeChar, Major: 1, Minor: 5},
		Entry{Name: "su", Data: "x", Mode: 0o4755, UID: 1000}, Entry{Name: "attr/", PAX: map[string]string{"SCHILY.xattr.trusted.x": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
	)
	over := func(name string) Entry { return Entry{Name: name, Data: "overwritten", Mode: 0o777} }
	var list []Stack
	for name, entries := range map[string][]Entry{
		"write through an absolute link":        {over("abs/victim")},
		"write through a relative link":         {over("d/rel/victim")},
		"write through a chain":                 {over("chain/victim")},
		"write over a link":                     {over("victim")},
		"directory over a link":                 {{Name: "abs/", Mode: 0o777}, over("abs/victim")},
		"white out through a link":              {{Name: "abs/.wh.victim"}},
		"white out a link":                      {{Name: ".wh.victim"}, {Name: ".wh.abs"}, over("abs/victim")},
		"opaque through a link":                 {{Name: "abs/.wh..wh..opq"}},
		"hard link through a link":              {{Name: "h", Type: link, Link: "abs/victim"}, over("h")},
		"hard link to a link, then write":       {{Name: "h", Type: link, Link: "victim"}, over("h")},
		"hard link to a link, then through it":  {{Name: "h", Type: link, Link: "abs"}, over("h/victim")},
		"hard link to a fifo, then write":       {{Name: "h", Type: link, Link: "fifo"}, over("h")},
		"hard link to an endless device":        {{Name: "h", Type: link, Link: "zero"}, over("h")},
		"hard link to a setuid file":            {{Name: "h", Type: link, Link: "su", Mode: 0o6777}},
		"hard link to a directory below":        {{Name: "h", Type: link, Link: "d"}},
		"hard link to what is deleted":          {{Name: ".wh.file"}, {Name: "h", Type: link, Link: "file"}},
		"attributes of the target":              {{Name: "abs/.", Type: tar.TypeDir, Mode: 0o777}},
		"directory with attributes made again":  {{Name: "attr/f", Data: "x"}},
		"loop":                                  {over("loop/x")},
		"file as directory":                     {over("file/x")},
		"fifo as directory":                     {over("fifo/x")},
		"link of this layer to a link of below": {{Name: "mine", Type: symlink, Link: "chain"}, over("mine/victim")},
	} {
		list = append(list, Stack{name, [2][]byte{base, Tar(entries...)}})
	}
	return list
}
