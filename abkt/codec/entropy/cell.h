// A cell of entropy/oracle.py: its prediction, its coefficients and their magnitudes, and the error of what is decoded from them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "../rans/rans.h"

namespace {

// Of plan.py and tables.py.
constexpr int PASSES = 6, WIDTHS[PASSES] = {1, 1, 1, 1, 2, 2}, FINER[PASSES] = {0, 1, 2, 3, 5, 7}, FINEST = 7;
constexpr int LEAST_CLASS = -9, CLASSES = 22, HALVES = 2 * CLASSES, LEVELS = 16, MOST = 32, WIDEST = 64, POINT = 64, ROWS = HALVES + LEVELS + 1;
constexpr int GAINS = 16, GAIN_BIAS = 8, HEAVY_BIT = 16, OUTLIER_BIT = 32, FAR = 3, MEASURED_UNTIL = 4;
constexpr float LARGEST = 1 << 22;

inline uint32_t bits_of(float v) { uint32_t bits; std::memcpy(&bits, &v, 4); return bits; }
inline float of_bits(uint32_t bits) { float v; std::memcpy(&v, &bits, 4); return v; }
inline float bfloat16(float v) {
    const uint32_t bits = bits_of(v);
    return of_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u);
}
inline float float16(float v) { return float(_Float16(v)); }

// The tables of tables.py, and from them the entry of each symbol of each context for rans::encode_packed: halved bins by class and by
// magnitude, then values that start by class and symbol, then quarters.
struct Tables {
    static constexpr int STARTS = (HALVES + 1) * 2 * WIDEST, QUARTERS = STARTS + HALVES * 2 * MOST;
    std::vector<uint64_t> entries;
    std::vector<uint8_t> owner, halves;        // [ROWS, 4096], the symbol of each share; [HALVES + 1, WIDEST], the row of a bin that is halved
    std::vector<rans::Interval> intervals;  // [ROWS, 64]
    std::vector<int32_t> points, reach, over, heavy;
    Tables() = default;
    Tables(const uint16_t *shares, const uint8_t *skew, const uint8_t *point, const int32_t *over_, const int32_t *heavy_)
        : entries(QUARTERS + 4), owner(ROWS * rans::SHARES), halves((HALVES + 1) * WIDEST, HALVES), intervals(ROWS * 2 * MOST), points((HALVES + 1) * WIDEST, POINT / 2), reach(HALVES + 1, MOST), over(over_, over_ + GAINS - 1), heavy(heavy_, heavy_ + GAINS) {
        const auto entry = [&](int row, int symbol) {
            uint64_t start = 0;
            for (int s = 0; s < symbol; ++s) start += shares[row * 2 * MOST + s];
            return rans::packed_share(start, shares[row * 2 * MOST + symbol]);
        };
        for (int row = 0; row <= HALVES; ++row)
            for (int m = 0; m < 2 * WIDEST; ++m) entries[row * 2 * WIDEST + m] = entry(HALVES + (row < HALVES ? skew[row * WIDEST + m / 2] : 0), m & 1);
        for (int row = 0; row < HALVES; ++row) {
            reach[row] = 0;
            for (int m = 0; m < MOST; ++m) reach[row] += shares[row * 2 * MOST + 2 * m] > 0;
            for (int symbol = 0; symbol < 2 * MOST; ++symbol) entries[STARTS + row * 2 * MOST + symbol] = entry(row, symbol);
        }
        for (int symbol = 0; symbol < 4; ++symbol) entries[QUARTERS + symbol] = entry(ROWS - 1, symbol);
        std::copy(point, point + HALVES * WIDEST, points.begin());
        for (int i = 0; i < HALVES * WIDEST; ++i) halves[i] = uint8_t(HALVES + skew[i]);
        for (int row = 0; row < ROWS; ++row)
            for (int symbol = 0, start = 0; symbol < 2 * MOST; ++symbol) {
                const int share = shares[row * 2 * MOST + symbol];
                intervals[row * 2 * MOST + symbol] = {uint16_t(start), uint16_t(share)};
                std::fill_n(&owner[row * rans::SHARES + start], share, uint8_t(symbol));
                start += share;
            }
    }
};

inline Tables &tables() { static Tables made; return made; }

inline int class_row(int meta, int kind, int p) {
    const int found = std::max(kind + 4 * FINER[p - 1] + (meta & (GAINS - 1)) - GAIN_BIAS, LEAST_CLASS) - LEAST_CLASS;
    return found < CLASSES ? found + (meta >= HEAVY_BIT ? CLASSES : 0) : HALVES;
}

// The plan of a strip, and what follows from it for all its cells.
struct Strip {
    const float *step = nullptr;
    const int32_t *kind = nullptr, *start = nullptr;
    const uint8_t *coded = nullptr;
    std::vector<float> inverse;
    std::vector<int32_t> deviation, far;  // in the finest bins; beyond every magnitude where a channel is not counted
    int64_t members = 0;
    Strip() = default;
    Strip(int64_t columns, int64_t rows, const float *step_, const int32_t *kind_, const int32_t *start_, const uint8_t *coded_)
        : step(step_), kind(kind_), start(start_), coded(coded_), inverse(columns), deviation(columns), far(columns) {
        constexpr double MANTISSAS[] = {1.0, 19.0 / 16, 23.0 / 16, 27.0 / 16};
        for (int64_t c = 0; c < columns; ++c) {
            inverse[c] = 1.0f / (step[c] * 0x1p-7f);
            const bool counted = start[c] <= MEASURED_UNTIL;
            deviation[c] = counted ? int32_t(std::ldexp(MANTISSAS[kind[c] & 3], (kind[c] >> 2) + FINEST)) : std::numeric_limits<int32_t>::max();
            far[c] = counted ? FAR * deviation[c] : std::numeric_limits<int32_t>::max();
            members += counted;
        }
        members *= rows;
    }
};

// What the magnitudes m of a token are decoded to. base: where the points of each channel begin; unit: a 64th of its bin, or 0.
inline void decode_row(int64_t columns, const int32_t *m, const int32_t *negative, const int32_t *base, const float *unit, const int32_t *points,
                       int shift, float *out) {
    int64_t c = 0;
#if defined(__AVX512F__)
    for (; c + 16 <= columns; c += 16) {
        const __m512i bin = _mm512_srl_epi32(_mm512_loadu_si512(m + c), _mm_cvtsi32_si128(shift));
        const __m512i at = _mm512_add_epi32(_mm512_loadu_si512(base + c), _mm512_min_epi32(bin, _mm512_set1_epi32(WIDEST - 1)));
        const __m512i place = _mm512_add_epi32(_mm512_slli_epi32(bin, 6), _mm512_i32gather_epi32(at, points, 4));
        const __m512i size = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(place), _mm512_loadu_ps(unit + c)));
        _mm512_storeu_si512(out + c, _mm512_xor_si512(size, _mm512_slli_epi32(_mm512_loadu_si512(negative + c), 31)));
    }
#elif defined(__AVX2__)
    for (; c + 8 <= columns; c += 8) {
        const auto load = [c](const int32_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + c)); };
        const __m256i bin = _mm256_srl_epi32(load(m), _mm_cvtsi32_si128(shift));
        const __m256i at = _mm256_add_epi32(load(base), _mm256_min_epi32(bin, _mm256_set1_epi32(WIDEST - 1)));
        const __m256i place = _mm256_add_epi32(_mm256_slli_epi32(bin, 6), _mm256_i32gather_epi32(points, at, 4));
        const __m256 size = _mm256_mul_ps(_mm256_cvtepi32_ps(place), _mm256_loadu_ps(unit + c));
        _mm256_storeu_ps(out + c, _mm256_xor_ps(size, _mm256_castsi256_ps(_mm256_slli_epi32(load(negative), 31))));
    }
#endif
    for (; c < columns; ++c) {
        const int32_t bin = m[c] >> shift, place = bin * POINT + points[base[c] + std::min(bin, WIDEST - 1)];
        const float size = float(place) * unit[c];
        out[c] = negative[c] ? -size : size;
    }
}

struct Cell {
    int64_t tokens, dim, levels, rows, columns;
    std::vector<float> coefficients, predicted, scratch, guess, squares;
    std::vector<int32_t> magnitude, negative, column, base, starts, limit;
    std::vector<uint16_t> symbols, symbols_row;
    std::vector<uint8_t> plain, plain_row, stream;
    std::vector<uint32_t> started;  // by `activate`, a bit for each channel
    std::vector<int64_t> outliers;
    const float *angles = nullptr;  // [tokens, 2, dim / 2], or null where nothing rotates
    uint8_t meta = 0;

    Cell(int64_t tokens_, int64_t dim_, int64_t levels_)
        : tokens(tokens_), dim(dim_), levels(levels_), rows(tokens_ >> levels_), columns(dim_ << levels_), coefficients(tokens * dim),
          predicted(tokens * dim), scratch(tokens * dim), guess(tokens * dim), magnitude(tokens * dim), negative(tokens * dim), column(columns),
          base(columns), starts(columns), limit(columns), symbols(tokens * dim + 32), symbols_row(columns + 32), started((columns + 31) / 32), plain((rows + 8) * columns), plain_row(columns),
          stream(rans::STATE_BYTES + 2 * tokens * dim + 16), squares(dim) {}

    // to = from [tokens, dim], rotated by the angles; backwards for a `turn` of -1.
    void rotate(const float *from, int64_t stride, float turn, float *to) const {
        const int64_t half = dim / 2;
        for (int64_t t = 0; t < tokens; ++t) {
            const float *const a = from + t * stride, *const b = a + half, *const cos = angles + t * dim, *const sin = cos + half;
            float *const out = to + t * dim;
            for (int64_t c = 0; c < half; ++c) {
                const float x = a[c], y = b[c], s = sin[c] * turn;
                out[c] = x * cos[c] - y * s;
                out[half + c] = y * cos[c] + x * s;
            }
        }
    }

    void predict(const float *centre, const float *rotation) {
        angles = rotation;
        if (angles) return rotate(centre, 0, 1.0f, predicted.data());
        for (int64_t t = 0; t < tokens; ++t) std::memcpy(&predicted[t * dim], centre, dim * sizeof(float));
    }

    // Whether all values are finite and below `bound`; `most` becomes the largest of them.
    bool within(const float *x, float bound, float &most) {
        int32_t outside = 0;
        uint32_t largest = 0;  // of the bits of |x|, which rise with it
        const uint32_t of_bound = bits_of(bound);
        for (int64_t i = 0; i < tokens * dim; ++i) {
            const uint32_t bits = bits_of(x[i]) & 0x7FFFFFFF;
            outside |= bits >= of_bound;
            largest = std::max(largest, bits);
        }
        most = of_bits(largest);
        return !outside;
    }

    void transform(const float *x) {
        float *const out = levels ? scratch.data() : coefficients.data();
        for (int64_t i = 0; i < tokens * dim; ++i) out[i] = x[i] - predicted[i];
        if (!levels) return;
        if (angles) rotate(out, dim, -1.0f, guess.data()), std::copy(guess.begin(), guess.end(), scratch.begin());
        float *const sums = scratch.data();
        for (int64_t level = levels - 1, n = tokens / 2; level >= 0; --level, n /= 2)
            for (int64_t i = 0; i < n; ++i) {
                float *const fine = &coefficients[(i >> level) * columns + (dim << level) + (i & ((1 << level) - 1)) * dim];
                const float *const a = sums + 2 * i * dim, *const b = a + dim;
                float *const coarse = level ? sums + i * dim : &coefficients[i * columns];
                for (int64_t c = 0; c < dim; ++c) {
                    const float p = a[c], q = b[c];
                    fine[c] = (p - q) * ROOT_HALF;
                    coarse[c] = (p + q) * ROOT_HALF;
                }
            }
    }

    // guess = the values, before rounding, that these coefficients stand for.
    void restore(const float *from) {
        float *sums = scratch.data();
        for (int64_t i = 0; i < rows; ++i) std::memcpy(sums + i * dim, from + i * columns, dim * sizeof(float));
        for (int64_t level = 0, n = rows; level < levels; ++level, n *= 2)
            for (int64_t i = n - 1; i >= 0; --i) {  // from the last, since the results take the place of what is read
                const float *const fine = from + (i >> level) * columns + (dim << level) + (i & ((1 << level) - 1)) * dim;
                const float *const coarse = sums + i * dim;
                float *const a = sums + 2 * i * dim, *const b = a + dim;
                for (int64_t c = 0; c < dim; ++c) {
                    const float p = coarse[c], q = fine[c];
                    b[c] = (p - q) * ROOT_HALF;
                    a[c] = (p + q) * ROOT_HALF;
                }
            }
        if (angles) rotate(sums, dim, 1.0f, guess.data());
        else std::copy(scratch.begin(), scratch.end(), guess.begin());
        for (int64_t i = 0; i < tokens * dim; ++i) guess[i] += predicted[i];
    }

    void quantise(const Strip &strip) {
        int64_t over = 0, far = 0;
        for (int64_t t = 0; t < rows; ++t) {
            const float *const r = &coefficients[t * columns];
            int32_t *const m = &magnitude[t * columns], *const n = &negative[t * columns];
            int32_t above = 0, beyond = 0;
            for (int64_t c = 0; c < columns; ++c) {
                const float size = std::fabs(r[c]) * strip.inverse[c];
                m[c] = int32_t(size < LARGEST ? size : LARGEST);
                n[c] = r[c] < 0;
                above += m[c] >= strip.deviation[c];
                beyond += m[c] >= strip.far[c];
            }
            over += above, far += beyond;
        }
        const Tables &t = tables();
        int gain = GAIN_BIAS;
        const int64_t members = std::max<int64_t>(1, strip.members);
        if (strip.members) {
            gain = 0;
            for (int32_t threshold : t.over) gain += over * 65'536 / members > threshold;
        }
        meta = uint8_t(gain | (far * 65'536 / members > t.heavy[gain] ? HEAVY_BIT : 0));
    }

    // List the outliers and set them to 0. False if there are more than `most`.
    bool leave_out(const Strip &strip, int depth, int64_t most) {
        outliers.clear();
        for (int64_t c = 0; c < columns; ++c) {
            const int p = strip.start[c];
            limit[c] = p <= depth ? tables().reach[class_row(meta, strip.kind[c], p)] << (FINEST - FINER[p - 1]) : 4 << (FINEST - FINER[depth - 1]);
        }
        for (int64_t t = 0; t < rows; ++t) {
            int32_t *const m = &magnitude[t * columns];
            int32_t found = 0;
            for (int64_t c = 0; c < columns; ++c) found |= m[c] >= limit[c];
            for (int64_t c = 0; c < columns && found; ++c)
                if (m[c] >= limit[c]) outliers.push_back(t * columns + c), m[c] = 0, negative[t * columns + c] = 0;
        }
        return int64_t(outliers.size()) <= most;
    }

    // List the channels that have started by pass p, and say where the entries of each begin; returns how many have started.
    int64_t activate(const Strip &strip, int p) {
        int64_t count = 0;
        std::fill(started.begin(), started.end(), 0u);
        for (int64_t c = 0; c < columns; ++c) {
            if (strip.start[c] <= p) column[count++] = int32_t(c), started[c / 32] |= 1u << c % 32;
            starts[c] = strip.start[c] == p;
            if (starts[c]) base[c] = Tables::STARTS + std::min(class_row(meta, strip.kind[c], p), HALVES - 1) * 2 * MOST;
            else if (WIDTHS[p - 1] == 2) base[c] = Tables::QUARTERS;
            else base[c] = class_row(meta, strip.kind[c], std::max(1, p - 1)) * 2 * WIDEST;
        }
        return count;
    }

    // The first `count` of `to` = those of a row that belong to channels that have started. Writes up to 32 more.
    void pick(const uint16_t *row, int64_t count, uint16_t *to) const {
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__)
        for (size_t i = 0; i < started.size(); to += __builtin_popcount(started[i]), ++i)
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(started[i], _mm512_loadu_si512(row + 32 * i)));
#else
        for (int64_t a = 0; a < count; ++a) to[a] = row[column[a]];
#endif
    }
    void pick(const uint8_t *row, int64_t count, uint8_t *to) const {
        for (int64_t a = 0; a < count; ++a) to[a] = row[column[a]];
    }

    // The values, before they are rounded, after p passes. listed: the values of the outliers, in the order of `outliers`, from pass 1 on.
    const float *decode(const Strip &strip, int p, const float *listed) {
        const int shift = p ? FINEST - FINER[p - 1] : 0;
        for (int64_t c = 0; c < columns && p; ++c) {
            base[c] = class_row(meta, strip.kind[c], p) * WIDEST;
            unit[c] = strip.start[c] <= p ? strip.step[c] * of_bits(uint32_t(127 - FINER[p - 1] - 6) << 23) : 0.0f;
        }
        const int32_t *const points = tables().points.data();
        for (int64_t t = 0; t < rows; ++t) {
            float *const out = &decoded[t * columns];
            if (p) decode_row(columns, &magnitude[t * columns], &negative[t * columns], base.data(), unit.data(), points, shift, out);
            else std::fill(out, out + columns, 0.0f);
            if (levels) continue;
            for (int64_t c = 0; c < columns; ++c) out[c] += predicted[t * dim + c];
        }
        for (size_t i = 0; i < outliers.size() && p; ++i) decoded[outliers[i]] = listed[i];
        if (!levels) return decoded.data();
        restore(decoded.data());
        return guess.data();
    }

    // The squared error that is left after p passes.
    template <class Round> double error(const float *x, const Strip &strip, int p, Round round) {
        const float *const from = levels ? coefficients.data() : x;
        listed.clear();
        for (int64_t i : outliers) listed.push_back(from[i]);
        const float *const values = decode(strip, p, listed.data());
        double sum = 0;
        for (int64_t first = 0; first < tokens; first += 16) {  // a few tokens in float32, then all in float64
            std::fill(squares.begin(), squares.end(), 0.0f);
            for (int64_t t = first; t < std::min(tokens, first + 16); ++t)
                for (int64_t c = 0; c < dim; ++c) {
                    const float left = x[t * dim + c] - round(values[t * dim + c]);
                    squares[c] += left * left;
                }
            for (float s : squares) sum += double(s);
        }
        return sum;
    }

  private:
    static constexpr float ROOT_HALF = 0.70710678118654752440f;
    std::vector<float> decoded = std::vector<float>(tokens * dim), unit = std::vector<float>(columns), listed;
};

}  // namespace
