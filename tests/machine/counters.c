// What an access costs, by the usual rules.

#include "machine.h"

// Adds a value that is not there yet; returns whether it was added.
static int added(u64 *seen, int *n, u64 value) {
  for (int k = *n - 1; k >= 0; k--)
    if (seen[k] == value) return 0;
  seen[(*n)++] = value;
  return 1;
}

// Of global memory: 32-byte sectors. The best layout has each value that is asked for once.
void count_sectors(Count *c, const u64 *a, u32 x, int bytes) {
  u64 sectors[2 * WARP], places[WARP]; // aligned values of at most 32 bytes lie in one sector, others in two
  int n = 0, different = 0;
  EACH(l, x) {
    added(places, &different, a[l]);
    for (u64 k = a[l] / 32; k <= (a[l] + bytes - 1) / 32; k++) added(sectors, &n, k);
  }
  c->requests++;
  c->got += n;
  c->best += (different * bytes + 31) / 32;
  c->bytes += (u64)__builtin_popcount(x) * bytes;
}

// Of shared memory: wavefronts. Lanes go in groups of 128 bytes (a half warp for 64 bits, a quarter for
// 128); a group takes as long as the bank that has to give the most different words of 4 bytes.
void count_wavefronts(Count *c, const u64 *a, u32 x, int bytes) {
  int group = bytes <= 4 ? WARP : 128 / bytes;
  c->requests++;
  for (int g = 0; g < WARP; g += group) {
    u64 words[2 * WARP];
    u8 per_bank[32] = {0};
    int n = 0, most = 0;
    for (int l = g; l < g + group; l++) {
      if (!HAS(x, l)) continue;
      c->bytes += bytes;
      for (u64 k = a[l] / 4; k <= (a[l] + bytes - 1) / 4; k++)
        if (added(words, &n, k) && ++per_bank[k % 32] > most) most = per_bank[k % 32];
    }
    c->got += most;
    c->best += (n + 31) / 32;
  }
}
