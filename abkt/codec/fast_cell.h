// One cell: found in the pool, surveyed, coded, measured and packed, or unpacked and restored. Names and layouts as in quantize.py, cells.py.
#pragma once
#include <cmath>
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
  static constexpr float LIMIT = 0x1p14f;
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
  const float* centre = nullptr;  // of V's channels
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
    const float* middles = centre;
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
        F lo = E::get(row[t]) - load<F>(middles), hi = lo;
        for (int64_t c = 0; c < dim; c += LANES) {
          const F x = E::get(row[t] + c), y = x - load<F>(middles + c);
          lo = least(y, lo), hi = greatest(y, hi);
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

  template <bool KEY> void settle() {  // offsets and steps from the extremes
    float *lows = low.data(), *highs = high.data(), *steps = step.data(), *inverses = inverse.data();
    for (int64_t g = 0; g < (KEY ? dim : tokens); g++) {
      const float bottom = lows[g] + 0.0f, lo = KEY ? bottom : E::wide(E::one(bottom - std::fabs(bottom) / 256));
      const float wide = (highs[g] - lo) / 256;
      const float raised = wide > 0x1p-64f ? wide : 0x1p-64f;
      const float width = wide > 0 ? float_of((bits_of(raised) + (1u << 19) - 1) >> 19 << 19) : 0;
      const float inv = 1 / width;
      lows[g] = lo, steps[g] = width, inverses[g] = wide > 0 ? inv : 0;
    }
  }

  template <bool KEY, int PASSES> static I encode_lanes(F x, F mean, F middle, F lo, F inv, F width, F* errors, F& spread) {
    const F place = KEY ? (x - lo) * inv : greatest((x - middle - lo) * inv, F{});
    const I code = to_int(least(place, splat(255)));
    const F off = x - mean;
    spread += off * off;
    for (int p = 1; p <= PASSES; p++) {
      const F at = p < 3 ? to_float((code & cleared(p)) | int(half(p))) : to_float(code) + half(p);
      const F error = x - E::round(KEY ? lo + width * at : lo + width * at + middle);
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
    const float* middles = centre;
    uint8_t* out = codes.data();
    int32_t* code_sums = code_sum.data();
    const float share = 1.0f / float(tokens);
    if (KEY) {
      for (int64_t c = 0; c < dim; c += LANES) {
        const F mean = load<F>(sums + c) * share, lo = load<F>(lows + c), inv = load<F>(inverses + c), width = load<F>(steps + c);
        I all{};
        for (int64_t t = 0; t < tokens; t++) {
          __builtin_prefetch(row[t] + next + c);
          const I code = encode_lanes<KEY, PASSES>(E::get(row[t] + c), mean, F{}, lo, inv, width, errors, spread);
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
          const F x = E::get(row[t] + c), mean = load<F>(sums + c) * share;
          const I code = encode_lanes<KEY, PASSES>(x, mean, load<F>(middles + c), lo, inv, width, errors, spread);
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
    const float *lows = low.data(), *steps = step.data(), *middles = centre;
    float* guesses = middle.data();
    const int32_t* code_sums = code_sum.data();
    uint16_t* both = packed.data();
    T* narrowed = narrow_low.data();
    for (int64_t g = 0; g < groups; g++) {
      const int32_t mean = int32_t((2 * float(code_sums[g]) + members) / (32 * members));  // exact: see MAX_TILE_TOKENS
      both[g] = uint16_t(bits_of(steps[g]) >> 15 | uint32_t(mean));
      narrowed[g] = E::one(lows[g]);
      const float guess = lows[g] + steps[g] * float(mean * 16 + 8);
      guesses[g] = KEY ? E::wide(E::one(guess)) : guess;
    }
    std::memcpy(slot, narrowed, groups * sizeof(T));
    std::memcpy(slot + groups * sizeof(T), both, groups * 2);
    std::memset(slot + groups * (sizeof(T) + 2), 0, size - groups * (sizeof(T) + 2));
    F even{}, odd{};  // two chains, so that one need not wait for the other
    for (int64_t t = 0; t < tokens; t++) {
      F guess = splat(guesses[KEY ? 0 : t]);
      for (int64_t c = 0; c < dim; c += LANES) {
        if (KEY) guess = load<F>(guesses + c);
        const F error = E::get(row[t] + c) - (KEY ? guess : E::round(guess + load<F>(middles + c)));
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
    const float* middles = centre;
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
        const F x = PASSES ? lo + width * (to_float(widen(code + t * dim + c)) + half(PASSES)) : lo;
        E::put(row[t] + c, KEY ? x : x + load<F>(middles + c));
      }
    }
  }
};

}  // namespace
