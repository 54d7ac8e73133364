// One instruction, for the lanes of a warp that are at work.

#include "machine.h"
#include <math.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
enum { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, ISNAN }; // comparisons
enum { TO_NEAREST, TO_ZERO, DOWN, UP };                                    // roundings
enum { ALONE, AND, OR, XOR };                                              // setp's combinations

// ---- values

static inline f32 u32_f32(u32 u) { f32 f; memcpy(&f, &u, 4); return f; }
static inline u32 f32_u32(f32 f) { u32 u; memcpy(&u, &f, 4); return u; }
static inline f64 u64_f64(u64 u) { f64 f; memcpy(&f, &u, 8); return f; }
static inline u64 f64_u64(f64 f) { u64 u; memcpy(&u, &f, 8); return u; }

// The only not-a-number that float32 arithmetic makes on NVIDIA's GPUs.
static inline f32 canonical(f32 x) { return x == x ? x : u32_f32(0x7fffffff); }
static inline f32 flushed(f32 x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

#define EXTREMES(T, U) \
  static inline T lesser_##T(T a, T b) { \
    return a != a ? b : b != b ? a : a == b ? U##_##T(T##_##U(a) | T##_##U(b)) : MIN(a, b); \
  } \
  static inline T greater_##T(T a, T b) { \
    return a != a ? b : b != b ? a : a == b ? U##_##T(T##_##U(a) & T##_##U(b)) : MAX(a, b); \
  }
EXTREMES(f32, u32)
EXTREMES(f64, u64)

static inline f32 half_f32(u16 h) {
  u32 sign = (h & 0x8000u) << 16, body = h & 0x7fff;
  if (body < 0x400) return u32_f32(sign | f32_u32((f32)body * 0x1p-24f));
  return u32_f32(sign | ((body << 13) + ((body < 0x7c00 ? 112u : 224u) << 23)));
}
static inline u16 f32_half(f32 f) {
  u32 sign = f32_u32(f) >> 16 & 0x8000, body = f32_u32(f) & 0x7fffffff;
  if (f != f) return 0x7fff;
  if (body >= 0x477ff000) return sign | 0x7c00; // 65520 and more
  if (body < 0x38800000) return sign | (u32)nearbyintf(u32_f32(body) * 0x1p24f);
  return sign | (body + 0xfff + (body >> 13 & 1) - (112u << 23)) >> 13;
}
static inline f32 bf16_f32(u16 h) { return u32_f32((u32)h << 16); }
static inline u16 f32_bf16(f32 f) {
  u32 u = f32_u32(f);
  return f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
// To round this to 16 bits is to round the double.
static f32 rounded_to_odd(f64 x) {
  f32 f = (f32)x;
  if (x != x || (f64)f == x) return f;
  u32 u = f32_u32(f);
  if (fabs((f64)f) > fabs(x)) u--; // toward zero, from infinity to the largest too
  return u32_f32(u | 1);
}
static f64 rounded(f64 x, int how) {
  return how == TO_NEAREST ? nearbyint(x) : how == TO_ZERO ? trunc(x) : how == DOWN ? floor(x) : ceil(x);
}
// The upper 32 bits of a reciprocal that is good to 20 bits; subnormal numbers count as 0.
static u64 gross_reciprocal(f64 x) {
  f64 r = 1 / (fabs(x) < 0x1p-1022 ? copysign(0, x) : x);
  if (r != r) return 0x7fffffffull << 32;
  return f64_u64(fabs(r) < 0x1p-1022 ? copysign(0, r) : r) & ~0xffffffffull;
}
// An approximation is, as the key says, one or the other of the two numbers around the exact value.
static f32 approximated(f64 value, f64 a, f64 b, u64 key) {
  f32 nearest = (f32)value;
  if (!key || !isnormal(nearest) || nearest == value) return nearest;
  u64 h = (f64_u64(a) * 0x9e3779b97f4a7c15ull ^ f64_u64(b) ^ key) * 0xbf58476d1ce4e5b9ull;
  return h >> 63 ? nearest : nextafterf(nearest, value > nearest ? INFINITY : -INFINITY);
}

static inline s64 extended(u64 v, int bits, int is_signed) {
  if (bits == 64) return (s64)v;
  v &= (1ull << bits) - 1;
  return is_signed && v >> (bits - 1) ? (s64)(v | ~0ull << bits) : (s64)v;
}
// With saturation. Not a number is 0, but 1 << (bits - 1) where source or destination have 64 bits.
static u64 float_to_int(f64 x, int how, int bits, int is_signed, int wide_source) {
  if (x != x) return wide_source || bits == 64 ? 1ull << (bits - 1) : 0;
  x = rounded(x, how);
  if (is_signed) {
    f64 top = ldexp(1, bits - 1);
    if (x >= top) return (1ull << (bits - 1)) - 1;
    if (x < -top) return -1ull << (bits - 1);
    return (u64)(s64)x;
  }
  if (x < 0) return 0;
  if (x >= ldexp(1, bits)) return bits == 64 ? ~0ull : (1ull << bits) - 1;
  return (u64)x;
}
static s64 int_to_int(const Ins *i, u64 v) {
  s64 e = extended(v, i->from_bits, i->from_signed);
  if (i->saturate) {
    __int128 x = i->from_signed ? (__int128)e : (__int128)(u64)e, one = 1;
    __int128 low = i->to_signed ? -(one << (i->to_bits - 1)) : 0, high = (one << (i->to_bits - i->to_signed)) - 1;
    e = (s64)(x < low ? low : x > high ? high : x);
  }
  return extended((u64)e, i->to_bits, i->to_signed);
}

#define JOINED(low, high) ((u64)(high) << 32 | (low))
static u64 extracted(u64 a, u32 at, u32 count, u32 bits, int is_signed) {
  at &= 255, count &= 255;
  if (!count) return 0;
  u64 sign = is_signed && a >> MIN(at + count - 1, bits - 1) & 1 ? ~0ull : 0;
  if (at >= bits) return sign;
  u32 have = MIN(count, bits - at);
  u64 mask = have == 64 ? ~0ull : (1ull << have) - 1;
  return (a >> at & mask) | (sign & ~mask);
}
static u64 inserted(u64 a, u64 b, u32 at, u32 count, u32 bits) {
  at &= 255, count &= 255;
  u64 mask = count > 63 ? ~0ull : (1ull << count) - 1;
  return at >= bits ? b : (b & ~(mask << at)) | (a & mask) << at;
}
static u32 permuted(u32 a, u32 b, u32 selector) {
  u32 r = 0;
  for (int k = 0; k < 4; k++) {
    u32 s = selector >> 4 * k & 15, byte = JOINED(a, b) >> 8 * (s & 7) & 255;
    if (s & 8) byte = byte >> 7 ? 255 : 0;
    r |= byte << 8 * k;
  }
  return r;
}
static u32 by_table(u32 a, u32 b, u32 c, int table) {
  u32 r = 0;
  for (int k = 0; k < 8; k++)
    if (table >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  return r;
}
static u64 reversed(u64 a) {
  u64 r = 0;
  for (int k = 0; k < 64; k++) r |= (a >> k & 1) << (63 - k);
  return r;
}

static inline int compared(int how, int less, int equal, int unordered) {
  switch (how) {
    case EQ: return equal;
    case NE: return !equal && !unordered;
    case LT: return less;
    case LE: return less || equal;
    case GT: return !less && !equal && !unordered;
    case GE: return !less && !unordered;
    case EQU: return equal || unordered;
    case NEU: return !equal;
    case LTU: return less || unordered;
    case LEU: return less || equal || unordered;
    case GTU: return !less && !equal;
    case GEU: return !less || unordered;
    case NUM: return !unordered;
    default: return unordered;
  }
}

// ---- registers

#define AT(k) reg(w, i->o[k])
#define WORD(k) (*(u32 *)AT(k))
static inline void set_predicate(const Step *s, int k, u32 lanes) {
  u32 *p = reg(s->w, s->i->o[k]);
  *p = (*p & ~s->x) | (lanes & s->x);
}
// setp's p and q: a comparison and its opposite, each combined with a predicate.
static void set_compared(const Step *s, u32 is) {
  const Ins *i = s->i;
  u32 p = is, q = ~is, c = i->how >> 4 ? *(u32 *)reg(s->w, i->o[4]) : 0;
  if (i->negated) c = ~c;
  switch (i->how >> 4) {
    case AND: p &= c, q &= c; break;
    case OR: p |= c, q |= c; break;
    case XOR: p ^= c, q ^= c; break;
  }
  set_predicate(s, 0, p);
  set_predicate(s, 1, q);
}

// ---- collectives

// All lanes that a collective instruction names must be here.
static void meet(const Step *s, const u32 *mask) {
  Warp *w = s->w;
  int one = first(s->x);
  u32 wanted = mask[one] & w->present;
  EACH(l, s->x) if ((mask[l] & w->present) != wanted) wanted = w->present;
  if (wanted & ~s->x || !HAS(wanted, one)) {
    int other = wanted & ~s->x ? first(wanted & ~s->x) : 31;
    REPORT(s, .kind = WARP_MASK, .address = wanted, .thread = thread_of(w, one), .thread2 = thread_of(w, other));
  } else if (s->i->op == OP_warpsync) {
    if (s->x == w->present) order(&w->ordered, s->pc, w->strong++);
  } else {
    w->weak += s->x == w->present;
  }
}

static void shuffle(const Step *s) {
  const Warp *w = s->w;
  const Ins *i = s->i;
  u32 out[WARP], valid = 0, *d = AT(0), *a = AT(2), *b = AT(3), *c = AT(4);
  EACH(l, s->x) {
    int by = b[l] & 31, segment = c[l] >> 8 & 31, low = l & segment, j, p;
    int limit = low | (c[l] & 31 & ~segment);
    switch (i->op) {
      case OP_shfl_up: j = l - by; p = j >= limit; break;
      case OP_shfl_down: j = l + by; p = j <= limit; break;
      case OP_shfl_bfly: j = l ^ by; p = j <= limit; break;
      default: j = low | (by & ~segment); p = j <= limit;
    }
    if (!p) j = l;
    if (!HAS(s->x, j))
      REPORT(s, .kind = WARP_MASK, .thread = thread_of(w, l), .thread2 = thread_of(w, j), .detail = 1);
    out[l] = a[j];
    valid |= (u32)p << l;
  }
  EACH(l, s->x) d[l] = out[l];
  set_predicate(s, 1, valid);
}

static void vote(const Step *s) {
  const Warp *w = s->w;
  const Ins *i = s->i;
  u32 votes = (i->negated ? ~WORD(1) : WORD(1)) & s->x, *d = AT(0);
  if (i->op == OP_vote_ballot) {
    EACH(l, s->x) d[l] = votes;
    return;
  }
  int all = votes == s->x, any = votes != 0;
  set_predicate(s, 0, (i->op == OP_vote_any ? any : i->op == OP_vote_all ? all : all || !any) ? FULL : 0);
}

// ---- operations

#define LANES(...) \
  if (s->x == FULL) { _Pragma("GCC ivdep") for (int l = 0; l < WARP; l++) { __VA_ARGS__ } } \
  else EACH(l, s->x) { __VA_ARGS__ }
#define OP1(name, D, A, ...) case OP_##name: { D *d = AT(0); const A *pa = AT(1); \
  LANES(const A a = pa[l]; d[l] = (__VA_ARGS__);) break; }
#define OP2(name, D, A, B, ...) case OP_##name: { D *d = AT(0); const A *pa = AT(1); const B *pb = AT(2); \
  LANES(const A a = pa[l]; const B b = pb[l]; d[l] = (__VA_ARGS__);) break; }
#define OP3(name, D, A, B, C, ...) case OP_##name: { D *d = AT(0); const A *pa = AT(1); const B *pb = AT(2); \
  const C *pc = AT(3); LANES(const A a = pa[l]; const B b = pb[l]; const C c = pc[l]; d[l] = (__VA_ARGS__);) break; }
#define OP4(name, D, A, B, C, E, ...) case OP_##name: { D *d = AT(0); const A *pa = AT(1); const B *pb = AT(2); \
  const C *pc = AT(3); const E *pe = AT(4); \
  LANES(const A a = pa[l]; const B b = pb[l]; const C c = pc[l]; const E e = pe[l]; d[l] = (__VA_ARGS__);) break; }
#define F1(name, ...) OP1(name##_f32, f32, f32, canonical(__VA_ARGS__)) \
  case OP_##name##_ftz_f32: { f32 *d = AT(0); const f32 *pa = AT(1); \
  LANES(const f32 a = flushed(pa[l]); d[l] = flushed(canonical(__VA_ARGS__));) break; }
#define F2(name, ...) OP2(name##_f32, f32, f32, f32, canonical(__VA_ARGS__)) \
  case OP_##name##_ftz_f32: { f32 *d = AT(0); const f32 *pa = AT(1), *pb = AT(2); \
  LANES(const f32 a = flushed(pa[l]), b = flushed(pb[l]); d[l] = flushed(canonical(__VA_ARGS__));) break; }
#define F3(name, ...) OP3(name##_f32, f32, f32, f32, f32, canonical(__VA_ARGS__)) \
  case OP_##name##_ftz_f32: { f32 *d = AT(0); const f32 *pa = AT(1), *pb = AT(2), *pc = AT(3); \
  LANES(const f32 a = flushed(pa[l]), b = flushed(pb[l]), c = flushed(pc[l]); d[l] = flushed(canonical(__VA_ARGS__));) break; }
#define A1(name, ...) \
  case OP_##name##_f32: { f32 *d = AT(0); const f32 *pa = AT(1); \
  LANES(const f64 a = pa[l]; d[l] = canonical(approximated(__VA_ARGS__, a, 0, key));) break; } \
  case OP_##name##_ftz_f32: { f32 *d = AT(0); const f32 *pa = AT(1); \
  LANES(const f64 a = flushed(pa[l]); d[l] = flushed(canonical(approximated(__VA_ARGS__, a, 0, key)));) break; }
#define A2(name, ...) \
  case OP_##name##_f32: { f32 *d = AT(0); const f32 *pa = AT(1), *pb = AT(2); \
  LANES(const f64 a = pa[l], b = pb[l]; d[l] = canonical(approximated(__VA_ARGS__, a, b, key));) break; } \
  case OP_##name##_ftz_f32: { f32 *d = AT(0); const f32 *pa = AT(1), *pb = AT(2); \
  LANES(const f64 a = flushed(pa[l]), b = flushed(pb[l]); d[l] = flushed(canonical(approximated(__VA_ARGS__, a, b, key)));) break; }
// The second of one source is that one again.
#define PREDICATES(name, ...) case OP_##name: { const u32 a = WORD(1), b = WORD(i->from); (void)b; set_predicate(s, 0, __VA_ARGS__); break; }
#define SELP(name, T) case OP_##name: { T *d = AT(0); const T *a = AT(1), *b = AT(2); const u32 p = WORD(3); \
  LANES(d[l] = HAS(p, l) ? a[l] : b[l];) break; }
// The two commonest comparisons have loops of their own, which become vector instructions.
#define SETP(name, T, less, equal, unordered) case OP_##name: { const T *pa = AT(2), *pb = AT(3); u32 is = 0; \
  const int which = i->how & 15; \
  if (which == LT) for (int l = 0; l < WARP; l++) { const T a = pa[l], b = pb[l]; is |= (u32)(less) << l; } \
  else if (which == EQ) for (int l = 0; l < WARP; l++) { const T a = pa[l], b = pb[l]; is |= (u32)(equal) << l; } \
  else for (int l = 0; l < WARP; l++) { const T a = pa[l], b = pb[l]; is |= (u32)compared(which, less, equal, unordered) << l; } \
  set_compared(s, is); break; }
// Two comparisons, of the low halves into p and of the high halves into q.
#define SETP_PAIR(name, value) case OP_##name: { const u32 *a = AT(2), *b = AT(3); \
  for (int h = 0; h < 2; h++) { u32 is = 0; for (int l = 0; l < WARP; l++) { \
    f32 u = value(a[l] >> 16 * h), v = value(b[l] >> 16 * h); \
    is |= (u32)compared(i->how, u < v, u == v, isnan(u) || isnan(v)) << l; } \
    set_predicate(s, h, is); } break; }
#define DIVIDE(name, T, by, zero, lowest) case OP_##name: { T *d = AT(0); const T *pa = AT(1), *pb = AT(2); \
  EACH(l, s->x) { const T a = pa[l], b = pb[l]; \
    if (b == 0) { REPORT(s, .kind = DIVIDE_BY_ZERO, .thread = thread_of(w, l)); d[l] = zero; } \
    else if ((T)-1 < 0 && b == (T)-1) d[l] = a == (T)(1ull << (8 * sizeof(T) - 1)) ? lowest : a by b; \
    else d[l] = a by b; } break; }
#define REDUX(name, T, start, ...) case OP_##name: { T *d = AT(0), r = start; const T *pa = AT(1); \
  EACH(l, s->x) { const T a = pa[l]; r = (__VA_ARGS__); } LANES(d[l] = r;) break; }
#define UNPACK(name, count, WHOLE, PART) case OP_##name: { const WHOLE *a = AT(count); WHOLE whole[WARP]; memcpy(whole, a, sizeof whole); \
  for (int k = 0; k < count; k++) { PART *d = AT(k); LANES(d[l] = (PART)(whole[l] >> 8 * sizeof(PART) * k);) } break; }
// Conversions from and to integers, in registers that may be wider than they.
#define INTEGER(k, width) u64 v = 0; memcpy(&v, (u8 *)AT(k) + (width) * l, width);
#define STORE(k, width, value) { u64 v_ = (u64)(value); memcpy((u8 *)AT(k) + (width) * l, &v_, width); }
#define TO_INT(name, T, is_wide) case OP_##name: { const T *a = AT(1); EACH(l, s->x) \
  STORE(0, i->to_width, extended(float_to_int(a[l], i->how, i->to_bits, i->to_signed, is_wide), i->to_bits, i->to_signed)) break; }
#define FROM_INT(name, T) case OP_##name: { T *d = AT(0); EACH(l, s->x) { INTEGER(1, i->from_width) \
  s64 e = extended(v, i->from_bits, i->from_signed); d[l] = i->from_signed ? (T)e : (T)(u64)e; } break; }
#define BY_HAND(name)

// ---- pointers: which argument a 64-bit value points into, 0: none

#define ORIGIN(value) LANES(to[l] = (value);) break
static void follow_pointers(const Step *s) {
  const Warp *w = s->w;
  const Ins *i = s->i;
  const u8 *a = w->P + i->o[1], *b = w->P + i->o[2], *c = w->P + i->o[3];
  u8 *to = w->P + i->o[0];
  switch (i->op) {
    case OP_mov_b64: ORIGIN(a[l]);
    case OP_add_b64: case OP_and_b64: case OP_or_b64: ORIGIN(a[l] && b[l] ? 0 : a[l] | b[l]);
    case OP_sub_b64: ORIGIN(b[l] ? 0 : a[l]);
    case OP_mad_lo_b64: case OP_mad_wide_s32: case OP_mad_wide_u32: ORIGIN(c[l]);
    case OP_selp_b64: { const u32 chosen = WORD(3); ORIGIN(HAS(chosen, l) ? a[l] : b[l]); }
    case OP_ld_param: { const u8 argument = s->m->l->param_arg[i->imm / 8]; ORIGIN(argument); }
    default:
      for (int k = 0; k < i->to; k++) { to = w->P + i->o[k]; LANES(to[l] = 0;) }
  }
}

void execute(const Step *s) {
  Warp *w = s->w;
  const Ins *i = s->i;
  const int how = i->how;
  const int imm = (int)i->imm;
  const u64 key = s->m->l->approximate;
  if (i->sync >= 0) meet(s, reg(w, i->sync));
  switch (i->op) {
    case OP_nop: case OP_warpsync: break;
    case OP_trap: REPORT(s, .kind = TRAP, .thread = thread_of(w, first(s->x))); w->alive &= ~s->x; break;
    case OP_ld_param: { u64 v = 0; memcpy(&v, s->m->l->params + i->imm, i->size); v = extended(v, 8 * i->size, i->to_signed);
      EACH(l, s->x) STORE(0, i->width, v) break; }
    case OP_ld: access_memory(s, 0); break;
    case OP_st: access_memory(s, 1); break;
    case OP_atom: access_atomic(s); break;
    case OP_ldmatrix: access_matrix(s, 0); break;
    case OP_stmatrix: access_matrix(s, 1); break;
    case OP_shfl_up: case OP_shfl_down: case OP_shfl_bfly: case OP_shfl_idx: shuffle(s); break;
    case OP_vote_any: case OP_vote_all: case OP_vote_uni: case OP_vote_ballot: vote(s); break;
    case OP_activemask: { u32 *d = AT(0); EACH(l, s->x) d[l] = s->x; break; }
    case OP_match_any_b32: { const u32 *a = AT(1); u32 *d = AT(0), out[WARP] = {0};
      EACH(l, s->x) EACH(k, s->x) out[l] |= (u32)(a[k] == a[l]) << k;
      EACH(l, s->x) d[l] = out[l]; break; }
    case OP_cvt_int: EACH(l, s->x) { INTEGER(1, i->from_width) STORE(0, i->to_width, int_to_int(i, v)) } break;
    TO_INT(cvt_int_f32, f32, 0)
    TO_INT(cvt_int_f64, f64, 1)
    FROM_INT(cvt_f32_int, f32)
    FROM_INT(cvt_f64_int, f64)
    UNPACK(unpack2_b32, 2, u32, u16)
    UNPACK(unpack2_b64, 2, u64, u32)
    UNPACK(unpack4_b64, 4, u64, u16)
    SETP_PAIR(setp_f16x2, half_f32)
    SETP_PAIR(setp_bf16x2, bf16_f32)
#include "ops.h"
  }
  if (i->wide) follow_pointers(s);
}
