// Loads, stores, atomics and matrices: each lane's access is located, checked, watched and done.

#include "machine.h"

// memcpy of few bytes, of a number that is known when it runs.
static inline void copy(void *to, const void *from, int bytes) {
  switch (bytes) {
    case 1: memcpy(to, from, 1); break;
    case 2: memcpy(to, from, 2); break;
    case 4: memcpy(to, from, 4); break;
    case 8: memcpy(to, from, 8); break;
    case 16: memcpy(to, from, 16); break;
    default: memcpy(to, from, bytes);
  }
}
static inline int all(const u8 *marks, int n) {
  for (int k = 0; k < n; k++)
    if (!marks[k]) return 0;
  return 1;
}

// Where an access goes; shared memory has no allocation.
typedef struct {
  const Alloc *alloc;
  u8 *p, *written; // on the host; marks of the bytes that were written, NULL where all count so
  u64 at, address; // offset in the allocation or in shared memory; as the program has it
  int arg, lane;
} Place;

static const Alloc *alloc_of(const Launch *l, int arg) {
  int k = arg > 0 && arg <= l->n_args ? l->args[arg - 1].alloc : -1;
  return k < 0 ? NULL : &l->allocs[k];
}
static int inside(const Alloc *x, u64 a, int bytes) { return x && a >= x->lo && a + bytes <= x->hi; }

static int locate_global(const Step *s, Place *at, int bytes) {
  const Launch *l = s->m->l;
  int thread = thread_of(s->w, at->lane), arg = at->arg;
  u64 a = at->address;
  at->alloc = alloc_of(l, arg);
  if (!inside(at->alloc, a, bytes)) {
    int landed = 0;
    for (int k = 1; k <= l->n_args && !landed; k++) landed = inside(alloc_of(l, k), a, bytes) ? k : 0;
    if (at->alloc || !landed || arg) {
      REPORT(s, .kind = GLOBAL_BOUNDS, .arg = arg, .address = a, .thread = thread, .landed = landed);
      return 0;
    }
    REPORT(s, .kind = UNTRACKED, .arg = landed, .address = a, .thread = thread, .landed = landed);
    at->alloc = alloc_of(l, landed);
  } else if (a < l->args[arg - 1].view_lo || a + bytes > l->args[arg - 1].view_hi) {
    REPORT(s, .kind = GLOBAL_VIEW, .arg = arg, .address = a, .thread = thread, .landed = arg);
  }
  at->at = a - at->alloc->lo;
  at->p = (u8 *)a;
  at->written = at->alloc->written ? at->alloc->written + at->at : NULL;
  return 1;
}

static int locate_shared(const Step *s, Place *at, int bytes) {
  u64 end = SHARED_BASE + (u64)s->m->l->shared_bytes;
  if (at->address < SHARED_BASE || at->address + bytes > end) {
    REPORT(s, .kind = SHARED_BOUNDS, .address = at->address, .thread = thread_of(s->w, at->lane));
    return 0;
  }
  at->at = at->address - SHARED_BASE;
  at->p = s->m->smem + at->at;
  at->written = s->m->written + at->at;
  return 1;
}

// Returns whether a lane's access may be done.
static int locate(const Step *s, Place *at, int lane, u64 address, int arg, int bytes) {
  int space = s->i->space;
  *at = (Place){.address = address, .arg = arg, .lane = lane};
  if (address % bytes) {
    int kind = space == GLOBAL ? GLOBAL_MISALIGNED : SHARED_MISALIGNED;
    REPORT(s, .kind = kind, .arg = arg, .address = address, .thread = thread_of(s->w, lane));
    return 0;
  }
  return space == GLOBAL ? locate_global(s, at, bytes) : locate_shared(s, at, bytes);
}

// Tells the sanitizers of an access that is done.
static void touch(const Step *s, const Place *at, int bytes, int write, int same, int atomic) {
  Machine *m = s->m;
  int space = s->i->space;
  if (write && at->written) memset(at->written, 1, bytes);
  if (!write && at->written && !all(at->written, bytes)) {
    int kind = space == GLOBAL ? GLOBAL_UNINIT : SHARED_UNINIT;
    REPORT(s, .kind = kind, .arg = at->arg, .address = at->address, .thread = thread_of(s->w, at->lane));
  }
  if (!m->l->races || (at->alloc && !at->alloc->shadow)) return;
  u64 granule = at->alloc ? (u64)at->alloc->granule : (u64)m->p->shared_granule;
  const Finding f = {.same = same, .address = at->address, .arg = at->arg, .detail = space};
  for (u64 g = at->at / granule; g <= (at->at + bytes - 1) / granule; g++) {
    GlobalShadow *global = at->alloc ? shadow_at(at->alloc, g) : NULL;
    // Atomics of one program do not race with each other.
    if (!atomic) watch(s, global ? &global->s : &m->shadow[g], write, at->lane, &f);
    if (global) watch_grid(s, global, write, atomic, at->lane, &f);
  }
}

static int is_data(const Step *s, const Place *at) { return at->arg < 1 || s->m->l->args[at->arg - 1].data; }

static void addresses(const Step *s, u64 *a) {
  const Ins *i = s->i;
  int o = i->o[i->to + i->from - 1];
  const u32 *narrow = reg(s->w, o);
  const u64 *wide = reg(s->w, o);
  for (int l = 0; l < WARP; l++) a[l] = i->space == GLOBAL ? wide[l] + i->imm : narrow[l] + (u32)i->imm;
}
static int argument(const Step *s, int lane) {
  return s->i->space == GLOBAL ? s->w->P[s->i->o[s->i->to + s->i->from - 1] + lane] : 0;
}
static void count(const Step *s, const u64 *a, int bytes) {
  Count *c = &s->m->l->counts[s->pc];
  if (s->i->space == GLOBAL) count_sectors(c, a, s->x, bytes);
  else count_wavefronts(c, a, s->x, bytes);
}

// A lane's element of a register that may be wider than it.
static void extend(const Ins *i, u8 *to, const u8 *from) {
  copy(to, from, i->size < i->width ? i->size : i->width);
  if (i->width > i->size) memset(to + i->size, i->to_signed && from[i->size - 1] >> 7 ? 255 : 0, i->width - i->size);
}

void access_memory(const Step *s, int store) {
  const Ins *i = s->i;
  const Warp *w = s->w;
  const int bytes = i->n * i->size, watched = s->m->l->taint;
  u64 a[WARP];
  addresses(s, a);
  count(s, a, bytes);
  EACH(l, s->x) {
    u8 value[64];
    Place at;
    if (store)
      for (int v = 0; v < i->n; v++) copy(value + v * i->size, (u8 *)reg(w, i->o[v]) + i->width * l, i->size);
    int done = locate(s, &at, l, a[l], argument(s, l), bytes);
    if (done) {
      touch(s, &at, bytes, store, store && !memcmp(value, at.p, bytes), 0);
      copy(store ? at.p : value, store ? value : at.p, bytes);
    } else if (!store) {
      memset(value, 0, bytes);
    }
    if (!store)
      for (int v = 0; v < i->n; v++) extend(i, (u8 *)reg(w, i->o[v]) + i->width * l, value + v * i->size);
    if (!watched) continue;
    u8 *marks = done && i->space == SHARED ? s->m->data + at.at : NULL;
    for (int v = 0; v < i->n; v++) {
      u32 *of = taint(w, i->o[v]);
      if (store && marks) memset(marks + v * i->size, HAS(*of, l), i->size);
      if (store) continue;
      int data = marks ? memchr(marks + v * i->size, 1, i->size) != NULL : done && is_data(s, &at);
      *of = (*of & ~(1u << l)) | (u32)data << l;
    }
  }
}

// ldmatrix and stmatrix .m8n8.b16: matrix v has its eight rows of 16 bytes at the addresses of lanes
// 8v to 8v + 7; lane k holds elements 2 (k % 4) and + 1 of row k / 4, or (.trans) of column k / 4.
void access_matrix(const Step *s, int store) {
  const Ins *i = s->i;
  u64 a[WARP], row[WARP];
  addresses(s, a);
  for (int v = 0; v < i->n; v++) {
    u16 value[8][8], data[8][8];
    u32 *r = reg(s->w, i->o[v]), *of = taint(s->w, i->o[v]);
    Count part = {0}, *c = &s->m->l->counts[s->pc];
    memcpy(row, a + 8 * v, 8 * sizeof *row);
    count_wavefronts(&part, row, 0xff, 16);
    c->requests += !v, c->got += part.got, c->best += part.best, c->bytes += part.bytes;
#define ELEMENT(of, k, h) (*(i->how ? &of[2 * (k % 4) + h][k / 4] : &of[k / 4][2 * (k % 4) + h]))
    if (store)
      for (int k = 0; k < WARP; k++)
        for (int h = 0; h < 2; h++) ELEMENT(value, k, h) = r[k] >> 16 * h, ELEMENT(data, k, h) = HAS(*of, k) * 0x101;
    for (int k = 0; k < 8; k++) {
      Place at;
      if (!locate(s, &at, 8 * v + k, row[k], 0, 16)) {
        if (!store) memset(value[k], 0, 16), memset(data[k], 0, 16);
        continue;
      }
      touch(s, &at, 16, store, store && !memcmp(value[k], at.p, 16), 0);
      u8 *marks = s->m->data + at.at;
      memcpy(store ? at.p : (u8 *)value[k], store ? (u8 *)value[k] : at.p, 16);
      memcpy(store ? marks : (u8 *)data[k], store ? (u8 *)data[k] : marks, 16);
    }
    if (store) continue;
    u32 lanes = 0;
    for (int k = 0; k < WARP; k++) {
      r[k] = ELEMENT(value, k, 0) | (u32)ELEMENT(value, k, 1) << 16;
      lanes |= (u32)((ELEMENT(data, k, 0) | ELEMENT(data, k, 1)) != 0) << k;
    }
    *of = lanes;
  }
}

// Atomic operations, in the order of decode.ATOMIC.
enum { ADD, ADD_F32, ADD_F64, AND, OR, XOR, EXCHANGE, MIN_S, MAX_S, MIN_U, MAX_U, CAS };

static u64 combined(int how, u64 old, u64 b, u64 c, int size) {
  s64 so = size == 4 ? (s32)old : (s64)old, sb = size == 4 ? (s32)b : (s64)b;
  union { u64 u; f32 f; f64 d; } x = {old}, y = {b};
  switch (how) {
    case ADD: return old + b;
    case ADD_F32: x.f += y.f; return x.u;
    case ADD_F64: x.d += y.d; return x.u;
    case AND: return old & b;
    case OR: return old | b;
    case XOR: return old ^ b;
    case EXCHANGE: return b;
    case MIN_S: return so < sb ? old : b;
    case MAX_S: return so > sb ? old : b;
    case MIN_U: return old < b ? old : b;
    case MAX_U: return old > b ? old : b;
    default: return old == b ? c : old;
  }
}

// o: old value, operands, address. Lanes one after another; what they find depends on the order.
void access_atomic(const Step *s) {
  const Ins *i = s->i;
  u64 a[WARP];
  addresses(s, a);
  count(s, a, i->size);
  EACH(l, s->x) {
    u64 old = 0, operand[2] = {0};
    Place at;
    if (!locate(s, &at, l, a[l], argument(s, l), i->size)) continue;
    touch(s, &at, i->size, 1, 0, 1);
    memcpy(&old, at.p, i->size);
    for (int k = 0; k < i->from - 1; k++) memcpy(&operand[k], (u8 *)reg(s->w, i->o[1 + k]) + i->size * l, i->size);
    u64 new = combined(i->how, old, operand[0], operand[1], i->size);
    memcpy(at.p, &new, i->size);
    memcpy((u8 *)reg(s->w, i->o[0]) + i->size * l, &old, i->size);
    if (s->m->l->taint && i->space == SHARED) memset(s->m->data + at.at, 1, i->size);
  }
  *taint(s->w, i->o[0]) |= s->x;
}
