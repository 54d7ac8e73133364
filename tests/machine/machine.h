// A SIMT machine: 32 lanes to a warp, each with a program counter, that runs decoded PTX on host
// memory and watches every access.
//
//   ops.h         what each arithmetic operation computes: one line each
//   execute.c     an instruction, for the lanes of a warp that are at work
//   memory.c      loads, stores, atomics and matrices
//   sanitizers.c  findings: races, data that decides where the program goes
//   counters.c    sectors and wavefronts
//   warps.c       divergence, barriers, orders
//
// decode.py and program.py make instructions of PTX; native.py mirrors the structures up to "Launch".

#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;

#define FULL 0xffffffffu
#define SHARED_BASE 1024u // where shared memory starts in its window, as on sm_90
enum { WARP = 32 };

enum { ARITHMETIC, BRANCH, BARRIER, COLLECTIVE, MEMORY }; // kinds of instructions
enum { NO_SPACE, GLOBAL, SHARED };

// Registers are named by their offset in bytes: 32 lanes of `width` bytes each, a predicate is one
// word of 32 bits. o has the destinations, then the sources; of an access the address comes last.
typedef struct {
  s32 op, kind, space;
  s32 guard, guard_negated; // the predicate that lets lanes work, -1: none
  s32 leader;               // control may arrive here from elsewhere than the instruction before
  s32 sync;                 // register with the lanes that a collective instruction names, -1: none
  s32 meet;                 // of a branch: where the lanes that it parts meet again, -1: unknown
  s32 side, n_side;         // and if they only compute until then, which registers they assign; -1: more
  s32 to, from;             // how many destinations and sources there are
  s32 wide;                 // destinations have 64 bits and may point into memory
  s32 negated;              // a predicate among the sources is
  s32 how;                  // which comparison, rounding, boolean operator, atomic operation ...
  s32 n, size, width;       // vector length, bytes of an element in memory and in its register
  s32 to_bits, from_bits, to_width, from_width; // of conversions: of the values and the registers
  s32 to_signed, from_signed, saturate;
  s32 o[12];
  s64 imm; // target, offset of an address, table of lop3
} Ins;

typedef struct {
  const Ins *ins;
  s64 n_ins, regs_bytes, n_consts;
  const s32 *const_offset; // constants: where, and 8 bytes of value, and their width (1: predicate)
  const s64 *const_value;
  const s32 *const_width;
  const s32 *assigned; // registers, for Ins.side
  s32 tid[3], ctaid[3], ntid[3], nctaid[3], laneid, warpid; // special registers, -1: unused
  s32 shared_granule; // bytes of shared memory that are watched as one
} Program;

typedef struct {
  u64 count, threads; // warps that issued it, threads that executed it
  u64 requests, got;  // warps with a lane at work; 32-byte sectors, or wavefronts of shared memory
  u64 best, bytes;    // sectors or wavefronts of the best layout; bytes that lanes asked for
} Count;

typedef struct {
  s32 kind, pc, pc2, arg;            // pc2: of races; arg: whose pointer, from 1, 0: unknown
  s32 hazard, same, cta, thread;     // same: times that the value written was there already
  s32 cta2, thread2, landed, detail; // landed: argument in whose memory a stray address lies
  s64 count;
  u64 address;
} Finding;

// Shadows come in pages that are made when they are first touched: rows may be gigabytes apart.
enum { PAGE = 1024 };
typedef struct GlobalShadow GlobalShadow;
typedef struct { u64 lo, hi; u8 *written; GlobalShadow **shadow; s64 granule; } Alloc;
typedef struct { u64 view_lo, view_hi; s32 alloc, data; } Arg; // data: what is loaded taints

enum { FORWARD, BACKWARD, AHEAD, MIXED }; // orders of programs, and of warps between barriers

typedef struct {
  s32 grid[3], threads;
  s32 shared_bytes, n_args, n_allocs, n_params;
  const u8 *params;
  const s32 *param_arg; // by 8 bytes of the block: argument whose pointer it is, from 1, 0: none
  const Arg *args;
  const Alloc *allocs;
  s32 races, poison; // poison: byte that fills registers and shared memory
  s32 taint, order;
  u64 seed, approximate; // approximate: key by which approximations differ by an ulp, 0: they do not
  s64 budget;            // of warp instructions
  Count *counts;
  s32 *needed; // of each barrier a program, from 1, in which it alone orders two accesses; NULL: not asked
  Finding *findings;
  s32 max_findings, n_findings;
  s64 executed;
  s32 cta_from, cta_to; // programs to run, in grid order
} Launch;

enum {
  GLOBAL_BOUNDS, GLOBAL_VIEW, GLOBAL_MISALIGNED, GLOBAL_UNINIT, SHARED_BOUNDS, SHARED_MISALIGNED,
  SHARED_UNINIT, SHARED_RACE, GLOBAL_RACE, GRID_RACE, SHARED_WEAK, GLOBAL_WEAK, BARRIER_DIVERGENT,
  BARRIER_EXITED, BARRIER_DIFFERENT, WARP_MASK, DIVIDE_BY_ZERO, UNTRACKED, TRAP, BUDGET,
  DATA_BRANCH, DATA_GUARD, DATA_SHARED, DATA_GLOBAL, TOO_MANY
};
enum { NO_HAZARD, RAW, WAR, WAW };

enum {
#define X(name) OP_##name,
#include "names.h"
#undef X
  OP_COUNT
};

// ---- of the machine alone

typedef struct { u32 epoch, strong, weak; s32 pc, thread; } Access;

// What is known of a granule of memory: its last write, and up to three reads that decide whether
// a later write conflicts: the last, one of another thread of that warp, one of another warp.
typedef struct { Access write, read, same_warp, other_warp; } Shadow;
struct GlobalShadow {
  Shadow s;
  u32 launch;
  s32 w_cta, r_cta, w_pc, r_pc, w_thread, r_thread, atomic; // programs run one after another
};

// The barrier that ended the last epochs, all of them since that one.
typedef struct { s32 pc; u32 since; } Last;

typedef struct { s32 pc; u32 lanes; } Meeting;
enum { MEETINGS = 256 };

typedef struct {
  s32 number;
  u8 *R; // registers
  u8 *P; // for each 64-bit one, at its offset: by lane the argument that it points into, 0: none
  u8 *T; // for each, at its offset: one word, the lanes whose value comes from data
  s32 pc[WARP], barrier, n_meetings;
  // Lanes: there at the start; not exited; at a barrier; at an instruction that needs others.
  u32 present, alive, waiting, parked;
  u32 strong, weak; // epochs of the warp: bar.warp.sync orders memory, a shuffle only execution
  Last ordered;     // by which bar.warp.sync
  Meeting meetings[MEETINGS];
  u32 shaded;      // lanes whose way data has decided, which only computes
  s32 until[WARP]; // where that way ends
} Warp;

typedef struct {
  const Program *p;
  Launch *l;
  Warp *warps;
  int n_warps;
  u8 *smem, *written, *data; // shared memory; which bytes were written; which come from data
  Shadow *shadow;
  u32 epoch, launch;
  Last ordered;
  s32 cta, ctaid[3];
  u64 random;
} Machine;

// An instruction and the lanes of a warp that execute it.
typedef struct { Machine *m; Warp *w; const Ins *i; int pc; u32 x; } Step;

#define HAS(lanes, l) ((lanes) >> (l) & 1)
#define EACH(l, lanes) for (int l = 0; l < WARP; l++) if (HAS(lanes, l))
static inline void *reg(const Warp *w, int o) { return w->R + o; }
static inline u32 *taint(const Warp *w, int o) { return (u32 *)(w->T + o); }
static inline int thread_of(const Warp *w, int lane) { return WARP * w->number + lane; }
static inline void order(Last *last, s32 pc, u32 epoch) {
  if (last->pc != pc) *last = (Last){pc, epoch};
}
static inline int first(u32 lanes) { return lanes ? __builtin_ctz(lanes) : 0; }

// sanitizers.c
void report(Machine *m, Finding f);
#define REPORT(s, ...) report((s)->m, (Finding){.pc = (s)->pc, __VA_ARGS__})
void watch(const Step *s, Shadow *shadow, int write, int lane, const Finding *f);
void watch_grid(const Step *s, GlobalShadow *g, int write, int atomic, int lane, const Finding *f);
GlobalShadow *shadow_at(const Alloc *a, u64 granule);
void watch_data(const Step *s, u32 here);
void follow(const Step *s, u32 here);

// counters.c
void count_sectors(Count *c, const u64 *a, u32 x, int bytes);
void count_wavefronts(Count *c, const u64 *a, u32 x, int bytes);

// memory.c
void access_memory(const Step *s, int store);
void access_matrix(const Step *s, int store);
void access_atomic(const Step *s);

// execute.c
void execute(const Step *s);
