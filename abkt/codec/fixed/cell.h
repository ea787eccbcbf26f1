// One cell: find it in the pool, find its extremes, code, measure and pack it; or unpack and restore it. Names and
// layouts as in quantize.py and cells.py.
#pragma once
#include <cmath>
#include <vector>

#include "lanes.h"
#include "planes.h"

namespace {

inline uint32_t bits_of(float x) { return load<uint32_t>(&x); }
inline float float_of(uint32_t u) { return load<float>(&u); }

struct Bf16 {
  typedef uint16_t T;
  static constexpr float LIMIT = 0x1p48f;
  static F get(const T* from) { return (F)(widen(from) << 16); }
  static U nearest(F v) { U u = (U)v; return u + 0x7fff + ((u >> 16) & 1); }  // ties to even; x is never NaN
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

struct Shape {  // as compiled.py fills it
  int64_t layers, kinds, kv_heads, parts, block_tokens, dim, tile_blocks, tiles, coded_blocks, depth_bits, passes;
  int64_t heads() const { return kv_heads * parts; }
  int64_t strips() const { return layers * kinds * heads(); }
  int64_t cells() const { return strips() * tiles; }
  int64_t row() const { return parts * dim; }
};

constexpr int BITS[] = {0, 1, 2, 3, 4, 6, 8};
constexpr float TINY = 0x1p-48f, MIN_STEP = 0x1p-64f, NO_STEP = 0x1p-72f;
constexpr int PASSES = 6, CLASSES = 16, VERBATIM = 255, NARROW_FROM = 3, MEASURED_WHOLE = 64;

struct Rules {  // the tables of quantize.py
  int32_t limits[CLASSES - 1];
  int32_t shares[CLASSES][PASSES + 1];
};

template <class E> struct Cell {
  typedef typename E::T T;
  const Shape shape;
  const Rules& rules;
  const int64_t dim;
  int64_t tokens = 0, eighth = 0;
  const float* centre = nullptr;  // of V's channels
  std::vector<T*> rows;
  std::vector<uint8_t> codes;
  std::vector<float> least, extent, low, step, inverse, sum, mean, channel_mean, scale, offset;
  std::vector<int32_t> code_sum, code_squares;
  std::vector<uint16_t> packed;
  std::vector<T> narrow_low;

  Cell(const Shape& s, const Rules& r) : shape(s), rules(r), dim(s.dim) {
    const int64_t most = s.tile_blocks * s.block_tokens, groups = most > dim ? most : dim;
    rows.resize(most), codes.resize((most + 7) / 8 * 8 * dim), packed.resize(groups), narrow_low.resize(groups);
    for (auto* v : {&least, &extent, &low, &step, &inverse, &sum, &mean, &channel_mean}) v->resize(groups);
    for (auto* v : {&scale, &offset}) v->resize((PASSES + 1) * groups);
    for (auto* v : {&code_sum, &code_squares}) v->resize(groups);
  }

  void find(T* pool, const int64_t* blocks, int64_t strip, int64_t tile) {
    const int64_t first = tile * shape.tile_blocks, left = shape.coded_blocks - first;
    const int64_t count = left < shape.tile_blocks ? left : shape.tile_blocks, piece = shape.block_tokens * shape.row();
    tokens = count * shape.block_tokens;
    eighth = (tokens + 7) / 8;
    for (int64_t b = 0, t = 0; b < count; b++) {
      T* base = pool + (blocks[first + b] * (shape.strips() / shape.parts) + strip / shape.parts) * piece + strip % shape.parts * dim;
      for (int64_t slot = 0; slot < shape.block_tokens; slot++) rows[t++] = base + slot * shape.row();
    }
  }

  int64_t groups(bool key) const { return key ? dim : tokens; }

  // Channel sums over the tokens; the least value and the range of every group. Returns false if the cell must travel verbatim.
  template <bool KEY> bool survey() {
    const int64_t dim = this->dim, tokens = this->tokens;  // locals: bytes written through a pointer may alias a member
    const T* const* row = rows.data();
    const float* middles = centre;
    float *sums = sum.data(), *lows = least.data(), *highs = extent.data();
    if (KEY) {
      for (int64_t c = 0; c < dim; c += LANES) {
        F all{}, lo = E::get(row[0] + c), hi = lo;
        for (int64_t t = 0; t < tokens; t++) {
          const F x = E::get(row[t] + c);
          all += x, lo = ::least(x, lo), hi = greatest(x, hi);
        }
        store(sums + c, all), store(lows + c, lo), store(highs + c, hi);
      }
    } else {
      for (int64_t c = 0; c < dim; c++) sums[c] = 0;
      for (int64_t t = 0; t < tokens; t++) {
        F lo = E::get(row[t]) - load<F>(middles), hi = lo;
        for (int64_t c = 0; c < dim; c += LANES) {
          const F x = E::get(row[t] + c), y = x - load<F>(middles + c);
          lo = ::least(y, lo), hi = greatest(y, hi);
          store(sums + c, load<F>(sums + c) + x);
        }
        lows[t] = across(lo, ::least), highs[t] = across(hi, greatest);
      }
    }
    int beyond = 0;
    for (int64_t c = 0; c < dim; c++) beyond |= !(sums[c] == sums[c]);  // a NaN may be lost in the extremes, but not in a sum
    float most = 0;
    for (int64_t g = 0; g < groups(KEY); g++) {
      beyond |= !(highs[g] < E::LIMIT) | !(lows[g] > -E::LIMIT);
      most = std::fmax(most, std::fmax(highs[g], -lows[g]));
    }
    beyond |= most > 0 && most < TINY;
    for (int64_t g = 0; g < groups(KEY); g++) {
      const float bottom = lows[g] + 0.0f;
      lows[g] = KEY ? bottom : E::wide(E::one(bottom - std::fabs(bottom) / 256));
      highs[g] -= lows[g];
    }
    return !beyond;
  }

  template <bool KEY> void settle(bool narrow) {  // offsets and steps
    const float outer = shape.depth_bits == 3 ? 1.0f / 32 : 1.0f / 8, inner = shape.depth_bits == 3 ? 0.0f : 1.0f / 32;
    for (int64_t g = 0; g < groups(KEY); g++) {
      const float margin = narrow ? extent[g] * outer - extent[g] * inner : 0;
      const float wide = (narrow ? extent[g] - 2 * margin : extent[g]) / 256;
      const float raised = wide > MIN_STEP ? wide : MIN_STEP;
      const float width = wide >= NO_STEP ? float_of((bits_of(raised) + (1u << 19) - 1) >> 19 << 19) : 0;
      const float inv = 1 / width;
      low[g] = narrow ? E::wide(E::one(least[g] + margin)) : least[g];
      step[g] = width, inverse[g] = width > 0 ? inv : 0;
    }
  }

  // Codes, and their sums and squared sums in each group; returns the squared deviation from the cell's own channel means.
  template <bool KEY> double code() {
    const int64_t dim = this->dim, tokens = this->tokens, next = shape.block_tokens * shape.row();  // where the next head's rows are
    const T* const* row = rows.data();
    const float *sums_of_channels = sum.data(), *lows = low.data(), *inverses = inverse.data(), *middles = centre;
    const float share = 1.0f / float(tokens);
    uint8_t* out = codes.data();
    F spread{};
    int32_t *sums = code_sum.data(), *squares = code_squares.data();
    const auto one = [](F x, F lo, F inv) { return to_int(::least(greatest((x - lo) * inv, F{}), splat(255))); };
    if (KEY) {
      for (int64_t c = 0; c < dim; c += LANES) {
        const F lo = load<F>(lows + c), inv = load<F>(inverses + c), mean = load<F>(sums_of_channels + c) * share;
        I all{}, squared{};
        for (int64_t t = 0; t < tokens; t++) {
          __builtin_prefetch(row[t] + next + c);
          const F x = E::get(row[t] + c), off = x - mean;
          const I code = one(x, lo, inv);
          spread += off * off;
          narrow(out + t * dim + c, code);
          all += code, squared += code * code;
        }
        store(sums + c, all), store(squares + c, squared);
      }
    } else {
      float* means = channel_mean.data();
      for (int64_t c = 0; c < dim; c++) means[c] = sums_of_channels[c] * share;
      for (int64_t t = 0; t < tokens; t++) {
        const F lo = splat(lows[t]), inv = splat(inverses[t]);
        I all{}, squared{};
        for (int64_t c = 0; c < dim; c += LANES) {
          __builtin_prefetch(row[t] + next + c);
          const F x = E::get(row[t] + c), off = x - load<F>(means + c);
          const I code = one(x - load<F>(middles + c), lo, inv);
          spread += off * off;
          narrow(out + t * dim + c, code);
          all += code, squared += code * code;
        }
        sums[t] = total(all), squares[t] = total(squared);
      }
    }
    return total(spread);
  }

  // The mean of every group, and the class of the cell's variance around them.
  template <bool KEY> int classify() {
    const int64_t size = KEY ? tokens : dim;
    int64_t squared = 0;
    for (int64_t g = 0; g < groups(KEY); g++) {
      const int64_t all = code_sum[g], sixteenth = (2 * all + size) / (32 * size), middle = sixteenth * 16 + 8;
      mean[g] = float(middle);
      squared += code_squares[g] - 2 * middle * all + size * middle * middle;
    }
    const int64_t variance = squared / (tokens * dim);
    int cell_class = 0;
    for (int i = 0; i < CLASSES - 1; i++) cell_class += variance < rules.limits[i];
    return cell_class;
  }

  void prepare(bool key, int cell_class, int first, int last) {  // x at pass p is low + (code with its low bits cleared * scale + offset)
    const int64_t count = groups(key);
    for (int p = first; p <= last; p++) {
      const float share = p ? float(rules.shares[cell_class][p]) / 32 : 1, half = p ? float(1 << (8 - BITS[p])) / 2 : 0;
      for (int64_t g = 0; g < count; g++) {
        const float own = step[g] * (1 - share);
        scale[p * count + g] = own;
        offset[p * count + g] = half * own + mean[g] * (step[g] * share);
      }
    }
  }

  // Squared errors after each pass, of the measured tokens (see quantize.py), scaled to all tokens by the square of their steps.
  template <bool KEY, int LAST> void measure(int part, double* left) {
    const int64_t dim = this->dim, count = groups(KEY);
    int64_t first = 0, stop = tokens;
    double factor = 1;
    if (tokens >= MEASURED_WHOLE) {
      const int64_t end = (part + 1) * eighth < tokens ? (part + 1) * eighth : tokens;
      double all = 0, chosen = 0;
      if (KEY) all = double(tokens), chosen = double(end - part * eighth);
      else
        for (int64_t t = 0; t < tokens; t++) {
          const double squared = double(step[t]) * step[t];
          all += squared, chosen += t >= part * eighth && t < end ? squared : 0;
        }
      if (chosen > 0) first = part * eighth, stop = end, factor = all / chosen;
    }
    F errors[LAST + 1]{};
    const T* const* row = rows.data();
    const uint8_t* code = codes.data();
    const float *lows = low.data(), *scales = scale.data(), *offsets = offset.data(), *middles = centre;
    const auto one = [&](F x, I coded, F middle, F lo, const F* a, const F* b) {
#pragma GCC unroll 8
      for (int p = 0; p <= LAST; p++) {
        const F guess = p ? lo + (to_float(coded & (0xff00 >> BITS[p] & 0xff)) * a[p] + b[p]) : lo + b[0];
        const F error = x - E::round(KEY ? guess : guess + middle);
        errors[p] += error * error;
      }
    };
    if (KEY) {
      for (int64_t c = 0; c < dim; c += LANES) {
        F a[LAST + 1], b[LAST + 1];
        for (int p = 0; p <= LAST; p++) a[p] = load<F>(scales + p * count + c), b[p] = load<F>(offsets + p * count + c);
        const F lo = load<F>(lows + c);
        for (int64_t t = first; t < stop; t++) one(E::get(row[t] + c), widen(code + t * dim + c), F{}, lo, a, b);
      }
    } else {
      for (int64_t t = first; t < stop; t++) {
        F a[LAST + 1], b[LAST + 1];
        for (int p = 0; p <= LAST; p++) a[p] = splat(scales[p * count + t]), b[p] = splat(offsets[p * count + t]);
        const F lo = splat(lows[t]);
        for (int64_t c = 0; c < dim; c += LANES) one(E::get(row[t] + c), widen(code + t * dim + c), load<F>(middles + c), lo, a, b);
      }
    }
    for (int p = 0; p <= LAST; p++) left[p] = factor * total(errors[p]);
  }

  void describe(bool key, uint8_t* slot, int64_t size) {  // metadata into its slot
    const int64_t count = groups(key);
    for (int64_t g = 0; g < count; g++) {
      packed[g] = uint16_t(bits_of(step[g]) >> 15 | uint32_t(mean[g]) >> 4);
      narrow_low[g] = E::one(low[g]);
    }
    std::memcpy(slot, narrow_low.data(), count * sizeof(T));
    std::memcpy(slot + count * sizeof(T), packed.data(), count * 2);
    std::memset(slot + count * (sizeof(T) + 2), 0, size - count * (sizeof(T) + 2));
  }

  void pack(uint8_t* const* slot, const int64_t* size, int passes) {
    const int64_t n = eighth * dim;
    std::memset(&codes[tokens * dim], 0, (8 * eighth - tokens) * dim);
    pack_planes(codes.data(), n, slot, passes);
    for (int p = 1; p <= passes; p++) {
      const int64_t used = n * (p > 4 ? 2 : 1);
      std::memset(slot[p] + used, 0, size[p] - used);
    }
  }

  template <bool KEY> void restore(const uint8_t* const* slot, int cell_class, int passes) {
    const int64_t dim = this->dim, tokens = this->tokens, count = groups(KEY);
    std::memcpy(narrow_low.data(), slot[0], count * sizeof(T));
    std::memcpy(packed.data(), slot[0] + count * sizeof(T), count * 2);
    for (int64_t g = 0; g < count; g++) {
      step[g] = float_of(uint32_t(packed[g] >> 4) << 19);
      low[g] = E::wide(narrow_low[g]), mean[g] = float((packed[g] & 15) * 16 + 8);
    }
    prepare(KEY, cell_class, passes, passes);
    if (passes) unpack_planes(slot, eighth * dim, codes.data(), passes);
    T* const* row = rows.data();
    const float *lows = low.data(), *scales = scale.data() + passes * count, *offsets = offset.data() + passes * count, *middles = centre;
    const uint8_t* code = codes.data();
    if (KEY) {
      for (int64_t c = 0; c < dim; c += LANES) {
        const F lo = load<F>(lows + c), a = load<F>(scales + c), b = load<F>(offsets + c);
        if (passes)
          for (int64_t t = 0; t < tokens; t++) E::put(row[t] + c, lo + (to_float(widen(code + t * dim + c)) * a + b));
        else
          for (int64_t t = 0; t < tokens; t++) E::put(row[t] + c, lo + b);
      }
    } else {
      for (int64_t t = 0; t < tokens; t++) {
        const F lo = splat(lows[t]), a = splat(scales[t]), b = splat(offsets[t]);
        for (int64_t c = 0; c < dim; c += LANES) {
          const F x = passes ? lo + (to_float(widen(code + t * dim + c)) * a + b) : lo + b;
          E::put(row[t] + c, x + load<F>(middles + c));
        }
      }
    }
  }
};

}  // namespace
