#include "textflag.h"

// The interpreter of plans. It is not called from Go: Go copies it into executables of its own (encode_linux.go
// describes their layout), where it is the entry point and runs without a stack.
//
//	R12  the current step      R13  the slots      R14  the first step
//
// A step is 64 bytes: opcode (1), mask of arguments that are slots (1), destination slot (2), system call number, width
// or condition (4), target as an offset from the first step (4), nothing (4), six arguments (8 each).

#define PARAMS 0x100000e8 // textBase + paramsOffset
#define ARG(bit, offset, reg, label) \
	MOVQ  offset(R12), reg \
	TESTL $bit, BX \
	JEQ   label \
	MOVQ  (R13)(reg*8), reg \
label:

TEXT ·interp(SB), NOSPLIT|NOFRAME, $0-0
	MOVL $PARAMS, AX
	MOVQ 0(AX), R13
	MOVQ 8(AX), R14
	MOVQ R14, R12

loop:
	MOVBLZX 1(R12), BX
	ARG(1, 16, DI, a0)
	ARG(2, 24, SI, a1)
	ARG(4, 32, DX, a2)
	ARG(8, 40, R10, a3)
	ARG(16, 48, R8, a4)
	ARG(32, 56, R9, a5)
	MOVBLZX 0(R12), AX
	MOVL    4(R12), CX
	TESTL   AX, AX
	JNE     load

	// system call; RCX and R11 are lost
	MOVL CX, AX
	SYSCALL
	MOVWLZX 2(R12), CX
	MOVQ    AX, (R13)(CX*8)
	CMPQ    AX, $0xfffffffffffff001
	JCS     next
	MOVQ    AX, 0(R13)
	MOVQ    R12, BX
	SUBQ    R14, BX
	SHRQ    $6, BX
	MOVQ    BX, 8(R13)

jump:
	MOVL 8(R12), CX
	LEAQ (R14)(CX*1), R12
	JMP  loop

load:
	CMPL AX, $1
	JNE  store
	ADDQ SI, DI
	CMPL CX, $4
	JHI  load8
	JCS  load1
	MOVL (DI), AX
	JMP  result
load8:
	MOVQ (DI), AX
	JMP  result
load1:
	MOVBLZX (DI), AX
	JMP     result

store:
	CMPL AX, $2
	JNE  add
	ADDQ SI, DI
	CMPL CX, $4
	JHI  store8
	JCS  store1
	MOVL DX, (DI)
	JMP  next
store8:
	MOVQ DX, (DI)
	JMP  next
store1:
	MOVB DX, (DI)
	JMP  next

add:
	CMPL AX, $3
	JNE  sub
	LEAQ (DI)(SI*1), AX
	JMP  result
sub:
	CMPL AX, $4
	JNE  and
	MOVQ DI, AX
	SUBQ SI, AX
	JMP  result
and:
	CMPL AX, $5
	JNE  branch
	MOVQ DI, AX
	ANDQ SI, AX

result:
	MOVWLZX 2(R12), CX
	MOVQ    AX, (R13)(CX*8)
next:
	ADDQ $64, R12
	JMP  loop

branch:
	SUBL $1, CX
	JCS  equal
	JEQ  notequal
	SUBL $2, CX
	JCS  below
	JEQ  atleast
	SUBL $2, CX
	JCS  less
	CMPQ DI, SI
	JGE  jump
	JMP  next
equal:
	CMPQ DI, SI
	JEQ  jump
	JMP  next
notequal:
	CMPQ DI, SI
	JNE  jump
	JMP  next
below:
	CMPQ DI, SI
	JCS  jump
	JMP  next
atleast:
	CMPQ DI, SI
	JCC  jump
	JMP  next
less:
	CMPQ DI, SI
	JLT  jump
	JMP  next

	// interpEnd
	BYTE $0xc0; BYTE $0xac; BYTE $0x1e; BYTE $'c'; BYTE $'o'; BYTE $'r'; BYTE $'a'; BYTE $'c'; BYTE $'l'; BYTE $'e'
	BYTE $'.'; BYTE $'e'; BYTE $'n'; BYTE $'d'; BYTE $0xc0; BYTE $0xac
	RET

// func interpAddr() unsafe.Pointer
TEXT ·interpAddr(SB), NOSPLIT, $0-8
	LEAQ ·interp(SB), AX
	MOVQ AX, ret+0(FP)
	RET
