// What is found: races by happens-before, and data that decides where the program goes.

#include "machine.h"

void report(Machine *m, Finding f) {
  Launch *l = m->l;
  for (int k = 0; k < l->n_findings; k++) {
    Finding *g = &l->findings[k];
    if (g->kind == f.kind && g->pc == f.pc && g->pc2 == f.pc2 && g->arg == f.arg && g->hazard == f.hazard) {
      g->count++;
      g->same += f.same;
      return;
    }
  }
  f.cta = m->cta;
  f.count = 1;
  if (l->n_findings < l->max_findings - 1) l->findings[l->n_findings++] = f;
  else l->findings[l->max_findings - 1] = (Finding){.kind = TOO_MANY, .count = 1}, l->n_findings = l->max_findings;
}

// ---- races within a program: two accesses are ordered by a barrier of the program between them
// (another epoch) or, within a warp, by bar.warp.sync. In which order the warps ran does not matter.

static int races(const Step *s, const Access *a, int thread) {
  if (a->epoch != s->m->epoch || a->thread == thread) return 0;
  return a->thread / WARP != thread / WARP || a->strong == s->w->strong;
}

// Of two accesses that would race: notes the barrier that they are ordered by, if it is but one.
static void note(const Step *s, const Access *a, int thread) {
  const Machine *m = s->m;
  const Warp *w = s->w;
  int one_warp = a->thread / WARP == thread / WARP;
  const Last *by = NULL;
  if (a->thread == thread) return;
  if (a->epoch != m->epoch) by = one_warp && a->strong != w->strong ? NULL : &m->ordered;
  else if (one_warp && a->strong != w->strong) by = &w->ordered;
  if (by && by->pc >= 0 && (by == &m->ordered ? a->epoch : a->strong) >= by->since) m->l->needed[by->pc] = 1 + m->cta;
}

// `now` is of the access that follows on the one that is known.
static inline void conflict(const Step *s, const Access *known, const Access *now, int hazard, const Finding *f) {
  if (s->m->l->needed) note(s, known, now->thread);
  if (!races(s, known, now->thread)) return;
  int by_shuffle = known->thread / WARP == now->thread / WARP && known->weak != now->weak;
  Finding race = *f;
  race.kind = f->detail == SHARED ? (by_shuffle ? SHARED_WEAK : SHARED_RACE) : by_shuffle ? GLOBAL_WEAK : GLOBAL_RACE;
  race.hazard = hazard, race.pc = now->pc, race.pc2 = known->pc;
  race.thread = now->thread, race.cta2 = s->m->cta, race.thread2 = known->thread;
  report(s->m, race);
}

// `f` has what is to be said of the access if it races.
void watch(const Step *s, Shadow *shadow, int write, int lane, const Finding *f) {
  const Access now = {s->m->epoch, s->w->strong, s->w->weak, s->pc, thread_of(s->w, lane)};
  if (write) {
    conflict(s, &shadow->write, &now, WAW, f);
    conflict(s, &shadow->read, &now, WAR, f);
    conflict(s, &shadow->same_warp, &now, WAR, f);
    conflict(s, &shadow->other_warp, &now, WAR, f);
    shadow->write = now;
    return;
  }
  conflict(s, &shadow->write, &now, RAW, f);
  const Access *last = &shadow->read;
  if (last->epoch == now.epoch && last->thread != now.thread) {
    if (last->thread / WARP == now.thread / WARP) {
      shadow->same_warp = *last;
    } else {
      const Access other = shadow->other_warp;
      int useful = other.epoch == now.epoch && other.thread / WARP == now.thread / WARP && other.thread != now.thread;
      shadow->other_warp = *last;
      shadow->same_warp = useful ? other : (Access){0};
    }
  }
  shadow->read = now;
}

// ---- races between programs: nothing orders those of one launch

GlobalShadow *shadow_at(const Alloc *a, u64 granule) {
  GlobalShadow **page = &a->shadow[granule / PAGE];
  if (!*page) *page = calloc(PAGE, sizeof(GlobalShadow));
  return *page + granule % PAGE;
}

void free_shadow(GlobalShadow **pages, s64 count) {
  for (s64 k = 0; k < count; k++) free(pages[k]);
}

void watch_grid(const Step *s, GlobalShadow *g, int write, int atomic, int lane, const Finding *f) {
  const Machine *m = s->m;
  int thread = thread_of(s->w, lane);
  if (g->launch != m->launch) {
    g->launch = m->launch;
    g->w_cta = g->r_cta = -1;
    g->atomic = 0;
  }
  Finding race = {.kind = GRID_RACE, .pc = s->pc, .arg = f->arg, .same = f->same, .address = f->address, .thread = thread};
  if (g->w_cta >= 0 && g->w_cta != m->cta && !(atomic && g->atomic)) {
    race.hazard = write ? WAW : RAW, race.pc2 = g->w_pc, race.cta2 = g->w_cta, race.thread2 = g->w_thread;
    report(s->m, race);
  }
  if (write && g->r_cta >= 0 && g->r_cta != m->cta) {
    race.hazard = WAR, race.pc2 = g->r_pc, race.cta2 = g->r_cta, race.thread2 = g->r_thread;
    report(s->m, race);
  }
  if (write)
    g->w_cta = m->cta, g->w_pc = s->pc, g->w_thread = thread, g->atomic = atomic;
  else if (g->r_cta < 0)
    g->r_cta = m->cta, g->r_pc = s->pc, g->r_thread = thread;
}

// ---- data: what is loaded taints, and what is computed of it. Where taint reaches neither a branch,
// nor a guard of an access, nor an address, the same accesses happen for all data.

// A branch whose ways only compute until they meet again decides values alone: what its ways assign is
// tainted, in a lane whichever way it goes, and what is assigned on the way.
static void shade(const Step *s, u32 lanes) {
  Warp *w = s->w;
  for (int k = 0; k < s->i->n_side; k++) *taint(w, s->m->p->assigned[s->i->side + k]) |= lanes;
  EACH(l, lanes & ~w->shaded) w->until[l] = s->i->meet;
  w->shaded |= lanes;
}

void watch_data(const Step *s, u32 here) {
  const Ins *i = s->i;
  Warp *w = s->w;
  EACH(l, here & w->shaded) if (w->until[l] == s->pc) w->shaded &= ~(1u << l);
  if (i->kind == ARITHMETIC) return;
  u32 guard = i->guard >= 0 ? *taint(w, i->guard) & here : 0;
  if (guard && i->op == OP_bra && i->n_side >= 0) shade(s, guard);
  else if (guard) REPORT(s, .kind = i->kind == BRANCH ? DATA_BRANCH : DATA_GUARD, .thread = thread_of(w, first(guard)));
  if (i->space == NO_SPACE) return;
  u32 address = *taint(w, i->o[i->to + i->from - 1]) & s->x;
  if (address)
    REPORT(s, .kind = i->space == SHARED ? DATA_SHARED : DATA_GLOBAL, .thread = thread_of(w, first(address)));
}

// From sources, and from what decides whether they are taken, to destinations. Loads have already
// marked what comes from memory.
void follow(const Step *s, u32 here) {
  const Ins *i = s->i;
  u32 decided = ((i->guard >= 0 ? *taint(s->w, i->guard) : 0) | s->w->shaded) & here;
  u32 from = 0;
  for (int k = 0; k < i->from; k++) from |= *taint(s->w, i->o[i->to + k]);
  if (i->kind == COLLECTIVE && from & s->x) from = FULL; // every lane may have another's
  for (int k = 0; k < i->to; k++) {
    u32 *to = taint(s->w, i->o[k]);
    *to = (i->kind == MEMORY ? *to : *to & ~s->x) | (from & s->x) | decided;
  }
}
