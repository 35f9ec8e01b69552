package coracle

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A PlatformError says that an image has nothing for the platform that is wanted. It matches fs.ErrNotExist and
// errors.ErrUnsupported.
type PlatformError struct {
	// Want is the platform asked for, such as "linux/arm64".
	Want string
	// Have are the platforms that the image has.
	Have []string
}

// Error names what is wanted and what is there.
func (e *PlatformError) Error() string {
	if len(e.Have) == 0 {
		return "no image for " + e.Want
	}
	return fmt.Sprintf("no image for %s, only for %s", e.Want, quoteShort(strings.Join(e.Have, ", ")))
}

// Is makes the error match fs.ErrNotExist and errors.ErrUnsupported.
func (e *PlatformError) Is(target error) bool {
	return target == fs.ErrNotExist || target == errors.ErrUnsupported
}

// parsePlatform reads "os/arch" and "os/arch/variant", or an architecture alone; empty means the host's.
func parsePlatform(s string) (ocispec.Platform, error) {
	p := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if s == "" {
		return normalPlatform(p), nil
	}
	parts := strings.Split(s, "/")
	switch len(parts) {
	case 1:
		p.Architecture = parts[0]
	case 2:
		p.OS, p.Architecture = parts[0], parts[1]
	case 3:
		p.OS, p.Architecture, p.Variant = parts[0], parts[1], parts[2]
	}
	p = normalPlatform(p)
	if len(parts) > 3 || slices.Contains(parts, "") {
		return p, fmt.Errorf("platform %s: write it as \"linux/amd64\" or \"linux/arm/v7\": %w", quoteShort(s), ErrInvalid)
	}
	if p.OS != "linux" {
		return p, fmt.Errorf("platform %s: %w", quoteShort(s), &UnsupportedError{Feature: "an image for " + quoteShort(p.OS), Fix: "choose a platform of linux"})
	}
	return p, nil
}

// normalPlatform writes the same platform the same way, with the names that Go has and the variants left out that are
// the default.
func normalPlatform(p ocispec.Platform) ocispec.Platform {
	p = ocispec.Platform{OS: strings.ToLower(p.OS), Architecture: strings.ToLower(p.Architecture), Variant: strings.ToLower(p.Variant)}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386":
		p.Architecture, p.Variant = "386", ""
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch p.Architecture {
	case "arm64":
		if p.Variant == "8" || p.Variant == "v8" || p.Variant == "v8.0" {
			p.Variant = ""
		}
	case "arm":
		if p.Variant == "" {
			p.Variant = "v7"
		} else if p.Variant[0] != 'v' {
			p.Variant = "v" + p.Variant
		}
	case "amd64":
		if p.Variant == "v1" {
			p.Variant = ""
		}
	}
	return p
}

// platformString is the usual text form.
func platformString(p ocispec.Platform) string {
	p = normalPlatform(p)
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// compatible lists what a machine of platform p runs, best first: itself, older variants of the same, and the 32-bit
// sibling of a 64-bit one, as containerd does.
func compatible(p ocispec.Platform) []ocispec.Platform {
	p = normalPlatform(p)
	list := []ocispec.Platform{p}
	add := func(arch, variant string) {
		q := normalPlatform(ocispec.Platform{OS: p.OS, Architecture: arch, Variant: variant})
		if !slices.ContainsFunc(list, func(o ocispec.Platform) bool { return samePlatform(o, q) }) {
			list = append(list, q)
		}
	}
	older := func(arch, variant string, lowest int) {
		n, err := strconv.Atoi(strings.TrimPrefix(variant, "v"))
		for n--; err == nil && n >= lowest && n < 100; n-- {
			add(arch, "v"+strconv.Itoa(n))
		}
	}
	switch p.Architecture {
	case "amd64":
		older("amd64", p.Variant, 1)
		add("386", "")
	case "arm":
		older("arm", p.Variant, 5)
	case "arm64":
		if major, _, _ := strings.Cut(p.Variant, "."); major != "" {
			add("arm64", "")
		}
		add("arm", "v8")
		older("arm", "v8", 5)
	}
	return list
}

func samePlatform(a, b ocispec.Platform) bool {
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant
}

// choosePlatform picks the entry of an index for a platform; of several equal ones the first. Attestations (platform
// unknown/unknown) are no images.
func choosePlatform(idx *ocispec.Index, want ocispec.Platform) (ocispec.Descriptor, error) {
	best, rank := ocispec.Descriptor{}, -1
	order := compatible(want)
	var have []string
	for _, m := range idx.Manifests {
		if m.Platform == nil {
			// Nothing is said: the last resort, for the image's configuration to decide.
			if rank < 0 && m.ArtifactType == "" && (m.MediaType == ocispec.MediaTypeImageManifest || m.MediaType == dockerManifest) {
				best, rank = m, len(order)
			}
			continue
		}
		if m.Platform.OS == "unknown" || m.Platform.Architecture == "unknown" {
			continue
		}
		if s := platformString(*m.Platform); !slices.Contains(have, s) && len(have) < 20 {
			have = append(have, s)
		}
		q := normalPlatform(*m.Platform)
		r := slices.IndexFunc(order, func(o ocispec.Platform) bool { return samePlatform(o, q) })
		if r >= 0 && (rank < 0 || r < rank) {
			best, rank = m, r
		}
	}
	if rank < 0 {
		return ocispec.Descriptor{}, &PlatformError{Want: platformString(want), Have: have}
	}
	switch best.MediaType {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return best, nil
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		return best, &MediaTypeError{Part: "manifest", MediaType: best.MediaType, Reason: "an index within an index is not supported: name the inner one by its digest"}
	}
	return best, &MediaTypeError{Part: "manifest", MediaType: best.MediaType, Reason: "the index names it as the image for " + platformString(want)}
}

// runsOn says whether an image's own configuration allows a platform. One that says nothing allows all.
func runsOn(c *ocispec.Image, want ocispec.Platform) error {
	if c.OS == "" && c.Architecture == "" {
		return nil
	}
	have := c.Platform
	if have.OS == "" {
		have.OS = "linux"
	}
	q := normalPlatform(have)
	for _, o := range compatible(want) {
		// Configurations often leave the variant out, or name one that the index does not.
		if o.OS == q.OS && o.Architecture == q.Architecture && (samePlatform(o, q) || c.Variant == "" || want.Variant == "") {
			return nil
		}
	}
	return &PlatformError{Want: platformString(want), Have: []string{platformString(have)}}
}
