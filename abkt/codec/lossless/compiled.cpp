// The lossless code of oracle.py, which describes the format, for one core: a chunk is 8 values of each of 16 parts, coded in registers.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "../fixed/crc.h"

namespace {

typedef uint16_t H __attribute__((vector_size(16)));  // 8 values of one part
typedef uint16_t V __attribute__((vector_size(64)));  // 8 values of each of four parts
enum { TILE = 4096, PARTS = 16, CHUNK = 8, SLACK = 128 };

#if defined(__clang__) || __GNUC__ >= 12
inline V join(H a, H b, H c, H d) {
  const auto low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}
template <int I> inline H quarter(V v) {
  return __builtin_shufflevector(v, v, 8 * I, 8 * I + 1, 8 * I + 2, 8 * I + 3, 8 * I + 4, 8 * I + 5, 8 * I + 6, 8 * I + 7);
}
#else
inline V join(H a, H b, H c, H d) {
  const H all[4] = {a, b, c, d};
  return load<V>(all);
}
template <int I> inline H quarter(V v) { return load<H>(reinterpret_cast<const char*>(&v) + I * sizeof(H)); }
#endif

inline H everywhere(bool set) {
  const uint16_t bits = set ? 0xffff : 0;
  return H{} + bits;
}

// A chunk's symbols are V[4]: parts 4k to 4k + 3 are in the k-th. Escapes are listed lane by lane, parts 0 to 15 in each. A symbol is escaped
// if it is `limit` or more above `base`, modulo 256. Both functions return the number of escapes. `list_escapes` may write 128 bytes,
// `fill_escapes` may read as many.
#if defined(ABKT_AVX512) && defined(__AVX512VBMI__) && defined(__AVX512VBMI2__)
struct Order {
  uint8_t lanes[128], parts[128];
  constexpr Order() : lanes(), parts() {
    for (int part = 0; part < PARTS; part++)
      for (int lane = 0; lane < CHUNK; lane++) lanes[lane * PARTS + part] = part * CHUNK + lane, parts[part * CHUNK + lane] = lane * PARTS + part;
  }
};
constexpr Order ORDER;
inline __m512i permuted(__m512i a, const uint8_t* order, __m512i b) { return _mm512_permutex2var_epi8(a, load<__m512i>(order), b); }
inline __m512i both_bytes(V a, V b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8((__m512i)a)), _mm512_cvtepi16_epi8((__m512i)b), 1);
}
inline __mmask64 escapes_of(__m512i symbols, uint16_t base, uint16_t limit) {
  return _mm512_cmpge_epu8_mask(_mm512_sub_epi8(symbols, _mm512_set1_epi8(char(base))), _mm512_set1_epi8(char(limit)));
}
inline int list_escapes(uint8_t* to, const V* symbol, uint16_t base, uint16_t limit) {
  const __m512i low = both_bytes(symbol[0], symbol[1]), high = both_bytes(symbol[2], symbol[3]);
  const __m512i first = permuted(low, ORDER.lanes, high), second = permuted(low, ORDER.lanes + 64, high);
  const __mmask64 some = escapes_of(first, base, limit), more = escapes_of(second, base, limit);
  const int count = int(__builtin_popcountll(some));
  store(to, _mm512_maskz_compress_epi8(some, first));
  store(to + count, _mm512_maskz_compress_epi8(more, second));
  return count + int(__builtin_popcountll(more));
}
inline int fill_escapes(const uint8_t* from, V* symbol, uint16_t base, uint16_t limit) {
  const __m512i low = both_bytes(symbol[0], symbol[1]), high = both_bytes(symbol[2], symbol[3]);
  __m512i first = permuted(low, ORDER.lanes, high), second = permuted(low, ORDER.lanes + 64, high);
  const __mmask64 some = escapes_of(first, base, limit), more = escapes_of(second, base, limit);
  const int count = int(__builtin_popcountll(some));
  first = _mm512_mask_expand_epi8(first, some, load<__m512i>(from));
  second = _mm512_mask_expand_epi8(second, more, load<__m512i>(from + count));
  const __m512i a = permuted(first, ORDER.parts, second), b = permuted(first, ORDER.parts + 64, second);
  symbol[0] = (V)_mm512_cvtepu8_epi16(_mm512_castsi512_si256(a)), symbol[1] = (V)_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(a, 1));
  symbol[2] = (V)_mm512_cvtepu8_epi16(_mm512_castsi512_si256(b)), symbol[3] = (V)_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(b, 1));
  return count + int(__builtin_popcountll(more));
}
#else
inline uint32_t mask_of(V escaped) {
#if defined(__AVX2__)
  const auto* half = reinterpret_cast<const __m256i*>(&escaped);
  return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(half[0], half[1]), 0xd8)));
#elif defined(__SSE4_1__)
  const auto* q = reinterpret_cast<const __m128i*>(&escaped);
  return uint32_t(_mm_movemask_epi8(_mm_packs_epi16(q[0], q[1]))) | uint32_t(_mm_movemask_epi8(_mm_packs_epi16(q[2], q[3]))) << 16;
#else
  uint32_t mask = 0;
  for (int i = 0; i < 32; i++) mask |= uint32_t(escaped[i] & 1) << i;
  return mask;
#endif
}
// Calls take(place in the list, k, lane of symbol[k]) for each escape; lists of different lanes begin where those before them end.
template <class F> inline int each_escape(const V* symbol, uint16_t base, uint16_t limit, F take) {
  V escaped[4], sum{};
  for (int k = 0; k < 4; k++) sum += escaped[k] = (V)(((symbol[k] - base) & 255) >= limit);
  const H minus = quarter<0>(sum) + quarter<1>(sum) + quarter<2>(sum) + quarter<3>(sum);
  int at[CHUNK], count = 0;
  for (int lane = 0; lane < CHUNK; lane++) at[lane] = count, count += uint16_t(-minus[lane]);
  if (count)
    for (int k = 0; k < 4; k++)
      for (uint32_t mask = mask_of(escaped[k]); mask; mask &= mask - 1) {
        const int bit = __builtin_ctz(mask);
        take(at[bit % CHUNK]++, k, bit);
      }
  return count;
}
inline int list_escapes(uint8_t* to, const V* symbol, uint16_t base, uint16_t limit) {
  uint16_t all[4][32];
  std::memcpy(all, symbol, sizeof all);
  return each_escape(symbol, base, limit, [&](int at, int k, int bit) { to[at] = uint8_t(all[k][bit]); });
}
inline int fill_escapes(const uint8_t* from, V* symbol, uint16_t base, uint16_t limit) {
  uint16_t all[4][32];
  std::memcpy(all, symbol, sizeof all);
  const int count = each_escape(symbol, base, limit, [&](int at, int k, int bit) { all[k][bit] = from[at]; });
  if (count) std::memcpy(symbol, all, sizeof all);
  return count;
}
#endif

template <int M, int S, class T_> struct Value {
  static constexpr uint16_t MANTISSA = M, SIGN = S;
  using T = T_;
};
using BFloat16 = Value<7, 15, uint16_t>;
using Half = Value<10, 15, uint16_t>;
using Float8 = Value<3, 7, uint8_t>;
using Float32 = Value<7, 15, uint32_t>;

inline H lanes(const uint16_t* from) { return load<H>(from); }
inline H lanes(const uint8_t* from) {
  typedef uint8_t B __attribute__((vector_size(8)));
  return __builtin_convertvector(load<B>(from), H);
}
inline H lanes(const uint32_t* from) {  // the upper halves
  typedef uint32_t W __attribute__((vector_size(32)));
  return __builtin_convertvector(load<W>(from) >> 16, H);
}
inline void put(uint16_t* to, H v, const uint8_t*) { store(to, v); }
inline void put(uint8_t* to, H v, const uint8_t*) {
  typedef uint8_t B __attribute__((vector_size(8)));
  store(to, __builtin_convertvector(v, B));
}
inline void put(uint32_t* to, H v, const uint8_t* low) {
  typedef uint32_t W __attribute__((vector_size(32)));
  store(to, __builtin_convertvector(v, W) << 16 | __builtin_convertvector(load<H>(low), W));
}

struct Shape {
  int64_t n, fixed, raw;
};

template <class E, int W> struct Unit {
  using T = typename E::T;
  static constexpr uint16_t MANTISSA = E::MANTISSA, SIGN = E::SIGN, FRACTION = (1 << MANTISSA) - 1, EXPONENT = (1 << (SIGN - MANTISSA)) - 1;
  static constexpr uint16_t BYTE = MANTISSA >= 7 ? 8 : 0, CODE = W, HEAD = MANTISSA + 1 - BYTE + W, LIMIT = (1 << W) - 1, ROWS = BYTE + HEAD;
  static constexpr uint16_t AT4 = 0, AT2 = HEAD & 4, AT1 = HEAD & 6;  // lowest bit of each plane in the head

  // Chunk c of a tile: rows (of C lanes) from values. `count` values are there; WHOLE: all of 16 * C.
  template <bool WHOLE> static int encode_chunk(const T* from, int64_t c, int64_t count, int64_t C, uint16_t base, uint16_t* rows, uint8_t* tail) {
    V rest[4], symbol[4], plane4{}, plane2{}, plane1{};
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      const uint16_t nibble = 4 * k;
      H piece[4], there[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const int64_t at = (4 * k + j) * C + c * CHUNK;
        const bool held = WHOLE || at < count;
        piece[j] = held ? lanes(from + at) : H{};
        there[j] = everywhere(held);
      }
      const V x = join(piece[0], piece[1], piece[2], piece[3]);
      symbol[k] = (x >> MANTISSA) & EXPONENT;
      rest[k] = (x & FRACTION) | (x >> SIGN << MANTISSA);
      if (!WHOLE) {  // missing values have code 0
        const V held = join(there[0], there[1], there[2], there[3]);
        symbol[k] = (symbol[k] & held) | (base & ~held), rest[k] &= held;
      }
      const V place = (symbol[k] - base) & 255, code = place < LIMIT ? place : V{} + LIMIT;
      const V head = code | rest[k] >> BYTE << CODE;
      if (HEAD & 4) plane4 |= ((head >> AT4) & 15) << nibble;
      if (HEAD & 2) plane2 |= ((head >> AT2) & 3) << nibble;
      if (HEAD & 1) plane1 |= ((head >> AT1) & 1) << nibble;
    }
    uint16_t* row = rows + c * CHUNK;
    const auto put_row = [&](H lane) { store(row, lane), row += C; };
    if (BYTE)
      for (int k = 0; k < 2; k++) {
        const V pair = (rest[k] & 255) | rest[k + 2] << 8;
        put_row(quarter<0>(pair)), put_row(quarter<1>(pair)), put_row(quarter<2>(pair)), put_row(quarter<3>(pair));
      }
    if (HEAD & 4) put_row(quarter<0>(plane4)), put_row(quarter<1>(plane4)), put_row(quarter<2>(plane4)), put_row(quarter<3>(plane4));
    if (HEAD & 2) put_row(quarter<0>(plane2) | quarter<2>(plane2) << 2), put_row(quarter<1>(plane2) | quarter<3>(plane2) << 2);
    if (HEAD & 1) put_row(quarter<0>(plane1) | quarter<1>(plane1) << 1 | quarter<2>(plane1) << 2 | quarter<3>(plane1) << 3);
    return list_escapes(tail, symbol, base, LIMIT);
  }

  template <bool WHOLE> static int decode_chunk(T* to, int64_t c, int64_t count, int64_t C, uint16_t base, const uint16_t* rows, const uint8_t* tail,
                                                const uint8_t* low) {
    V pair[2]{}, symbol[4], heads[4], plane4{}, plane2{}, plane1{};
    const uint16_t* row = rows + c * CHUNK;
    const auto next = [&] { const H lane = load<H>(row); row += C; return lane; };
    const auto four = [&] { const H a = next(), b = next(), c = next(), d = next(); return join(a, b, c, d); };
    if (BYTE) pair[0] = four(), pair[1] = four();
    if (HEAD & 4) plane4 = four();
    if (HEAD & 2) {
      const H a = next(), b = next();
      plane2 = join(a, b, a >> 2, b >> 2);
    }
    if (HEAD & 1) {
      const H a = next();
      plane1 = join(a, a >> 1, a >> 2, a >> 3);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      const uint16_t nibble = 4 * k;
      V head{};
      if (HEAD & 4) head |= ((plane4 >> nibble) & 15) << AT4;
      if (HEAD & 2) head |= ((plane2 >> nibble) & 3) << AT2;
      if (HEAD & 1) head |= ((plane1 >> nibble) & 1) << AT1;
      V code = head & LIMIT;
      if (!WHOLE) {
        H there[4];
        for (int j = 0; j < 4; j++) there[j] = everywhere((4 * k + j) * C + c * CHUNK < count);
        code &= join(there[0], there[1], there[2], there[3]);
      }
      heads[k] = head, symbol[k] = (code + base) & 255;
    }
    const int used = fill_escapes(tail, symbol, base, LIMIT);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      V rest = heads[k] >> CODE << BYTE;
      if (BYTE) rest |= k < 2 ? pair[k & 1] & 255 : pair[k & 1] >> 8;
      const V x = (rest & FRACTION) | symbol[k] << MANTISSA | rest >> MANTISSA << SIGN;
      const H piece[4] = {quarter<0>(x), quarter<1>(x), quarter<2>(x), quarter<3>(x)};
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const int64_t at = (4 * k + j) * C + c * CHUNK;
        if (WHOLE || at < count) put(to + at, piece[j], low + 2 * at);
      }
    }
    return used;
  }

  // The fixed part of a unit, and its escapes to `tail` (n + SLACK bytes). Returns how many.
  static int64_t encode(const T* from, const Shape& shape, uint16_t base, uint8_t* fixed, uint8_t* tail) {
    int64_t listed = 0;
    if (sizeof(T) == 4) {
      auto* low = reinterpret_cast<uint16_t*>(fixed);
      for (int64_t i = 0; i < shape.n; i++) low[i] = uint16_t(from[i]);
      fixed += 2 * shape.n;
    }
    for (int64_t start = 0; start < shape.n; start += TILE) {
      const int64_t count = std::min<int64_t>(TILE, shape.n - start), C = (count + 127) / 128 * CHUNK;
      auto* rows = reinterpret_cast<uint16_t*>(fixed);
      for (int64_t c = 0; c < C / CHUNK; c++)
        listed += count == PARTS * C ? encode_chunk<true>(from + start, c, count, C, base, rows, tail + listed)
                                     : encode_chunk<false>(from + start, c, count, C, base, rows, tail + listed);
      fixed += 2 * ROWS * C;
    }
    return listed;
  }

  static int64_t decode(T* to, const Shape& shape, uint16_t base, const uint8_t* fixed, const uint8_t* tail) {
    int64_t used = 0;
    const uint8_t* low = fixed;
    if (sizeof(T) == 4) fixed += 2 * shape.n;
    for (int64_t start = 0; start < shape.n; start += TILE) {
      const int64_t count = std::min<int64_t>(TILE, shape.n - start), C = (count + 127) / 128 * CHUNK;
      const auto* rows = reinterpret_cast<const uint16_t*>(fixed);
      const uint8_t* lows = sizeof(T) == 4 ? low + 2 * start : low;
      for (int64_t c = 0; c < C / CHUNK; c++)
        used += count == PARTS * C ? decode_chunk<true>(to + start, c, count, C, base, rows, tail + used, lows)
                                   : decode_chunk<false>(to + start, c, count, C, base, rows, tail + used, lows);
      fixed += 2 * ROWS * C;
    }
    return used;
  }
};

template <class E, int W> int64_t encode_units(const Shape& shape, int64_t units, const void* data, const int64_t* starts, int64_t groups,
                                               const uint8_t* bases, int64_t* sizes, uint8_t* body) {
  std::vector<uint8_t> scratch(shape.n + SLACK);
  uint8_t* tails = body + units * shape.fixed;
  const int64_t spare = shape.raw - shape.fixed;
  for (int64_t u = 0; u < units; u++) {
    const auto* from = static_cast<const typename E::T*>(data) + starts[u];
    uint8_t* fixed = body + u * shape.fixed;
    const int64_t listed = Unit<E, W>::encode(from, shape, bases[u % groups], fixed, scratch.data());
    const int64_t tail = std::min((listed + 15) / 16 * 16, spare);
    if (tail == spare) {
      std::memcpy(fixed, from, shape.fixed);
      std::memcpy(tails, reinterpret_cast<const uint8_t*>(from) + shape.fixed, spare);
    } else {
      std::memset(scratch.data() + listed, 0, tail - listed);
      std::memcpy(tails, scratch.data(), tail);
    }
    sizes[u] = shape.fixed + tail;
    tails += tail;
  }
  return tails - body;
}

// The number of the first unit whose codes and tail differ in their number of escapes, or -1.
template <class E, int W> int64_t decode_units(const Shape& shape, int64_t units, void* data, const int64_t* starts, int64_t groups, const uint8_t* bases,
                                               const int64_t* sizes, const uint8_t* body) {
  std::vector<uint8_t> scratch(shape.n + SLACK);
  const uint8_t* tails = body + units * shape.fixed;
  int64_t wrong = -1;
  for (int64_t u = 0; u < units; u++) {
    auto* to = static_cast<typename E::T*>(data) + starts[u];
    const uint8_t* fixed = body + u * shape.fixed;
    const int64_t tail = sizes[u] - shape.fixed;
    if (sizes[u] == shape.raw) {
      std::memcpy(to, fixed, shape.fixed);
      std::memcpy(reinterpret_cast<uint8_t*>(to) + shape.fixed, tails, tail);
    } else {
      std::memcpy(scratch.data(), tails, tail);  // a copy, which may be read beyond the end of the tail
      const int64_t used = Unit<E, W>::decode(to, shape, bases[u % groups], fixed, scratch.data());
      if ((used + 15) / 16 * 16 != tail && wrong < 0) wrong = u;
    }
    tails += tail;
  }
  return wrong;
}

template <class F> int64_t with_layout(int64_t dtype, int64_t width, F run) {
  switch (dtype * 8 + width) {
    case 2: return run(BFloat16{}, std::integral_constant<int, 2>{});
    case 3: return run(BFloat16{}, std::integral_constant<int, 3>{});
    case 4: return run(BFloat16{}, std::integral_constant<int, 4>{});
    case 10: return run(Half{}, std::integral_constant<int, 2>{});
    case 11: return run(Half{}, std::integral_constant<int, 3>{});
    case 12: return run(Half{}, std::integral_constant<int, 4>{});
    case 18: return run(Float8{}, std::integral_constant<int, 2>{});
    case 19: return run(Float8{}, std::integral_constant<int, 3>{});
    case 26: return run(Float32{}, std::integral_constant<int, 2>{});
    case 27: return run(Float32{}, std::integral_constant<int, 3>{});
    case 28: return run(Float32{}, std::integral_constant<int, 4>{});
    default: return -2;
  }
}

// crc32 of crc.h, continued from an earlier piece. size: in 16s.
uint32_t crc_on(uint32_t crc, const uint8_t* data, int64_t size) {
#if defined(__PCLMUL__) && defined(__SSE4_1__)
  if (size >= 64) return crc_fold(crc, data, size);
#endif
  return crc_table(crc, data, size);
}

}  // namespace

extern "C" {

// Bytes of the body, or -2 for an unknown dtype or width. shape: n, fixed, raw. body: units * raw bytes at most.
int64_t abkt_lossless_encode(int64_t dtype, int64_t width, const Shape* shape, int64_t units, const void* data, const int64_t* starts, int64_t groups,
                          const uint8_t* bases, int64_t* sizes, uint8_t* body) {
  return with_layout(dtype, width, [&](auto e, auto w) { return encode_units<decltype(e), w.value>(*shape, units, data, starts, groups, bases, sizes, body); });
}

int64_t abkt_lossless_decode(int64_t dtype, int64_t width, const Shape* shape, int64_t units, void* data, const int64_t* starts, int64_t groups,
                          const uint8_t* bases, const int64_t* sizes, const uint8_t* body) {
  return with_layout(dtype, width, [&](auto e, auto w) { return decode_units<decltype(e), w.value>(*shape, units, data, starts, groups, bases, sizes, body); });
}

void abkt_lossless_checksums(int64_t units, int64_t fixed, const int64_t* sizes, const uint8_t* body, uint32_t* sums) {
  const uint8_t* tails = body + units * fixed;
  for (int64_t u = 0; u < units; u++) {
    const int64_t tail = sizes[u] - fixed;
    sums[u] = ~crc_on(crc_on(~0u, body + u * fixed, fixed), tails, tail);
    tails += tail;
  }
}

// How often each exponent occurs in each group: counts int64 [groups, 256], which start at 0.
void abkt_lossless_histograms(int64_t dtype, int64_t n, int64_t units, const void* data, const int64_t* starts, int64_t groups, int64_t* counts) {
  for (int64_t u = 0; u < units; u++) {
    uint32_t own[4][256] = {};  // four tables, since neighbouring values often increment the same count
    const auto tally = [&](const auto* x, int mantissa, int mask) { for (int64_t i = 0; i < n; i++) own[i & 3][(x[i] >> mantissa) & mask]++; };
    if (dtype == 0) tally(static_cast<const uint16_t*>(data) + starts[u], 7, 255);
    if (dtype == 1) tally(static_cast<const uint16_t*>(data) + starts[u], 10, 31);
    if (dtype == 2) tally(static_cast<const uint8_t*>(data) + starts[u], 3, 15);
    if (dtype == 3) tally(static_cast<const uint32_t*>(data) + starts[u], 23, 255);
    for (int e = 0; e < 256; e++) counts[u % groups * 256 + e] += int64_t(own[0][e]) + own[1][e] + own[2][e] + own[3][e];
  }
}
}
