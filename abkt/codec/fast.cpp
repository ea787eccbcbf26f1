// The quantiser of quantize.py for one core: each cell is gathered, coded, measured and packed while it is in the first-level cache.
// Values equal the oracle's bit for bit (see there why); sums differ in their last digits. Vectors are GCC's portable ones: 16 lanes are
// one AVX-512 register, two of AVX2 or four of NEON. head_dim is a multiple of 16; the caller sees to that.
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__PCLMUL__) && defined(__SSE4_1__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef uint8_t U8 __attribute__((vector_size(16)));
typedef _Float16 H16 __attribute__((vector_size(32)));

template <class V> inline V load(const void* from) { V v; std::memcpy(&v, from, sizeof v); return v; }
template <class V> inline void store(void* to, V v) { std::memcpy(to, &v, sizeof v); }
inline F splat(float x) { return F{} + x; }
inline F least(F a, F b) { return a < b ? a : b; }
inline F greatest(F a, F b) { return a > b ? a : b; }
inline uint32_t bits_of(float x) { uint32_t u; std::memcpy(&u, &x, 4); return u; }
inline float float_of(uint32_t u) { float x; std::memcpy(&x, &u, 4); return x; }
inline double total(F v) { double sum = 0; for (int i = 0; i < LANES; i++) sum += v[i]; return sum; }

template <class G> inline float across(F v, G better) {
  v = better(v, __builtin_shuffle(v, I{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
  v = better(v, __builtin_shuffle(v, I{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
  v = better(v, __builtin_shuffle(v, I{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
  v = better(v, __builtin_shuffle(v, I{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
  return v[0];
}

struct Bf16 {
  typedef uint16_t T;
  static constexpr float LIMIT = 0x1p48f;
  static F get(const T* from) { return (F)(__builtin_convertvector(load<U16>(from), U) << 16); }
  static U nearest(F v) { U u = (U)v; return u + 0x7fff + ((u >> 16) & 1); }  // ties to even; no NaN comes here
  static F round(F v) { return (F)(nearest(v) & 0xffff0000u); }
  static void put(T* to, F v) { store(to, __builtin_convertvector(nearest(v) >> 16, U16)); }
  static T narrow(float v) { uint32_t u = bits_of(v); return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
  static float widen(T v) { return float_of(uint32_t(v) << 16); }
};

struct Fp16 {
  typedef _Float16 T;
  static constexpr float LIMIT = 0x1p15f;
  static F get(const T* from) { return __builtin_convertvector(load<H16>(from), F); }
  static F round(F v) { return __builtin_convertvector(__builtin_convertvector(v, H16), F); }
  static void put(T* to, F v) { store(to, __builtin_convertvector(v, H16)); }
  static T narrow(float v) { return T(v); }
  static float widen(T v) { return float(v); }
};

struct Fp32 {
  typedef float T;
  static constexpr float LIMIT = 0x1p48f;
  static F get(const T* from) { return load<F>(from); }
  static F round(F v) { return v; }
  static void put(T* to, F v) { store(to, v); }
  static T narrow(float v) { return v; }
  static float widen(T v) { return v; }
};

struct Shape {  // as fast.py fills it
  int64_t layers, heads, block_tokens, dim, tile_blocks, tiles, coded_blocks, passes;
  int64_t strips() const { return layers * 2 * heads; }
  int64_t cells() const { return strips() * tiles; }
};

template <class E> struct Cell {
  typedef typename E::T T;
  const Shape shape;
  const int64_t dim, tile_tokens;
  int64_t tokens = 0, quarter = 0;
  std::vector<T*> rows;
  std::vector<uint8_t> codes;
  std::vector<float> low, inverse, step, high, sum, middle;
  std::vector<int32_t> code_sum;

  explicit Cell(const Shape& s)
      : shape(s), dim(s.dim), tile_tokens(s.tile_blocks * s.block_tokens), rows(tile_tokens), codes((tile_tokens + 3) / 4 * 4 * dim) {
    const int64_t groups = tile_tokens > dim ? tile_tokens : dim;
    for (auto* v : {&low, &inverse, &step, &high, &sum, &middle}) v->resize(groups);
    code_sum.resize(groups);
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

  // Sums over the tokens, and the extremes of every group. False if the cell must travel exact.
  template <bool KEY> bool survey() {
    bool tame = true;
    for (int64_t c = 0; c < dim; c += LANES) {
      F all{}, lo = E::get(rows[0] + c), hi = lo;
      for (int64_t t = 0; t < tokens; t++) {
        const F x = E::get(rows[t] + c);
        all += x;
        if (KEY) lo = least(x, lo), hi = greatest(x, hi);
      }
      store(&sum[c], all);
      if (KEY) store(&low[c], lo), store(&high[c], hi);
    }
    if (!KEY)
      for (int64_t t = 0; t < tokens; t++) {
        F lo = E::get(rows[t]), hi = lo;
        for (int64_t c = LANES; c < dim; c += LANES) {
          const F x = E::get(rows[t] + c);
          lo = least(x, lo), hi = greatest(x, hi);
        }
        low[t] = across(lo, least), high[t] = across(hi, greatest);
      }
    for (int64_t c = 0; c < dim; c++) tame &= sum[c] == sum[c];  // a NaN may slip through the extremes, never through a sum
    for (int64_t g = 0; g < (KEY ? dim : tokens); g++) tame &= high[g] < E::LIMIT && low[g] > -E::LIMIT;
    return tame;
  }

  void settle(int64_t groups) {  // offsets and steps from the extremes
    for (int64_t g = 0; g < groups; g++) {
      const float lo = low[g] + 0.0f, wide = (high[g] - lo) / 256;
      const float raised = wide > 0 ? (wide > 0x1p-64f ? wide : 0x1p-64f) : 0;
      low[g] = lo;
      step[g] = float_of((bits_of(raised) + (1u << 19) - 1) >> 19 << 19);
      inverse[g] = step[g] > 0 ? 1 / step[g] : 0;
    }
  }

  // Codes, squared errors of passes 1.., and the squared deviation from the cell's own channel means (returned).
  template <bool KEY, int PASSES> double code(double* left) {
    F errors[PASSES]{}, spread{};
    const float inverse_tokens = 1.0f / float(tokens);
    for (int64_t c = 0; c < dim; c += LANES) {
      const F mean = load<F>(&sum[c]) * inverse_tokens;
      F lo, inv, width;
      if (KEY) lo = load<F>(&low[c]), inv = load<F>(&inverse[c]), width = load<F>(&step[c]);
      I codes_sum{};
      for (int64_t t = 0; t < tokens; t++) {
        if (!KEY) lo = splat(low[t]), inv = splat(inverse[t]), width = splat(step[t]);
        const F x = E::get(rows[t] + c);
        I code = __builtin_convertvector((x - lo) * inv, I);
        code = code < 255 ? code : 255;
        store(&codes[t * dim + c], __builtin_convertvector(code, U8));
        if (KEY) codes_sum += code;
        const F off = x - mean;
        spread += off * off;
        for (int p = 0; p < PASSES; p++) {
          const int cleared = p == 0 ? 0xc0 : p == 1 ? 0xf0 : 0xff;
          const float half = p == 0 ? 32 : p == 1 ? 8 : 0.5f;
          const F error = x - E::round(lo + width * (__builtin_convertvector(code & cleared, F) + half));
          errors[p] += error * error;
        }
      }
      if (KEY) store(&code_sum[c], codes_sum);
    }
    if (!KEY)
      for (int64_t t = 0; t < tokens; t++) {
        int32_t row = 0;
        for (int64_t c = 0; c < dim; c++) row += codes[t * dim + c];
        code_sum[t] = row;
      }
    for (int p = 0; p < PASSES; p++) left[p + 1] = total(errors[p]);
    return total(spread);
  }

  // Metadata into its slot, and the squared error at 0 bits.
  template <bool KEY> void describe(uint8_t* slot, int64_t size, double* left) {
    const int64_t groups = KEY ? dim : tokens, members = KEY ? tokens : dim;
    uint8_t* packed = slot + groups * sizeof(T);
    for (int64_t g = 0; g < groups; g++) {
      const uint32_t mean = uint32_t((2 * code_sum[g] + members) / (32 * members));
      const T narrow = E::narrow(low[g]);
      const uint16_t both = uint16_t(bits_of(step[g]) >> 15 | mean);
      std::memcpy(slot + g * sizeof(T), &narrow, sizeof(T));
      std::memcpy(packed + g * 2, &both, 2);
      middle[g] = E::widen(E::narrow(low[g] + step[g] * float(mean * 16 + 8)));
    }
    std::memset(packed + groups * 2, 0, size - groups * (sizeof(T) + 2));
    F errors{};
    for (int64_t c = 0; c < dim; c += LANES) {
      F guess = load<F>(&middle[KEY ? c : 0]);
      for (int64_t t = 0; t < tokens; t++) {
        if (!KEY) guess = splat(middle[t]);
        const F error = E::get(rows[t] + c) - guess;
        errors += error * error;
      }
    }
    left[0] = total(errors);
  }

  static uint64_t every(uint8_t byte) { return 0x0101010101010101ull * byte; }

  void pack(uint8_t* const* slot, int passes) {
    const int64_t n = quarter * dim;
    std::memset(&codes[tokens * dim], 0, (4 * quarter - tokens) * dim);
    const uint8_t *q0 = codes.data(), *q1 = q0 + n, *q2 = q1 + n, *q3 = q2 + n;
    for (int64_t i = 0; i < n; i += 8) {
      const uint64_t a = load<uint64_t>(q0 + i), b = load<uint64_t>(q1 + i), c = load<uint64_t>(q2 + i), d = load<uint64_t>(q3 + i);
      store(slot[1] + i, (a >> 6 & every(0x03)) | (b >> 4 & every(0x0c)) | (c >> 2 & every(0x30)) | (d & every(0xc0)));
      if (passes < 2) continue;
      store(slot[2] + i, (a >> 4 & every(0x03)) | (b >> 2 & every(0x0c)) | (c & every(0x30)) | (d << 2 & every(0xc0)));
      if (passes < 3) continue;
      store(slot[3] + i, (a & every(0x0f)) | (c << 4 & every(0xf0)));
      store(slot[3] + n + i, (b & every(0x0f)) | (d << 4 & every(0xf0)));
    }
  }

  void unpack(const uint8_t* const* slot, int passes) {
    const int64_t n = quarter * dim;
    uint8_t *q0 = codes.data(), *q1 = q0 + n, *q2 = q1 + n, *q3 = q2 + n;
    for (int64_t i = 0; i < n; i += 8) {
      const uint64_t top = load<uint64_t>(slot[1] + i);
      uint64_t a = top << 6 & every(0xc0), b = top << 4 & every(0xc0), c = top << 2 & every(0xc0), d = top & every(0xc0);
      if (passes > 1) {
        const uint64_t next = load<uint64_t>(slot[2] + i);
        a |= next << 4 & every(0x30), b |= next << 2 & every(0x30), c |= next & every(0x30), d |= next >> 2 & every(0x30);
      }
      if (passes > 2) {
        const uint64_t ac = load<uint64_t>(slot[3] + i), bd = load<uint64_t>(slot[3] + n + i);
        a |= ac & every(0x0f), b |= bd & every(0x0f), c |= ac >> 4 & every(0x0f), d |= bd >> 4 & every(0x0f);
      }
      store(q0 + i, a), store(q1 + i, b), store(q2 + i, c), store(q3 + i, d);
    }
  }

  template <bool KEY> void restore(const uint8_t* const* slot, int passes) {
    const int64_t groups = KEY ? dim : tokens;
    const float half = passes == 1 ? 32 : passes == 2 ? 8 : 0.5f;
    for (int64_t g = 0; g < groups; g++) {
      T narrow;
      uint16_t both;
      std::memcpy(&narrow, slot[0] + g * sizeof(T), sizeof(T));
      std::memcpy(&both, slot[0] + groups * sizeof(T) + g * 2, 2);
      step[g] = float_of(uint32_t(both >> 4) << 19);
      low[g] = E::widen(narrow) + (passes ? 0 : step[g] * float((both & 15) * 16 + 8));
    }
    if (passes) unpack(slot, passes);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t c = 0; c < dim; c += LANES) {
        F x = KEY ? load<F>(&low[c]) : splat(low[t]);
        if (passes) {
          const F width = KEY ? load<F>(&step[c]) : splat(step[t]);
          x += width * (__builtin_convertvector(__builtin_convertvector(load<U8>(&codes[t * dim + c]), I), F) + half);
        }
        E::put(rows[t] + c, x);
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
  cell.pack(slot, PASSES);
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
      if (strip / shape.heads % 2 == 0) cell.template restore<true>(slot, passes);
      else cell.template restore<false>(slot, passes);
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
