// Where the threads of warps go, and in which order warps and programs run.

#include "machine.h"

enum { NOT_DONE, DONE };

// ---- a warp

static u32 lanes_at(const Warp *w, u32 lanes, int pc) {
  u32 there = 0;
  EACH(l, lanes) there |= (u32)(w->pc[l] == pc) << l;
  return there;
}

static void go(Warp *w, u32 lanes, int pc) {
  EACH(l, lanes) w->pc[l] = pc;
}

// Lanes that wait at a postdominator for those that a branch has parted them from.
static u32 held(Warp *w) {
  u32 all = 0;
  for (int k = 0; k < w->n_meetings; k++) {
    Meeting *g = &w->meetings[k];
    u32 lanes = g->lanes & w->alive, there = lanes_at(w, lanes, g->pc);
    if (there == lanes) *g = w->meetings[--w->n_meetings], k--;
    else all |= there;
  }
  return all;
}

static void part(Warp *w, const Ins *i, int pc, u32 here, u32 taken) {
  go(w, taken, (int)i->imm);
  go(w, here & ~taken, pc + 1);
  if (i->meet < 0 || w->n_meetings == MEETINGS) return;
  for (int k = 0; k < w->n_meetings; k++)
    if (w->meetings[k].pc == i->meet && !(here & ~w->meetings[k].lanes)) return; // as in a loop
  w->meetings[w->n_meetings++] = (Meeting){i->meet, here};
}

// Lanes that have come to a collective instruction before now do it too; returns whether others that
// it names are still to come.
static int lacks_others(Warp *w, const Ins *i, int pc, u32 *here) {
  const u32 *mask = reg(w, i->sync);
  u32 wanted = 0, join = lanes_at(w, w->parked, pc);
  *here |= join;
  w->parked &= ~join;
  EACH(l, *here) wanted |= mask[l];
  return (wanted & w->alive & ~*here) != 0;
}

static void arrive(Machine *m, Warp *w, int pc, u32 x) {
  if (x != w->present) {
    int kind = w->alive != w->present ? BARRIER_EXITED : BARRIER_DIVERGENT;
    report(m, (Finding){.kind = kind, .pc = pc, .address = x, .thread = thread_of(w, first(x)), .cta2 = m->cta});
  }
  w->waiting |= x;
  w->barrier = pc;
}

// Runs a warp until all its threads have left or wait at a barrier, or for a number of instructions.
// Threads that a branch parts meet at its postdominator, where ptxas lets them converge; threads at a
// collective instruction wait for all that it names. Of the groups that can run, the one at the lowest
// instruction does.
static int run_warp(Machine *m, Warp *w, s64 slice) {
  Launch *launch = m->l;
  for (;;) {
    u32 ready = w->alive & ~w->waiting & ~w->parked & ~held(w);
    int forced = !ready; // those that the parked ones wait for cannot come
    if (forced) ready = w->parked & w->alive;
    if (!ready) return DONE;
    if (slice <= 0) return NOT_DONE;
    int at = INT32_MAX;
    EACH(l, ready) if (w->pc[l] < at) at = w->pc[l];
    u32 here = lanes_at(w, ready, at), others = w->alive & ~here;
    w->parked &= ~here;
    for (int pc = at;; pc++, slice--) {
      const Ins *i = &m->p->ins[pc];
      if ((others && pc != at && i->leader) || (slice <= 0 && pc != at)) { go(w, here, pc); break; }
      if (launch->executed >= launch->budget) {
        report(m, (Finding){.kind = BUDGET, .pc = pc, .thread = thread_of(w, 0)});
        w->alive = 0;
        return DONE;
      }
      if (i->sync >= 0 && others && !forced) {
        int lacks = lacks_others(w, i, pc, &here);
        others = w->alive & ~here;
        if (lacks) { go(w, here, pc); w->parked |= here; break; }
      }
      forced = 0;
      launch->executed++;
      u32 x = here;
      if (i->guard >= 0) { u32 p = *(u32 *)reg(w, i->guard); x &= i->guard_negated ? ~p : p; }
      Step step = {m, w, i, pc, x};
      launch->counts[pc].count++;
      launch->counts[pc].threads += __builtin_popcount(x);
      if (launch->taint) watch_data(&step, here);
      if (i->op == OP_bra) {
        if (x == 0) continue;
        if (x == here && !others) { pc = (int)i->imm - 1; continue; }
        if (x == here) go(w, here, (int)i->imm);
        else part(w, i, pc, here, x);
        break;
      }
      if (i->op == OP_ret) {
        w->alive &= ~x;
        go(w, here & ~x, pc + 1);
        break;
      }
      if (i->op == OP_bar) {
        arrive(m, w, pc, x);
        go(w, here, pc + 1);
        break;
      }
      if (x) execute(&step);
      if (launch->taint) follow(&step, here);
    }
  }
}

// ---- the warps of a program, and programs

// splitmix64: small seeds are as good as others.
static u32 draw(Machine *m, u32 below) {
  u64 z = m->random += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return (u32)((z ^ z >> 31) % below);
}

static int drawn_order(Machine *m) { return m->l->order == MIXED ? (int)draw(m, MIXED) : m->l->order; }

static const s64 UNLIMITED = INT64_MAX;

// Each warp to its next barrier, or its end.
static void run_warps(Machine *m) {
  int order = drawn_order(m), n = m->n_warps;
  if (order != AHEAD) {
    for (int k = 0; k < n; k++) run_warp(m, &m->warps[order == FORWARD ? k : n - 1 - k], UNLIMITED);
    return;
  }
  // One as far as it comes, then the others in slices.
  run_warp(m, &m->warps[draw(m, n)], UNLIMITED);
  for (int busy = 1; busy;) {
    busy = 0;
    for (int k = 0; k < n; k++) busy |= run_warp(m, &m->warps[k], 1 + draw(m, 100)) == NOT_DONE;
  }
}

static void run_program(Machine *m) {
  Launch *l = m->l;
  const Program *p = m->p;
  memset(m->smem, l->poison, l->shared_bytes);
  memset(m->written, 0, l->shared_bytes);
  memset(m->data, 0, l->shared_bytes);
  m->ordered = (Last){-1, ++m->epoch};
  for (int k = 0; k < m->n_warps; k++) {
    Warp *w = &m->warps[k];
    w->ordered = (Last){-1, w->strong};
    int threads = l->threads - WARP * k;
    w->present = w->alive = threads >= WARP ? FULL : (1u << threads) - 1;
    w->waiting = w->parked = w->shaded = w->n_meetings = 0;
    memset(w->pc, 0, sizeof w->pc);
    for (int d = 0; d < 3; d++)
      if (p->ctaid[d] >= 0) EACH(lane, FULL) ((u32 *)reg(w, p->ctaid[d]))[lane] = m->ctaid[d];
  }
  for (;;) {
    run_warps(m);
    int waiting = 0, pc = -1, differ = 0;
    for (int k = 0; k < m->n_warps; k++) {
      if (!m->warps[k].waiting) continue;
      if (waiting++ && m->warps[k].barrier != pc) differ = 1;
      pc = m->warps[k].barrier;
    }
    if (!waiting) return;
    Finding f = {.pc = pc, .cta2 = m->cta};
    if (waiting < m->n_warps) f.kind = BARRIER_EXITED, report(m, f);
    if (differ) f.kind = BARRIER_DIFFERENT, report(m, f);
    if (l->executed >= l->budget) return;
    for (int k = 0; k < m->n_warps; k++) m->warps[k].waiting = 0;
    order(&m->ordered, pc, m->epoch++);
  }
}

static void prepare(Machine *m, Warp *w) {
  const Program *p = m->p;
  const Launch *l = m->l;
  s64 bytes = (p->regs_bytes + 127) / 64 * 64;
  w->R = aligned_alloc(64, bytes);
  w->P = calloc(bytes, 1);
  w->T = calloc(bytes, 1);
  memset(w->R, l->poison, bytes);
  for (s64 c = 0; c < p->n_consts; c++) {
    u8 *to = reg(w, p->const_offset[c]);
    int width = p->const_width[c];
    if (width == 1) memcpy(to, &p->const_value[c], 4);
    else EACH(lane, FULL) memcpy(to + width * lane, &p->const_value[c], width);
  }
#define SPECIAL(offset, value) if ((offset) >= 0) EACH(lane, FULL) ((u32 *)reg(w, offset))[lane] = (value)
  for (int d = 0; d < 3; d++) {
    SPECIAL(p->tid[d], d ? 0 : thread_of(w, lane));
    SPECIAL(p->ntid[d], d ? 1 : l->threads);
    SPECIAL(p->nctaid[d], l->grid[d]);
  }
  SPECIAL(p->laneid, lane);
  SPECIAL(p->warpid, w->number);
}

void run(const Program *p, Launch *l) {
  static u32 launches, epoch; // shadows outlive launches
  Machine m = {.p = p, .l = l, .n_warps = (l->threads + WARP - 1) / WARP, .launch = ++launches, .epoch = epoch, .random = l->seed};
  m.warps = calloc(m.n_warps, sizeof(Warp));
  m.smem = malloc(l->shared_bytes + 1);
  m.written = malloc(l->shared_bytes + 1);
  m.data = malloc(l->shared_bytes + 1);
  m.shadow = calloc(l->shared_bytes / p->shared_granule + 1, sizeof(Shadow));
  for (int k = 0; k < m.n_warps; k++) {
    m.warps[k].number = k;
    prepare(&m, &m.warps[k]);
  }
  // One program ahead of the others is one that runs before them.
  int count = l->cta_to - l->cta_from, order = drawn_order(&m), ahead = order == AHEAD ? (int)draw(&m, count) : 0;
  for (int k = 0; k < count && l->executed < l->budget; k++) {
    int c = order == BACKWARD ? count - 1 - k : k == 0 ? ahead : k <= ahead ? k - 1 : k;
    m.cta = c += l->cta_from;
    m.ctaid[0] = c % l->grid[0];
    m.ctaid[1] = c / l->grid[0] % l->grid[1];
    m.ctaid[2] = c / l->grid[0] / l->grid[1];
    run_program(&m);
  }
  epoch = m.epoch;
  for (int k = 0; k < m.n_warps; k++) free(m.warps[k].R), free(m.warps[k].P), free(m.warps[k].T);
  free(m.warps), free(m.smem), free(m.written), free(m.data), free(m.shadow);
}

// ---- what the other side checks itself by

const char *op_name(int k) {
  static const char *names[] = {
#define X(name) #name,
#include "names.h"
#undef X
  };
  return k < OP_COUNT ? names[k] : NULL;
}

s64 size_of(int k) {
  static const s64 sizes[] = {sizeof(Ins), sizeof(Program), sizeof(Count), sizeof(Finding), sizeof(Alloc), sizeof(Arg), sizeof(Launch), PAGE};
  return sizes[k];
}
