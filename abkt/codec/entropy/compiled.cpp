// entropy/oracle.py's encode_cells, compiled: the same bytes, one cell after another while it is in the cache. Built by compile.py, without
// contraction of products and sums, since those of the oracle are rounded one by one.
#include <algorithm>
#include <cstring>
#include <limits>

#include "cell.h"
#include "strip.h"

namespace {

// Plain bits (wire.pack_bits): a byte holds the same place of eight eighths of the tokens, or of four. symbols: eight times `eighth` bytes.
void pack(const uint8_t *symbols, int64_t eighth, int width, uint8_t *out) {
    const int held = 8 / width;
    for (int half = 0; half < width; ++half)
        for (int64_t i = 0; i < eighth; ++i) {
            uint8_t byte = 0;
            for (int j = 0; j < held; ++j) byte |= uint8_t(symbols[(half * held + j) * eighth + i] << (width * j));
            out[half * eighth + i] = byte;
        }
}

// The symbols of a pass, as numbers of their entries, for all channels of a token.
template <int WIDTH> void symbols_of(const Cell &cell, int64_t token, int shift, uint16_t *to) {
    const int32_t *const m = &cell.magnitude[token * cell.columns], *const negative = &cell.negative[token * cell.columns];
    const int32_t *const base = cell.base.data(), *const starts = cell.starts.data();
    for (int64_t c = 0; c < cell.columns; ++c) {
        const int32_t finer = m[c] >> shift, low = finer & 1;
        const int32_t refined = WIDTH == 2 ? finer & 3 : finer < 2 * WIDEST ? finer : 2 * WIDEST - 2 + low;
        const int32_t started = 2 * finer + negative[c];
        to[c] = uint16_t(base[c] + (starts[c] ? started : refined));
    }
}

// One pass of a cell, written to `out`; returns its bytes, or -1 if they are more than `room`.
int64_t encode_pass(Cell &cell, const Strip &strip, int p, uint8_t *out, int64_t room) {
    const int width = WIDTHS[p - 1], shift = FINEST - FINER[p - 1];
    const int64_t count = cell.activate(strip, p), rows = cell.rows, columns = cell.columns;
    const auto each_row = [&](auto *to, auto *row, auto fill) {  // of the channels that have started
        for (int64_t t = 0; t < rows; ++t, to += count) {
            if (count == columns) {
                fill(t, to);
                continue;
            }
            fill(t, row);
            cell.pick(row, count, to);
        }
        return to;
    };
    if (!strip.coded[p - 1]) {
        const int64_t eighth = (rows + 7) / 8 * count, size = width * eighth;
        if (size > room) return -1;
        uint8_t *const end = each_row(cell.plain.data(), cell.plain_row.data(), [&](int64_t t, uint8_t *to) {
            const int32_t *const m = &cell.magnitude[t * columns];
            for (int64_t c = 0; c < columns; ++c) to[c] = uint8_t(m[c] >> shift & ((1 << width) - 1));
        });
        std::memset(end, 0, 8 * eighth - rows * count);
        pack(cell.plain.data(), eighth, width, out);
        return size;
    }
    each_row(cell.symbols.data(), cell.symbols_row.data(), [&](int64_t t, uint16_t *to) {
        if (width == 1) symbols_of<1>(cell, t, shift, to);
        else symbols_of<2>(cell, t, shift, to);
    });
    uint8_t *const end = cell.stream.data() + cell.stream.size();
    const uint8_t *const begin = rans::encode_packed(rows * count, end, cell.symbols.data(), tables().entries.data());
    const int64_t size = end - begin;
    if (size > room) return -1;
    std::memcpy(out, begin, size);
    return size;
}

// The head of pass 1 (wire.head_of); returns its bytes, or -1 if they are more than `room`.
int64_t write_head(const Cell &cell, const float *values, int dtype, uint8_t *out, int64_t room) {
    const int64_t count = int64_t(cell.outliers.size());
    out[0] = cell.meta;
    if (!count) return 1;
    const int64_t place = cell.rows * cell.columns <= 65'536 ? 2 : 4, item = dtype == 2 ? 4 : 2;
    if (3 + count * (place + item) > room) return -1;
    out[0] |= OUTLIER_BIT;
    std::memcpy(out + 1, &count, 2);
    uint8_t *at = out + 3;
    for (int64_t i : cell.outliers) std::memcpy(at, &i, place), at += place;
    for (int64_t i : cell.outliers) {
        if (dtype == 2) std::memcpy(at, &values[i], 4);
        else if (dtype == 1) { const _Float16 half = _Float16(values[i]); std::memcpy(at, &half, 2); }
        else { const uint32_t bits = bits_of(bfloat16(values[i])) >> 16; std::memcpy(at, &bits, 2); }
        at += item;
    }
    return at - out;
}

struct Job {  // as Arguments of compiled.py
    int64_t cells, tokens, dim, levels, depth, dtype, room, most_outliers;
    double limit, tiny;
    const float *x, *centre, *rotation;
    const int64_t *place, *strip, *first;
    const uint8_t *rotates, *coded;
    const float *step;
    const int32_t *kind, *start;
    uint8_t *out;
    int64_t *sizes;  // [depth, cells]; the passes of a cell lie one after another, cell after cell
    double *errors;
    uint8_t *fallback;
    // Of a decode alone. have: [cells]; at, sizes: [depth, cells], where each pass lies in `wire`; meta: [cells]; outliers: [cells + 1], which of
    // places and values are a cell's; values_out: as place says.
    const int64_t *have, *at, *outliers, *places;
    const uint8_t *wire, *meta;
    const float *values;
    float *values_out;
};

template <class Round> void encode(const Job &job, Round round) {
    Cell cell(job.tokens, job.dim, job.levels);
    Strip strip;
    int64_t known = -1;
    uint8_t *out = job.out;
    for (int64_t i = 0; i < job.cells; ++i) {
        const int64_t s = job.strip[i], columns = cell.columns;
        if (s != known) {
            strip = Strip(columns, cell.rows, job.step + s * columns, job.kind + s * columns, job.start + s * columns, job.coded + s * PASSES);
            known = s;
        }
        const float *x = job.x + job.place[i];
        const bool rotates = job.rotates[s];
        cell.predict(job.centre + s * job.dim, rotates ? job.rotation + job.first[i] * job.dim : nullptr);
        float most = 0;
        bool good = cell.within(x, float(job.limit), most) && !(most > 0 && most < float(job.tiny));
        if (!good) x = cell.predicted.data();
        cell.transform(x);
        cell.quantise(strip);
        const bool few = cell.leave_out(strip, int(job.depth), job.most_outliers);
        good = good && few;
        uint8_t *const begin = out;
        for (int p = 1; p <= job.depth && good; ++p) {
            const int64_t head = p == 1 ? write_head(cell, job.levels ? cell.coefficients.data() : x, job.levels ? 2 : int(job.dtype), out, job.room) : 0;
            const int64_t size = head < 0 ? -1 : encode_pass(cell, strip, p, out + head, job.room - head);
            job.sizes[(p - 1) * job.cells + i] = head + size;
            good = size >= 0;
            out += head + size;
        }
        if (!good) out = begin;
        job.errors[i] = cell.error(x, strip, 0, round);
        for (int p = 1; p <= job.depth; ++p) {
            if (!good) job.sizes[(p - 1) * job.cells + i] = 0;
            job.errors[p * job.cells + i] = good ? cell.error(x, strip, p, round) : job.errors[i];
        }
        job.fallback[i] = !good;
    }
}

// The inverse of encode_pass: adds to magnitudes and signs. False if no encoder wrote these bytes.
bool decode_pass(Cell &cell, const Strip &strip, int p, const uint8_t *data, int64_t size) {
    const int width = WIDTHS[p - 1], shift = FINEST - FINER[p - 1];
    const int64_t count = cell.activate(strip, p), rows = cell.rows, columns = cell.columns, n = rows * count;
    const int32_t *const column = cell.column.data();
    std::vector<uint8_t> &symbols = cell.plain;
    if (!strip.coded[p - 1]) {
        const int64_t eighth = (rows + 7) / 8 * count;
        if (size != width * eighth) return false;
        for (int k = 0; k < 8; ++k) {
            const uint8_t *const from = data + k * width / 8 * eighth;
            const int by = k * width % 8;
            for (int64_t i = 0; i < eighth; ++i) symbols[k * eighth + i] = uint8_t(from[i] >> by & ((1 << width) - 1));
        }
    } else {
        const Tables &held = tables();
        uint16_t *to = cell.symbols.data();  // the row of shares of each symbol
        for (int64_t t = 0; t < rows; ++t, to += count) {
            const int32_t *const m = &cell.magnitude[t * columns];
            for (int64_t a = 0; a < count; ++a) {
                const int64_t c = column[a];
                to[a] = uint16_t(cell.starts[c] ? (cell.base[c] - Tables::STARTS) / (2 * MOST)
                                 : width == 2 ? ROWS - 1
                                              : held.halves[cell.base[c] / 2 + std::min(m[c] >> (shift + 1), WIDEST - 1)]);
            }
        }
        const bool good = rans::decode(n, data, size, [&, of = cell.symbols.data(), out = symbols.data()](int64_t i, uint32_t place) {
            const uint8_t symbol = held.owner[of[i] * rans::SHARES + place];
            out[i] = symbol;
            return held.intervals[of[i] * 2 * MOST + symbol];
        });
        if (!good) return false;
    }
    const uint8_t *from = symbols.data();
    for (int64_t t = 0; t < rows; ++t, from += count) {
        int32_t *const m = &cell.magnitude[t * columns], *const negative = &cell.negative[t * columns];
        for (int64_t a = 0; a < count; ++a) {
            const int64_t c = column[a];
            const int32_t starts = cell.starts[c], symbol = from[a];
            m[c] |= symbol >> starts << shift;
            negative[c] |= starts & symbol;
        }
    }
    return true;
}

// Every cell's values. Returns the number of the first cell that is damaged, or -1.
template <class Round> int64_t decode(const Job &job, Round round) {
    Cell cell(job.tokens, job.dim, job.levels);
    Strip strip;
    int64_t known = -1;
    for (int64_t i = 0; i < job.cells; ++i) {
        const int64_t s = job.strip[i], columns = cell.columns;
        if (s != known) {
            strip = Strip(columns, cell.rows, job.step + s * columns, job.kind + s * columns, job.start + s * columns, job.coded + s * PASSES);
            known = s;
        }
        cell.predict(job.centre + s * job.dim, job.rotates[s] ? job.rotation + job.first[i] * job.dim : nullptr);
        std::fill(cell.magnitude.begin(), cell.magnitude.end(), 0);
        std::fill(cell.negative.begin(), cell.negative.end(), 0);
        cell.meta = job.meta[i];
        cell.outliers.assign(job.places + job.outliers[i], job.places + job.outliers[i + 1]);
        for (int p = 1; p <= job.have[i]; ++p) {
            const int64_t at = (p - 1) * job.cells + i;
            if (!decode_pass(cell, strip, p, job.wire + job.at[at], job.sizes[at])) return i;
        }
        const float *const values = cell.decode(strip, int(job.have[i]), job.values + job.outliers[i]);
        float *const out = job.values_out + job.place[i];
        for (int64_t v = 0; v < job.tokens * job.dim; ++v) out[v] = round(values[v]);
    }
    return -1;
}

}  // namespace

extern "C" {

void abkt_entropy_tables(const uint16_t *shares, const uint8_t *skew, const uint8_t *points, const int32_t *over, const int32_t *heavy) {
    tables() = Tables(shares, skew, points, over, heavy);
}

void abkt_entropy_encode(const Job *job) {
    if (job->dtype == 0) encode(*job, [](float v) { return bfloat16(v); });
    else if (job->dtype == 1) encode(*job, [](float v) { return float16(v); });
    else encode(*job, [](float v) { return v; });
}

int64_t abkt_entropy_decode(const Job *job) {
    if (job->dtype == 0) return decode(*job, [](float v) { return bfloat16(v); });
    if (job->dtype == 1) return decode(*job, [](float v) { return float16(v); });
    return decode(*job, [](float v) { return v; });
}

// x: [strips, tokens, dim], and so is kept; mean: [strips, dim]. changed: which strips have outliers, and so are read from `kept`.
void abkt_entropy_clean(int64_t strips, int64_t tokens, int64_t dim, const float *x, double limit, double deviations, float *kept, double *mean,
                        uint8_t *changed) {
    for (int64_t s = 0; s < strips; ++s)
        changed[s] = clean(x + s * tokens * dim, tokens, dim, float(limit), deviations, kept + s * tokens * dim, mean + s * dim);
}

void abkt_entropy_sums(int64_t strips, int64_t tokens, int64_t dim, const float *x, const float *kept, const uint8_t *changed, const double *mean,
                       const float *angles, double *sums) {
    for (int64_t s = 0; s < strips; ++s)
        add_up({tokens, dim, (changed[s] ? kept : x) + s * tokens * dim, mean + s * dim}, angles, sums + s * dim);
}

// rotates: [strips]; back, levels, squares: as add_squares has them.
void abkt_entropy_squares(int64_t strips, int64_t tokens, int64_t dim, const float *x, const float *kept, const uint8_t *changed,
                          const double *mean, const float *centre, const uint8_t *rotates, const float *angles, int64_t back, int64_t levels,
                          double *squares) {
    for (int64_t s = 0; s < strips; ++s)
        add_squares({tokens, dim, (changed[s] ? kept : x) + s * tokens * dim, mean + s * dim}, centre + s * dim, rotates[s] ? angles : nullptr,
                    back != 0, int(levels), squares + s * (2 * levels + 1) * dim);
}

void abkt_entropy_deviation(int64_t strips, int64_t tokens, int64_t dim, const float *x, const uint8_t *skipped, double *found) {
    for (int64_t s = 0; s < strips; ++s) found[s] = deviation(x + s * tokens * dim, tokens, dim, skipped + s * tokens);
}

}  // extern "C"
