package coracle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// encoding/json takes "Layers" for "layers", and of two keys the last; other readers take neither, or the first. A
// document that is read in two ways is two images under one digest (the class of CVE-2021-41190): one that is looked
// over and one that runs. So the keys that count must be there once.

// structKeys lead, in manifests, indexes and configurations, from an object whose keys have a meaning to another one.
// The keys of all others (annotations, labels, volumes) are anybody's, and may differ in case alone.
var structKeys = map[string]bool{"config": true, "rootfs": true, "layers": true, "manifests": true, "platform": true, "subject": true, "history": true}

// level is an object or array that is being read.
type level struct {
	array  bool
	fixed  bool            // its keys have a meaning
	keys   map[string]bool // of an object, folded where fixed
	isKey  bool            // the next string is a key
	within string          // the last key
}

// checkKeys refuses an object with the same key twice. Where strict is set, as in documents that hold nothing but what
// the specification names, these names must be spelled as there.
func checkKeys(data []byte, strict bool) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var stack []level
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var top *level
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		}
		switch t := token.(type) {
		case json.Delim:
			if t == '}' || t == ']' {
				stack = stack[:len(stack)-1]
				if len(stack) > 0 {
					stack[len(stack)-1].isKey = !stack[len(stack)-1].array
				}
				continue
			}
			next := level{array: t == '[', isKey: t == '{', fixed: top == nil}
			if top != nil {
				// The elements of an array are what the array is.
				next.fixed = top.fixed && (top.array || structKeys[fold(top.within)])
			}
			if t == '{' {
				next.keys = make(map[string]bool)
			}
			stack = append(stack, next)
		case string:
			if top == nil || top.array {
				continue
			}
			if !top.isKey {
				top.isKey = true
				continue
			}
			key := t
			if top.fixed {
				key = fold(t)
				if exact := spelling[key]; strict && exact != "" && exact != t {
					return fmt.Errorf("the key %s is spelled otherwise in the specification", quoteShort(t))
				}
			}
			if top.keys[key] {
				return fmt.Errorf("the key %s is there twice", quoteShort(t))
			}
			top.keys[key] = true
			top.isKey, top.within = false, t
		default:
			if top != nil {
				top.isKey = !top.array
			}
		}
	}
}

// spelling of the keys of manifests and indexes, by what they fold to.
var spelling = map[string]string{}

func init() {
	for _, key := range []string{"schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations", "manifests",
		"digest", "size", "urls", "data", "platform", "architecture", "os", "variant", "fsLayers"} {
		spelling[fold(key)] = key
	}
}

var foreignLetters = strings.NewReplacer("\u017f", "s", "\u212a", "k")

// fold makes equal what encoding/json takes for equal: letters of either case, and the two of other alphabets that
// Unicode folds to s and k.
func fold(key string) string { return strings.ToLower(foreignLetters.Replace(key)) }
