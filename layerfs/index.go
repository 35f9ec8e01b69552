package layerfs

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerdName is the annotation in which containerd and nerdctl keep the full reference.
const containerdName = "io.containerd.image.name"

// maxIndex bounds index.json, in bytes.
const maxIndex = 64 << 20

func emptyIndex() []byte {
	data, _ := json.Marshal(newIndex())
	return data
}

func newIndex() ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
}

func parseIndex(data []byte) (ocispec.Index, error) {
	var idx ocispec.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return idx, fmt.Errorf("index.json: %w", err)
	}
	if idx.SchemaVersion != 2 {
		return idx, fmt.Errorf("index.json: schema version %d: %w", idx.SchemaVersion, ErrFormat)
	}
	if idx.MediaType != "" && idx.MediaType != ocispec.MediaTypeImageIndex {
		return idx, fmt.Errorf("index.json: media type %q: %w", idx.MediaType, ErrFormat)
	}
	for _, m := range idx.Manifests {
		if err := m.Digest.Validate(); err != nil {
			return idx, fmt.Errorf("index.json: digest %q: %w", string(m.Digest), err)
		}
		if m.Size < 0 {
			return idx, fmt.Errorf("index.json: %s: size %d: %w", m.Digest, m.Size, ErrFormat)
		}
	}
	if idx.Manifests == nil {
		idx.Manifests = []ocispec.Descriptor{}
	}
	return idx, nil
}

// refName is the name of an entry of the index. Other tools write org.opencontainers.image.ref.name, which need be a
// tag only; the full reference wins where containerd's annotation has it.
func refName(d ocispec.Descriptor) string {
	if n := d.Annotations[containerdName]; n != "" {
		return n
	}
	return d.Annotations[ocispec.AnnotationRefName]
}

// setRef gives the name to desc and takes it from whatever had it.
func setRef(idx *ocispec.Index, ref string, desc ocispec.Descriptor) {
	named := func(d ocispec.Descriptor) bool { return refName(d) == ref }
	at := slices.IndexFunc(idx.Manifests, named)
	if at >= 0 && (idx.Manifests[at].Digest != desc.Digest || slices.ContainsFunc(idx.Manifests[at+1:], named)) {
		dropRef(idx, ref)
		at = -1
	}
	// An entry without a name says no more than one with a name does.
	if removeEntries(idx, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest && refName(d) == "" }) && at >= 0 {
		at = slices.IndexFunc(idx.Manifests, named)
	}
	a := make(map[string]string, len(desc.Annotations)+2)
	for k, v := range desc.Annotations {
		a[k] = v
	}
	a[ocispec.AnnotationRefName] = ref
	a[containerdName] = ref
	desc.Annotations = a
	if at >= 0 {
		idx.Manifests[at] = desc
	} else {
		idx.Manifests = append(idx.Manifests, desc)
	}
}

// dropRef takes the name from what has it. What has no other name stays in the index without one.
func dropRef(idx *ocispec.Index, ref string) bool {
	found := false
	for i := 0; i < len(idx.Manifests); i++ {
		d := idx.Manifests[i]
		if refName(d) != ref {
			continue
		}
		found = true
		another := slices.ContainsFunc(idx.Manifests, func(o ocispec.Descriptor) bool { return o.Digest == d.Digest && refName(o) != ref })
		if another {
			idx.Manifests = slices.Delete(idx.Manifests, i, i+1)
			i--
			continue
		}
		a := make(map[string]string, len(d.Annotations))
		for k, v := range d.Annotations {
			if k != ocispec.AnnotationRefName && k != containerdName {
				a[k] = v
			}
		}
		idx.Manifests[i].Annotations = a
	}
	return found
}

// removeEntries removes entries and reports whether there were any.
func removeEntries(idx *ocispec.Index, remove func(ocispec.Descriptor) bool) bool {
	before := len(idx.Manifests)
	idx.Manifests = slices.DeleteFunc(idx.Manifests, remove)
	return len(idx.Manifests) != before
}
