package inflate

// Other input buffers than what Reset makes, for tests.
const SmallestInput = maxBlockHeader + 1

func (z *Reader) SetInput(buf []byte) { z.in = buf }
