// Bit-planes of eight-bit codes, as cells.py lays them out: a byte holds the same token of eight eighths of a tile (or of four, at two bits).
#pragma once
#include "lanes.h"

namespace {

typedef uint64_t Narrow __attribute__((vector_size(16)));
typedef uint64_t Wide __attribute__((vector_size(4 * LANES)));

template <class V> struct Bytes {  // a shift crosses bytes, and the mask that follows undoes that
  static V every(uint8_t byte) { return V{} + 0x0101010101010101ull * byte; }
  static V moved(V v, int by) { return by >= 0 ? v << by : v >> -by; }

  static void pack(const uint8_t* codes, int64_t n, int64_t i, uint8_t* const* slot, int passes) {
    V e[8];
    for (int k = 0; k < 8; k++) e[k] = load<V>(codes + k * n + i);
#pragma GCC unroll 4
    for (int p = 1; p <= 4; p++) {
      if (p > passes) return;
      V out{};
#pragma GCC unroll 8
      for (int k = 0; k < 8; k++) out |= moved(e[k], k - (8 - p)) & every(uint8_t(1 << k));
      store(slot[p] + i, out);
    }
#pragma GCC unroll 2
    for (int p = 5; p <= 6; p++) {
      if (p > passes) return;
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        V out{};
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) out |= moved(e[4 * half + k], 2 * k - (p == 5 ? 2 : 0)) & every(uint8_t(3 << 2 * k));
        store(slot[p] + half * n + i, out);
      }
    }
  }

  static void unpack(const uint8_t* const* slot, int64_t n, int64_t i, uint8_t* codes, int passes) {
    V e[8]{};
#pragma GCC unroll 4
    for (int p = 1; p <= 4; p++)
      if (p <= passes) {
        const V in = load<V>(slot[p] + i);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) e[k] |= moved(in, 8 - p - k) & every(uint8_t(1 << (8 - p)));
      }
#pragma GCC unroll 2
    for (int p = 5; p <= 6; p++)
      if (p <= passes)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
          const V in = load<V>(slot[p] + half * n + i);
          const int shift = p == 5 ? 2 : 0;
#pragma GCC unroll 4
          for (int k = 0; k < 4; k++) e[4 * half + k] |= moved(in, shift - 2 * k) & every(uint8_t(3 << shift));
        }
    for (int k = 0; k < 8; k++) store(codes + k * n + i, e[k]);
  }
};

// n: bytes of a plane of one bit, a multiple of 16.
inline void pack_planes(const uint8_t* codes, int64_t n, uint8_t* const* slot, int passes) {
  int64_t i = 0;
  for (; i + int64_t(sizeof(Wide)) <= n; i += sizeof(Wide)) Bytes<Wide>::pack(codes, n, i, slot, passes);
  for (; i < n; i += 16) Bytes<Narrow>::pack(codes, n, i, slot, passes);
}

inline void unpack_planes(const uint8_t* const* slot, int64_t n, uint8_t* codes, int passes) {
  int64_t i = 0;
  for (; i + int64_t(sizeof(Wide)) <= n; i += sizeof(Wide)) Bytes<Wide>::unpack(slot, n, i, codes, passes);
  for (; i < n; i += 16) Bytes<Narrow>::unpack(slot, n, i, codes, passes);
}

}  // namespace
