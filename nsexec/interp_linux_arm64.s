#include "textflag.h"

// The interpreter of plans; see interp_linux_amd64.s for what it does and how a step is laid out.
//
//	R19  the current step      R20  the slots      R21  the first step      R22  mask

#define PARAMS 0x100000e8 // textBase + paramsOffset
#define ARG(bit, offset, reg, label) \
	MOVD offset(R19), reg \
	TBZ  $bit, R22, label \
	MOVD (R20)(reg<<3), reg \
label:

TEXT ·interp(SB), NOSPLIT|NOFRAME, $0-0
	MOVD $PARAMS, R0
	MOVD 0(R0), R20
	MOVD 8(R0), R21
	MOVD R21, R19

loop:
	MOVBU 1(R19), R22
	ARG(0, 16, R0, a0)
	ARG(1, 24, R1, a1)
	ARG(2, 32, R2, a2)
	ARG(3, 40, R3, a3)
	ARG(4, 48, R4, a4)
	ARG(5, 56, R5, a5)
	MOVBU 0(R19), R9
	MOVWU 4(R19), R10
	CBNZ  R9, load

	MOVD  R10, R8
	SVC
	MOVHU 2(R19), R10
	MOVD  R0, (R20)(R10<<3)
	CMN   $4095, R0
	BCC   next
	MOVD  R0, 0(R20)
	SUB   R21, R19, R9
	LSR   $6, R9, R9
	MOVD  R9, 8(R20)

jump:
	MOVWU 8(R19), R10
	ADD   R21, R10, R19
	B     loop

load:
	CMP  $1, R9
	BNE  store
	ADD  R1, R0, R0
	CMP  $4, R10
	BHI  load8
	BCC  load1
	MOVWU (R0), R0
	B    result
load8:
	MOVD (R0), R0
	B    result
load1:
	MOVBU (R0), R0
	B    result

store:
	CMP  $2, R9
	BNE  add
	ADD  R1, R0, R0
	CMP  $4, R10
	BHI  store8
	BCC  store1
	MOVW R2, (R0)
	B    next
store8:
	MOVD R2, (R0)
	B    next
store1:
	MOVB R2, (R0)
	B    next

add:
	CMP $3, R9
	BNE sub
	ADD R1, R0, R0
	B   result
sub:
	CMP $4, R9
	BNE and
	SUB R1, R0, R0
	B   result
and:
	CMP $5, R9
	BNE branch
	AND R1, R0, R0

result:
	MOVHU 2(R19), R10
	MOVD  R0, (R20)(R10<<3)
next:
	ADD $64, R19, R19
	B   loop

branch:
	CBZ R10, equal
	CMP $1, R10
	BEQ notequal
	CMP $2, R10
	BEQ below
	CMP $3, R10
	BEQ atleast
	CMP $4, R10
	BEQ less
	CMP R1, R0
	BGE jump
	B   next
equal:
	CMP R1, R0
	BEQ jump
	B   next
notequal:
	CMP R1, R0
	BNE jump
	B   next
below:
	CMP R1, R0
	BLO jump
	B   next
atleast:
	CMP R1, R0
	BHS jump
	B   next
less:
	CMP R1, R0
	BLT jump
	B   next

	// interpEnd
	WORD $0x631eacc0; WORD $0x6361726f; WORD $0x652e656c; WORD $0xacc0646e
	RET

// func interpAddr() unsafe.Pointer
TEXT ·interpAddr(SB), NOSPLIT, $0-8
	MOVD $·interp(SB), R0
	MOVD R0, ret+0(FP)
	RET
