package coracle_test

import (
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-dev/coracle/internal/registrytest"
)

// modelTags is how many tags the registry has.
const modelTags = 4

// modelImages are the images that the registry serves: they share layers, in different orders and upon different ones.
func modelImages() []*registrytest.Image {
	base := registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, registrytest.Tar(modelPrograms("registry")...))
	var layers []registrytest.Layer
	for i, mediaType := range []string{ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayer} {
		layers = append(layers, registrytest.RandomLayer(uint64(i+1), mediaType, 20_000<<i))
	}
	// No entry says what "dir" is: this layer needs those below it.
	depends := registrytest.NewLayer(ocispec.MediaTypeImageLayerGzip, registrytest.Tar(registrytest.File{Name: "dir/depends", Content: "on what is below"}))
	images := []*registrytest.Image{
		registrytest.NewImage(base, layers[0]),
		registrytest.NewImage(base, layers[1], layers[0]),
		registrytest.NewImage(base, layers[0], depends),
		registrytest.NewImage(base, layers[2], depends, layers[1]),
		registrytest.NewImage(base),
		registrytest.NewImage(base, layers[0]), // of another configuration
	}
	images[5].Config.Config.Labels = map[string]string{"model": "yes"}
	return images
}

// modelPrograms are the files that every image of the model has: two programs, and what tells the images apart.
func modelPrograms(name string) []registrytest.File {
	return []registrytest.File{
		{Name: "./"}, {Name: "dir/"}, {Name: "dir/name", Content: name},
		{Name: "exit", Mode: 0o755, Content: string(exitProgram(modelExit, false))},
		{Name: "pause", Mode: 0o755, Content: string(exitProgram(0, true))},
	}
}

// modelExit is the exit code of /exit.
const modelExit = 7

// exitProgram is an ELF executable of some 150 bytes that waits for a signal, if it is to, and exits. The tool of the
// other tests is megabytes, and images are unpacked and compared here by the thousand.
func exitProgram(code byte, pause bool) []byte {
	var text []byte
	machine := uint16(0)
	switch {
	case runtime.GOARCH == "amd64":
		machine = 62
		if pause {
			text = append(text, 0xb8, 34, 0, 0, 0, 0x0f, 0x05) // mov eax, SYS_pause; syscall
		}
		text = append(text, 0xbf, code, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05) // mov edi, code; mov eax, SYS_exit; syscall
	case runtime.GOARCH == "arm64":
		machine = 183
		word := func(w uint32) { text = append(text, byte(w), byte(w>>8), byte(w>>16), byte(w>>24)) }
		mov := func(register, value uint32) { word(0xd2800000 | value<<5 | register) } // movz
		if pause {
			for r := range uint32(4) {
				mov(r, 0)
			}
			mov(4, 8)
			mov(8, 73) // ppoll of nothing, for ever
			word(0xd4000001)
		}
		mov(0, uint32(code))
		mov(8, 93)
		word(0xd4000001) // svc #0
	default:
		return nil
	}
	const base, header = 0x400000, 64 + 56
	le := func(b []byte, n int, v uint64) []byte {
		for range n {
			b, v = append(b, byte(v)), v>>8
		}
		return b
	}
	b := append([]byte("\x7fELF"), 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le(b, 2, 2) // ET_EXEC
	b = le(b, 2, uint64(machine))
	b = le(b, 4, 1)
	b = le(b, 8, base+header) // entry
	b = le(b, 8, 64)          // program headers
	b = le(b, 8, 0)
	b = le(b, 4, 0)
	for _, v := range []uint64{64, 56, 1, 64, 0, 0} {
		b = le(b, 2, v)
	}
	b = le(b, 4, 1) // PT_LOAD
	b = le(b, 4, 5) // readable, executable
	for _, v := range []uint64{0, base, base, uint64(header + len(text)), uint64(header + len(text)), 0x1000} {
		b = le(b, 8, v)
	}
	return append(b, text...)
}
