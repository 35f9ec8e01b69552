//go:build linux

#include "textflag.h"

// func Call(nr uint32, a0, a1, a2 uint64) int32
TEXT ·Call(SB), NOSPLIT, $0-36
	MOVL nr+0(FP), AX
	MOVQ a0+8(FP), BX
	MOVQ a1+16(FP), CX
	MOVQ a2+24(FP), DX
	INT  $0x80
	MOVL AX, ret+32(FP)
	RET
