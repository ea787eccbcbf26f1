// The quantiser of quantize.py for one core: each cell is gathered, coded, measured and packed while it is in the first-level cache.
// Values equal the oracle's bit for bit (see there why); sums differ in their last digits. head_dim is a multiple of 16; the caller sees to that.
#include "fast_cell.h"
#include "fast_crc.h"

namespace {

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
  cell.template settle<KEY>();
  const double own = cell.template code<KEY, PASSES>(left);
  cell.template describe<KEY>(slot[0], size[0], left);
  cell.template pack<PASSES>(slot);
  spread.merge(cell.sum.data(), own, cell.tokens);
  return true;
}

template <class E> void encode(const Shape& shape, void* pool, const int64_t* blocks, const float* centres, const int64_t* offsets, const int64_t* sizes,
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
      cell.centre = centres + (strip / shape.heads / 2 * shape.heads + strip % shape.heads) * shape.dim;
      const bool key = strip / shape.heads % 2 == 0;
      const auto run = key ? (passes == 1 ? encode_cell<E, true, 1> : passes == 2 ? encode_cell<E, true, 2> : encode_cell<E, true, 3>)
                           : (passes == 1 ? encode_cell<E, false, 1> : passes == 2 ? encode_cell<E, false, 2> : encode_cell<E, false, 3>);
      exact[index] = !run(cell, slot, size, left, spread[strip]);
      for (int p = 0; p <= passes; p++) errors[p * cells + index] = left[p];
    }
  for (int64_t strip = 0; strip < shape.strips(); strip++) deviation[strip] = spread[strip].squares;
}

template <class E> void expand(const Shape& shape, void* pool, const int64_t* blocks, const float* centres, const int64_t* offsets, const uint8_t* wire,
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
      cell.centre = centres + (strip / shape.heads / 2 * shape.heads + strip % shape.heads) * shape.dim;
      typedef Cell<E> C;
      static constexpr void (C::*by_key[2][4])(const uint8_t* const*) = {
          {&C::template restore<true, 0>, &C::template restore<true, 1>, &C::template restore<true, 2>, &C::template restore<true, 3>},
          {&C::template restore<false, 0>, &C::template restore<false, 1>, &C::template restore<false, 2>, &C::template restore<false, 3>}};
      (cell.*by_key[strip / shape.heads % 2][passes])(slot);
    }
}

}  // namespace

extern "C" {

// dtype: 0 bfloat16, 1 float16, 2 float32. Arrays as in cells.py; errors and offsets [passes + 1, cells]; deviation [layers, 2, heads].
// centres: [layers, heads, dim], of V.
void abkt_encode(const int64_t* shape, int dtype, void* pool, const int64_t* blocks, const float* centres, const int64_t* offsets,
                 const int64_t* sizes, uint8_t* body, double* errors, uint8_t* exact, double* deviation) {
  const auto run = dtype == 0 ? encode<Bf16> : dtype == 1 ? encode<Fp16> : encode<Fp32>;
  run(*reinterpret_cast<const Shape*>(shape), pool, blocks, centres, offsets, sizes, body, errors, exact, deviation);
}

// present: [cells], passes of each cell that the wire holds beyond its metadata; -1 for cells that travelled exact.
void abkt_expand(const int64_t* shape, int dtype, void* pool, const int64_t* blocks, const float* centres, const int64_t* offsets,
                 const uint8_t* wire, const int8_t* present) {
  const auto run = dtype == 0 ? expand<Bf16> : dtype == 1 ? expand<Fp16> : expand<Fp32>;
  run(*reinterpret_cast<const Shape*>(shape), pool, blocks, centres, offsets, wire, present);
}

void abkt_checksums(const uint8_t* data, int64_t count, const int64_t* offsets, const int64_t* sizes, uint32_t* sums) {
  for (int64_t i = 0; i < count; i++) sums[i] = crc32(data + offsets[i], sizes[i]);
}
}
