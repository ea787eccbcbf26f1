// The quantiser of quantize.py for one core: each cell is gathered, coded, measured and packed while it is in the first-level cache.
// Values equal the oracle's bit for bit (quantize.py says why); sums differ in their last digits. The caller ensures that head_dim is a
// multiple of 16.
#include "cell.h"
#include "crc.h"

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

template <class E, bool KEY>
int encode_cell(Cell<E>& cell, int part, uint8_t* const* slot, const int64_t* size, double* left, Spread& spread) {
  const int passes = int(cell.shape.passes);
  if (!cell.template survey<KEY>()) {
    for (int p = 0; p <= passes; p++) std::memset(slot[p], 0, size[p]), left[p] = 0;
    return VERBATIM;
  }
  cell.template settle<KEY>(false);
  const double own = cell.template code<KEY>();
  int cell_class = cell.template classify<KEY>();
  if (passes <= 3 && cell_class >= NARROW_FROM) {
    cell.template settle<KEY>(true);
    cell.template code<KEY>();
    cell_class = cell.template classify<KEY>();
  }
  cell.prepare(KEY, cell_class, 0, passes);
  typedef Cell<E> C;
  static constexpr void (C::*by_depth[])(int, double*) = {&C::template measure<KEY, 1>, &C::template measure<KEY, 2>, &C::template measure<KEY, 3>,
                                                       &C::template measure<KEY, 4>, &C::template measure<KEY, 5>, &C::template measure<KEY, 6>};
  (cell.*by_depth[passes - 1])(part, left);
  cell.describe(KEY, slot[0], size[0]);
  cell.pack(slot, size, passes);
  spread.merge(cell.sum.data(), own, cell.tokens);
  return cell_class;
}

template <class E> void encode(const Shape& shape, const Rules& rules, void* pool, const int64_t* blocks, const float* centres, const int64_t* offsets,
                               const int64_t* sizes, uint8_t* body, double* errors, uint8_t* classes, double* deviation) {
  Cell<E> cell(shape, rules);
  std::vector<Spread> spread(shape.strips());
  for (auto& s : spread) s.mean.resize(shape.dim);
  const int passes = int(shape.passes);
  const int64_t cells = shape.cells(), heads = shape.heads();
  for (int64_t tile = 0; tile < shape.tiles; tile++)  // tile by tile, so that each block is read once from its first byte to its last
    for (int64_t strip = 0; strip < shape.strips(); strip++) {
      const int64_t index = strip * shape.tiles + tile;
      uint8_t* slot[PASSES + 1];
      int64_t size[PASSES + 1];
      double left[PASSES + 1];
      for (int p = 0; p <= passes; p++) slot[p] = body + offsets[p * cells + index], size[p] = sizes[p * cells + index];
      cell.find(static_cast<typename E::T*>(pool), blocks, strip, tile);
      cell.centre = centres + (strip / heads / shape.kinds * heads + strip % heads) * shape.dim;
      const bool key = strip / heads % shape.kinds == 0;
      classes[index] = uint8_t((key ? encode_cell<E, true> : encode_cell<E, false>)(cell, int((strip + tile) % 8), slot, size, left, spread[strip]));
      for (int p = 0; p <= passes; p++) errors[p * cells + index] = left[p];
    }
  for (int64_t strip = 0; strip < shape.strips(); strip++) deviation[strip] = spread[strip].squares;
}

template <class E> void expand(const Shape& shape, const Rules& rules, void* pool, const int64_t* blocks, const float* centres, const int64_t* offsets,
                               const uint8_t* wire, const int8_t* present, const uint8_t* classes) {
  Cell<E> cell(shape, rules);
  const int64_t cells = shape.cells(), heads = shape.heads();
  for (int64_t tile = 0; tile < shape.tiles; tile++)
    for (int64_t strip = 0; strip < shape.strips(); strip++) {
      const int64_t index = strip * shape.tiles + tile;
      if (classes[index] == VERBATIM) continue;
      const uint8_t* slot[PASSES + 1];
      for (int p = 0; p <= present[index]; p++) slot[p] = wire + offsets[p * cells + index];
      cell.find(static_cast<typename E::T*>(pool), blocks, strip, tile);
      cell.centre = centres + (strip / heads / shape.kinds * heads + strip % heads) * shape.dim;
      if (strip / heads % shape.kinds == 0) cell.template restore<true>(slot, classes[index], present[index]);
      else cell.template restore<false>(slot, classes[index], present[index]);
    }
}

}  // namespace

extern "C" {

// dtype: 0 bfloat16, 1 float16, 2 float32. Arrays as in cells.py and backend.py; rules: as quantize.py has them.
void abkt_encode(const int64_t* shape, const int32_t* rules, int dtype, void* pool, const int64_t* blocks, const float* centres,
                 const int64_t* offsets, const int64_t* sizes, uint8_t* body, double* errors, uint8_t* classes, double* deviation) {
  const auto run = dtype == 0 ? encode<Bf16> : dtype == 1 ? encode<Fp16> : encode<Fp32>;
  const auto& s = *reinterpret_cast<const Shape*>(shape);
  run(s, *reinterpret_cast<const Rules*>(rules), pool, blocks, centres, offsets, sizes, body, errors, classes, deviation);
}

void abkt_expand(const int64_t* shape, const int32_t* rules, int dtype, void* pool, const int64_t* blocks, const float* centres,
                 const int64_t* offsets, const uint8_t* wire, const int8_t* present, const uint8_t* classes) {
  const auto run = dtype == 0 ? expand<Bf16> : dtype == 1 ? expand<Fp16> : expand<Fp32>;
  const auto& s = *reinterpret_cast<const Shape*>(shape);
  run(s, *reinterpret_cast<const Rules*>(rules), pool, blocks, centres, offsets, wire, present, classes);
}

void abkt_checksums(const uint8_t* data, int64_t count, const int64_t* offsets, const int64_t* sizes, uint32_t* sums) {
  for (int64_t i = 0; i < count; i++) sums[i] = crc32(data + offsets[i], sizes[i]);
}
}
