// The quantiser of quantize.py for one core: each cell is gathered, coded, measured and packed while it is in the first-level cache.
// Values equal the oracle's bit for bit (see there why); sums differ in their last digits. head_dim is a multiple of 16; the caller sees to that.
#include <vector>

#include "fast_lanes.h"

namespace {

inline uint32_t bits_of(float x) { return load<uint32_t>(&x); }
inline float float_of(uint32_t u) { return load<float>(&u); }

struct Bf16 {
  typedef uint16_t T;
  static constexpr float LIMIT = 0x1p48f;
  static F get(const T* from) { return (F)(widen(from) << 16); }
  static U nearest(F v) { U u = (U)v; return u + 0x7fff + ((u >> 16) & 1); }  // ties to even; no NaN comes here
  static F round(F v) { return (F)(nearest(v) & 0xffff0000u); }
  static void put(T* to, F v) { narrow(to, nearest(v) >> 16); }
  static T one(float v) { const uint32_t u = bits_of(v); return T((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
  static float wide(T v) { return float_of(uint32_t(v) << 16); }
};

struct Fp16 {
  typedef _Float16 T;
  static constexpr float LIMIT = 0x1p15f;
  static F get(const T* from) { return widen(from); }
  static F round(F v) { return round_half(v); }
  static void put(T* to, F v) { narrow(to, v); }
  static T one(float v) { return T(v); }
  static float wide(T v) { return float(v); }
};

struct Fp32 {
  typedef float T;
  static constexpr float LIMIT = 0x1p48f;
  static F get(const T* from) { return load<F>(from); }
  static F round(F v) { return v; }
  static void put(T* to, F v) { store(to, v); }
  static T one(float v) { return v; }
  static float wide(T v) { return v; }
};

typedef uint64_t B __attribute__((vector_size(16)));  // 16 bytes; a shift crosses bytes, and the mask that follows undoes that
inline B every(uint8_t byte) { return B{} + 0x0101010101010101ull * byte; }

struct Shape {  // as fast.py fills it
  int64_t layers, heads, block_tokens, dim, tile_blocks, tiles, coded_blocks, passes;
  int64_t strips() const { return layers * 2 * heads; }
  int64_t cells() const { return strips() * tiles; }
};

constexpr int cleared(int pass) { return pass == 1 ? 0xc0 : pass == 2 ? 0xf0 : 0xff; }  // the bits of a code that are known
constexpr float half(int pass) { return pass == 1 ? 32 : pass == 2 ? 8 : 0.5f; }         // from there to the middle of the bin

template <class E> struct Cell {
  typedef typename E::T T;
  const Shape shape;
  const int64_t dim;
  int64_t tokens = 0, quarter = 0;
  std::vector<T*> rows;
  std::vector<uint8_t> codes;
  std::vector<float> low, high, step, inverse, sum, middle;
  std::vector<int32_t> code_sum;
  std::vector<uint16_t> packed;
  std::vector<T> narrow_low;

  explicit Cell(const Shape& s) : shape(s), dim(s.dim) {
    const int64_t most = s.tile_blocks * s.block_tokens, groups = most > dim ? most : dim;
    rows.resize(most), codes.resize((most + 3) / 4 * 4 * dim), code_sum.resize(groups), packed.resize(groups), narrow_low.resize(groups);
    for (auto* v : {&low, &high, &step, &inverse, &sum, &middle}) v->resize(groups);
  }

  void find(T* pool, const int64_t* blocks, int64_t strip, int64_t tile) {
    const int64_t first = tile * shape.tile_blocks, left = shape.coded_blocks - first;
    const int64_t count = left < shape.tile_blocks ? left : shape.tile_blocks, piece = shape.block_tokens * dim;
    tokens = count * shape.block_tokens;
    quarter = (tokens + 3) / 4;
    for (int64_t b = 0, t = 0; b < count; b++) {
      T* base = pool + (blocks[first + b] * shape.strips() + strip) * piece;
      for (int64_t slot = 0; slot < shape.block_tokens; slot++) rows[t++] = base + slot * dim;
    }
  }

  // Channel sums over the tokens, and the extremes of every group. False if the cell must travel exact.
  template <bool KEY> bool survey() {
    const int64_t dim = this->dim, tokens = this->tokens;  // bytes written through a pointer may alias a member, never a local
    const T* const* row = rows.data();
    float *sums = sum.data(), *lows = low.data(), *highs = high.data();
    if (KEY) {
      for (int64_t c = 0; c < dim; c += LANES) {
        F all{}, lo = E::get(row[0] + c), hi = lo;
        for (int64_t t = 0; t < tokens; t++) {
          const F x = E::get(row[t] + c);
          all += x, lo = least(x, lo), hi = greatest(x, hi);
        }
        store(sums + c, all), store(lows + c, lo), store(highs + c, hi);
      }
    } else {
      for (int64_t c = 0; c < dim; c++) sums[c] = 0;
      for (int64_t t = 0; t < tokens; t++) {
        F lo = E::get(row[t]), hi = lo;
        for (int64_t c = 0; c < dim; c += LANES) {
          const F x = E::get(row[t] + c);
          lo = least(x, lo), hi = greatest(x, hi);
          store(sums + c, load<F>(sums + c) + x);
        }
        lows[t] = across(lo, least), highs[t] = across(hi, greatest);
      }
    }
    int wild = 0;
    for (int64_t c = 0; c < dim; c++) wild |= !(sums[c] == sums[c]);  // a NaN may slip through the extremes, never through a sum
    for (int64_t g = 0; g < (KEY ? dim : tokens); g++) wild |= !(highs[g] < E::LIMIT) | !(lows[g] > -E::LIMIT);
    return !wild;
  }

  void settle(int64_t groups) {  // offsets and steps from the extremes
    float *lows = low.data(), *highs = high.data(), *steps = step.data(), *inverses = inverse.data();
    for (int64_t g = 0; g < groups; g++) {
      const float lo = lows[g] + 0.0f, wide = (highs[g] - lo) / 256;
      const float raised = wide > 0x1p-64f ? wide : 0x1p-64f;
      const float width = wide > 0 ? float_of((bits_of(raised) + (1u << 19) - 1) >> 19 << 19) : 0;
      const float inv = 1 / width;
      lows[g] = lo, steps[g] = width, inverses[g] = wide > 0 ? inv : 0;
    }
  }

  template <int PASSES> static I encode_lanes(F x, F mean, F lo, F inv, F width, F* errors, F& spread) {
    const I code = to_int(least((x - lo) * inv, splat(255)));
    const F off = x - mean;
    spread += off * off;
    for (int p = 1; p <= PASSES; p++) {
      const F middle = p < 3 ? to_float((code & cleared(p)) | int(half(p))) : to_float(code) + half(p);
      const F error = x - E::round(lo + width * middle);
      errors[p - 1] += error * error;
    }
    return code;
  }

  // Codes, squared errors of passes 1.., and the squared deviation from the cell's own channel means (returned).
  template <bool KEY, int PASSES> double code(double* left) {
    const int64_t dim = this->dim, tokens = this->tokens, next = shape.block_tokens * dim;  // where the next head's rows are
    F errors[PASSES]{}, spread{};
    const T* const* row = rows.data();
    const float *sums = sum.data(), *lows = low.data(), *inverses = inverse.data(), *steps = step.data();
    uint8_t* out = codes.data();
    int32_t* code_sums = code_sum.data();
    const float share = 1.0f / float(tokens);
    if (KEY) {
      for (int64_t c = 0; c < dim; c += LANES) {
        const F mean = load<F>(sums + c) * share, lo = load<F>(lows + c), inv = load<F>(inverses + c), width = load<F>(steps + c);
        I all{};
        for (int64_t t = 0; t < tokens; t++) {
          __builtin_prefetch(row[t] + next + c);
          const I code = encode_lanes<PASSES>(E::get(row[t] + c), mean, lo, inv, width, errors, spread);
          narrow(out + t * dim + c, code);
          all += code;
        }
        store(code_sums + c, all);
      }
    } else {
      for (int64_t t = 0; t < tokens; t++) {
        const F lo = splat(lows[t]), inv = splat(inverses[t]), width = splat(steps[t]);
        I all{};
        for (int64_t c = 0; c < dim; c += LANES) {
          __builtin_prefetch(row[t] + next + c);
          const I code = encode_lanes<PASSES>(E::get(row[t] + c), load<F>(sums + c) * share, lo, inv, width, errors, spread);
          narrow(out + t * dim + c, code);
          all += code;
        }
        code_sums[t] = total(all);
      }
    }
    for (int p = 0; p < PASSES; p++) left[p + 1] = total(errors[p]);
    return total(spread);
  }

  // Metadata into its slot, and the squared error at 0 bits.
  template <bool KEY> void describe(uint8_t* slot, int64_t size, double* left) {
    const int64_t dim = this->dim, tokens = this->tokens, groups = KEY ? dim : tokens;
    const float members = float(KEY ? tokens : dim);
    const T* const* row = rows.data();
    const float *lows = low.data(), *steps = step.data();
    float* guesses = middle.data();
    const int32_t* code_sums = code_sum.data();
    uint16_t* both = packed.data();
    T* narrowed = narrow_low.data();
    for (int64_t g = 0; g < groups; g++) {
      const int32_t mean = int32_t((2 * float(code_sums[g]) + members) / (32 * members));  // exact: see Codec's limits
      both[g] = uint16_t(bits_of(steps[g]) >> 15 | uint32_t(mean));
      narrowed[g] = E::one(lows[g]);
      guesses[g] = E::wide(E::one(lows[g] + steps[g] * float(mean * 16 + 8)));
    }
    std::memcpy(slot, narrowed, groups * sizeof(T));
    std::memcpy(slot + groups * sizeof(T), both, groups * 2);
    std::memset(slot + groups * (sizeof(T) + 2), 0, size - groups * (sizeof(T) + 2));
    F even{}, odd{};  // two chains, so that one need not wait for the other
    for (int64_t t = 0; t < tokens; t++) {
      F guess = splat(guesses[KEY ? 0 : t]);
      for (int64_t c = 0; c < dim; c += LANES) {
        if (KEY) guess = load<F>(guesses + c);
        const F error = E::get(row[t] + c) - guess;
        F& errors = c / LANES % 2 ? odd : even;
        errors += error * error;
      }
    }
    left[0] = total(even + odd);
  }

  template <int PASSES> void pack(uint8_t* const* slot) {
    const int64_t n = quarter * dim;
    std::memset(&codes[tokens * dim], 0, (4 * quarter - tokens) * dim);
    const uint8_t *q0 = codes.data(), *q1 = q0 + n, *q2 = q1 + n, *q3 = q2 + n;
    uint8_t *__restrict first = slot[1], *__restrict second = PASSES > 1 ? slot[2] : nullptr, *__restrict third = PASSES > 2 ? slot[3] : nullptr;
    for (int64_t i = 0; i < n; i += 16) {
      const B a = load<B>(q0 + i), b = load<B>(q1 + i), c = load<B>(q2 + i), d = load<B>(q3 + i);
      store(first + i, (a >> 6 & every(0x03)) | (b >> 4 & every(0x0c)) | (c >> 2 & every(0x30)) | (d & every(0xc0)));
      if (PASSES > 1) store(second + i, (a >> 4 & every(0x03)) | (b >> 2 & every(0x0c)) | (c & every(0x30)) | (d << 2 & every(0xc0)));
      if (PASSES > 2) store(third + i, (a & every(0x0f)) | (c << 4 & every(0xf0)));
      if (PASSES > 2) store(third + n + i, (b & every(0x0f)) | (d << 4 & every(0xf0)));
    }
  }

  template <int PASSES> void unpack(const uint8_t* const* slot) {
    const int64_t n = quarter * dim;
    uint8_t *__restrict q0 = codes.data(), *__restrict q1 = q0 + n, *__restrict q2 = q1 + n, *__restrict q3 = q2 + n;
    const uint8_t *first = slot[1], *second = PASSES > 1 ? slot[2] : nullptr, *third = PASSES > 2 ? slot[3] : nullptr;
    for (int64_t i = 0; i < n; i += 16) {
      const B top = load<B>(first + i);
      B a = top << 6 & every(0xc0), b = top << 4 & every(0xc0), c = top << 2 & every(0xc0), d = top & every(0xc0);
      if (PASSES > 1) {
        const B next = load<B>(second + i);
        a |= next << 4 & every(0x30), b |= next << 2 & every(0x30), c |= next & every(0x30), d |= next >> 2 & every(0x30);
      }
      if (PASSES > 2) {
        const B ac = load<B>(third + i), bd = load<B>(third + n + i);
        a |= ac & every(0x0f), b |= bd & every(0x0f), c |= ac >> 4 & every(0x0f), d |= bd >> 4 & every(0x0f);
      }
      store(q0 + i, a), store(q1 + i, b), store(q2 + i, c), store(q3 + i, d);
    }
  }

  template <bool KEY, int PASSES> void restore(const uint8_t* const* slot) {
    const int64_t dim = this->dim, tokens = this->tokens, groups = KEY ? dim : tokens;
    T *const *row = rows.data(), *narrowed = narrow_low.data();
    float *lows = low.data(), *steps = step.data();
    uint16_t* both = packed.data();
    std::memcpy(narrowed, slot[0], groups * sizeof(T));
    std::memcpy(both, slot[0] + groups * sizeof(T), groups * 2);
    for (int64_t g = 0; g < groups; g++) {
      steps[g] = float_of(uint32_t(both[g] >> 4) << 19);
      lows[g] = E::wide(narrowed[g]) + (PASSES ? 0 : steps[g] * float((both[g] & 15) * 16 + 8));
    }
    if (PASSES) unpack<PASSES>(slot);
    const uint8_t* code = codes.data();
    for (int64_t t = 0; t < tokens; t++) {
      F lo = splat(lows[KEY ? 0 : t]), width = splat(steps[KEY ? 0 : t]);
      for (int64_t c = 0; c < dim; c += LANES) {
        if (KEY) lo = load<F>(lows + c), width = load<F>(steps + c);
        E::put(row[t] + c, PASSES ? lo + width * (to_float(widen(code + t * dim + c)) + half(PASSES)) : lo);
      }
    }
  }
};

// Deviation from channel means over all tiles of a strip, merged tile by tile (Chan, Golub, LeVeque 1983).
struct Spread {
  int64_t tokens = 0;
  double squares = 0;
  std::vector<double> mean;
  void merge(const float* sum, double own, int64_t count) {
    const double both = double(tokens + count), share = count / both, weight = double(tokens) * count / both;
    double moved = 0;
    for (size_t c = 0; c < mean.size(); c++) {
      const double delta = double(sum[c]) / count - mean[c];
      mean[c] += delta * share;
      moved += delta * delta;
    }
    squares += own + moved * weight;
    tokens += count;
  }
};

template <class E, bool KEY, int PASSES> bool encode_cell(Cell<E>& cell, uint8_t* const* slot, const int64_t* size, double* left, Spread& spread) {
  if (!cell.template survey<KEY>()) {
    for (int p = 0; p <= PASSES; p++) std::memset(slot[p], 0, size[p]), left[p] = 0;
    return false;
  }
  cell.settle(KEY ? cell.dim : cell.tokens);
  const double own = cell.template code<KEY, PASSES>(left);
  cell.template describe<KEY>(slot[0], size[0], left);
  cell.template pack<PASSES>(slot);
  spread.merge(cell.sum.data(), own, cell.tokens);
  return true;
}

template <class E> void encode(const Shape& shape, void* pool, const int64_t* blocks, const int64_t* offsets, const int64_t* sizes,
                               uint8_t* body, double* errors, uint8_t* exact, double* deviation) {
  Cell<E> cell(shape);
  std::vector<Spread> spread(shape.strips());
  for (auto& s : spread) s.mean.resize(shape.dim);
  const int passes = int(shape.passes);
  const int64_t cells = shape.cells();
  for (int64_t tile = 0; tile < shape.tiles; tile++)  // a block is read from its first byte to its last before the next tile begins
    for (int64_t strip = 0; strip < shape.strips(); strip++) {
      const int64_t index = strip * shape.tiles + tile;
      uint8_t* slot[4];
      int64_t size[4];
      double left[4];
      for (int p = 0; p <= passes; p++) slot[p] = body + offsets[p * cells + index], size[p] = sizes[p * cells + index];
      cell.find(static_cast<typename E::T*>(pool), blocks, strip, tile);
      const bool key = strip / shape.heads % 2 == 0;
      const auto run = key ? (passes == 1 ? encode_cell<E, true, 1> : passes == 2 ? encode_cell<E, true, 2> : encode_cell<E, true, 3>)
                           : (passes == 1 ? encode_cell<E, false, 1> : passes == 2 ? encode_cell<E, false, 2> : encode_cell<E, false, 3>);
      exact[index] = !run(cell, slot, size, left, spread[strip]);
      for (int p = 0; p <= passes; p++) errors[p * cells + index] = left[p];
    }
  for (int64_t strip = 0; strip < shape.strips(); strip++) deviation[strip] = spread[strip].squares;
}

template <class E> void expand(const Shape& shape, void* pool, const int64_t* blocks, const int64_t* offsets, const uint8_t* wire,
                               const int8_t* present) {
  Cell<E> cell(shape);
  const int64_t cells = shape.cells();
  for (int64_t tile = 0; tile < shape.tiles; tile++)
    for (int64_t strip = 0; strip < shape.strips(); strip++) {
      const int64_t index = strip * shape.tiles + tile;
      const int passes = present[index];
      if (passes < 0) continue;
      const uint8_t* slot[4];
      for (int p = 0; p <= passes; p++) slot[p] = wire + offsets[p * cells + index];
      cell.find(static_cast<typename E::T*>(pool), blocks, strip, tile);
      typedef Cell<E> C;
      static constexpr void (C::*by_key[2][4])(const uint8_t* const*) = {
          {&C::template restore<true, 0>, &C::template restore<true, 1>, &C::template restore<true, 2>, &C::template restore<true, 3>},
          {&C::template restore<false, 0>, &C::template restore<false, 1>, &C::template restore<false, 2>, &C::template restore<false, 3>}};
      (cell.*by_key[strip / shape.heads % 2][passes])(slot);
    }
}

// CRC-32 (IEEE 802.3, as zlib.crc32).
struct Tables {
  uint32_t at[8][256];
  Tables() {
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
      at[0][i] = c;
    }
    for (int k = 1; k < 8; k++)
      for (int i = 0; i < 256; i++) at[k][i] = at[k - 1][i] >> 8 ^ at[0][at[k - 1][i] & 255];
  }
};

uint32_t crc_table(uint32_t crc, const uint8_t* data, int64_t size) {
  static const Tables t;
  for (; size >= 8; data += 8, size -= 8) {
    const uint64_t w = load<uint64_t>(data) ^ crc;
    crc = t.at[7][w & 255] ^ t.at[6][w >> 8 & 255] ^ t.at[5][w >> 16 & 255] ^ t.at[4][w >> 24 & 255] ^ t.at[3][w >> 32 & 255] ^
          t.at[2][w >> 40 & 255] ^ t.at[1][w >> 48 & 255] ^ t.at[0][w >> 56];
  }
  for (; size > 0; data++, size--) crc = crc >> 8 ^ t.at[0][(crc ^ *data) & 255];
  return crc;
}

#if defined(__PCLMUL__) && defined(__SSE4_1__)
inline __m128i fold(__m128i x, __m128i k, __m128i next) {
  return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next);
}

// Folding by carry-less multiplication (Gopal et al., Intel 2009; reflected constants), 64 bytes a step. size: 64 or more, in 16s.
uint32_t crc_fold(uint32_t crc, const uint8_t* data, int64_t size) {
  const __m128i by64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), by16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
  const __m128i by8 = _mm_set_epi64x(0, 0x0163cd6124), barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641);
  const __m128i low = _mm_setr_epi32(~0, 0, ~0, 0);
  const auto* p = reinterpret_cast<const __m128i*>(data);
  __m128i x[4];
  for (int i = 0; i < 4; i++) x[i] = _mm_loadu_si128(p++);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128(int(crc)));
  for (size -= 64; size >= 64; size -= 64)
    for (int i = 0; i < 4; i++) x[i] = fold(x[i], by64, _mm_loadu_si128(p++));
  __m128i y = x[0];
  for (int i = 1; i < 4; i++) y = fold(y, by16, x[i]);
  for (; size >= 16; size -= 16) y = fold(y, by16, _mm_loadu_si128(p++));
  y = _mm_xor_si128(_mm_srli_si128(y, 8), _mm_clmulepi64_si128(y, by16, 0x10));
  y = _mm_xor_si128(_mm_srli_si128(y, 4), _mm_clmulepi64_si128(_mm_and_si128(y, low), by8, 0x00));
  __m128i z = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(y, low), barrett, 0x10), low);
  return uint32_t(_mm_extract_epi32(_mm_xor_si128(y, _mm_clmulepi64_si128(z, barrett, 0x00)), 1));
}
#endif

uint32_t crc32(const uint8_t* data, int64_t size) {
  uint32_t crc = ~0u;
#if defined(__PCLMUL__) && defined(__SSE4_1__)
  if (size >= 64) {
    const int64_t whole = size / 16 * 16;
    crc = crc_fold(crc, data, whole);
    data += whole, size -= whole;
  }
#endif
  return ~crc_table(crc, data, size);
}

}  // namespace

extern "C" {

// dtype: 0 bfloat16, 1 float16, 2 float32. Arrays as in cells.py; errors and offsets [passes + 1, cells]; deviation [layers, 2, heads].
void abkt_encode(const int64_t* shape, int dtype, void* pool, const int64_t* blocks, const int64_t* offsets, const int64_t* sizes, uint8_t* body,
                 double* errors, uint8_t* exact, double* deviation) {
  const auto run = dtype == 0 ? encode<Bf16> : dtype == 1 ? encode<Fp16> : encode<Fp32>;
  run(*reinterpret_cast<const Shape*>(shape), pool, blocks, offsets, sizes, body, errors, exact, deviation);
}

// present: [cells], passes of each cell that the wire holds beyond its metadata; -1 for cells that travelled exact.
void abkt_expand(const int64_t* shape, int dtype, void* pool, const int64_t* blocks, const int64_t* offsets, const uint8_t* wire,
                 const int8_t* present) {
  const auto run = dtype == 0 ? expand<Bf16> : dtype == 1 ? expand<Fp16> : expand<Fp32>;
  run(*reinterpret_cast<const Shape*>(shape), pool, blocks, offsets, wire, present);
}

void abkt_checksums(const uint8_t* data, int64_t count, const int64_t* offsets, const int64_t* sizes, uint32_t* sums) {
  for (int64_t i = 0; i < count; i++) sums[i] = crc32(data + offsets[i], sizes[i]);
}
}
