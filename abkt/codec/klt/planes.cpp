// klt/planes.py and klt/table.py, compiled: the same bytes. Built by compile.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int START = -10, TOP = 13, CLASSES = TOP - START + 1, NEAR = 9, STEPS = 8, ESCAPE = 14, POINTS = 3;
constexpr int LATER = CLASSES * NEAR, MORE = 2 * CLASSES * NEAR, HALF = MORE + CLASSES * STEPS, CONTEXTS = HALF + CLASSES * POINTS;
constexpr int FIRST = 24, LAST = 255, LONGEST = 24, WIDEST = 16;
constexpr int32_t MOST = 1 << 24;

struct Chance {
    uint32_t zero, seen;
    void learn(int bit) {
        const uint32_t rate = 65536u / (seen + 2);
        if (bit) zero -= (zero * rate) >> 16;
        else zero += ((65535u - zero) * rate) >> 16;
        zero = std::clamp<uint32_t>(zero, 32u, 65504u);
        if (seen < LAST) ++seen;
    }
};

struct Writer {
    uint8_t *out, *at, *end;
    uint64_t low = 0;
    uint32_t range = 0xFFFFFFFFu;
    uint8_t held = 0;
    int64_t waiting = 0;
    bool first = true;
    void put(uint8_t byte) { if (at < end) *at++ = byte; }
    void carry() {
        if (low < 0xFF000000ull || low > 0xFFFFFFFFull) {
            const uint8_t over = uint8_t(low >> 32);
            if (!first) put(uint8_t(held + over));
            first = false;
            for (; waiting; --waiting) put(uint8_t(0xFF + over));
            held = uint8_t(low >> 24);
        } else ++waiting;
        low = (low & 0x00FFFFFFull) << 8;
    }
    void bit(int value, uint32_t zero) {
        const uint32_t part = (range >> 16) * zero;
        if (value) { low += part; range -= part; } else range = part;
        while (range < (1u << 24)) { range <<= 8; carry(); }
    }
    int64_t close() {
        for (int i = 0; i < 5; ++i) carry();
        while (at > out && at[-1] == 0) --at;
        return at - out;
    }
};

struct Reader {
    const uint8_t *at, *end;
    uint32_t range = 0xFFFFFFFFu, code = 0;
    Reader(const uint8_t *from, int64_t size) : at(from), end(from + size) { for (int i = 0; i < 4; ++i) next(); }
    void next() { code = code << 8 | (at < end ? *at++ : 0); }
    int bit(uint32_t zero) {
        const uint32_t part = (range >> 16) * zero;
        const int value = code >= part;
        if (value) { code -= part; range -= part; } else range = part;
        while (range < (1u << 24)) { range <<= 8; next(); }
        return value;
    }
};

struct Encode {
    Writer io;
    int64_t *counts;
    int adaptive(Chance *chances, int context, int bit) {
        io.bit(bit, chances[context].zero);
        chances[context].learn(bit);
        if (counts) ++counts[2 * context + bit];
        return bit;
    }
    int plain(int bit) { io.bit(bit, 32768); return bit; }
};

struct Decode {
    Reader io;
    int adaptive(Chance *chances, int context, int) {
        const int bit = io.bit(chances[context].zero);
        chances[context].learn(bit);
        return bit;
    }
    int plain(int) { return io.bit(32768); }
};

int level(int k) { return std::min(k, TOP) - START; }

// A count of 0 or more: up to `steps` bits of "one more", each with its own context, then Exp-Golomb.
template <typename Coder>
int64_t tail(Coder &coder, Chance *chances, int base, int64_t steps, int64_t count) {
    int64_t m = 0;
    while (m < steps && coder.adaptive(chances, base + int(m), count > m)) ++m;
    if (m < steps) return m;
    const int64_t rest = count - m + 1;
    int bits = 0;
    while (bits < LONGEST && coder.plain(rest >> (bits + 1) > 0)) ++bits;
    int64_t value = 1;
    for (int b = bits - 1; b >= 0; --b) value = 2 * value + coder.plain(int(rest >> b & 1));
    return m + value - 1;
}

// One pass. `target`: magnitudes at the finest step (encoder only); `found`: magnitudes and signs so far, at the step of the pass before.
template <bool WRITES, typename Coder>
void pass(Coder &coder, Chance *chances, int64_t tokens, int64_t dims, const int32_t *token, const int32_t *klass, int before, int planes,
          int finest, const int32_t *target, const uint8_t *sign, int32_t *found, uint8_t *negative) {
    for (int64_t t = 0; t < tokens; ++t) {
        int32_t *row = found + t * dims;
        const int32_t *above = row - dims, *wanted = WRITES ? target + t * dims : nullptr;
        int up = 0;
        for (int64_t j = 0; j < dims; ++j) {
            const int base = klass[j] + token[t], k = base + 4 * planes;
            if (k < START) { up = 0; continue; }
            const int near = std::min(2, t ? above[j] : 0) * 3 + std::min(2, up);
            const int whole = WRITES ? wanted[j] >> (finest - planes) : 0;
            int64_t m = row[j];
            const bool was = m > 0;
            if (before >= 0 && base + 4 * before >= START) {
                for (int plane = before + 1; plane <= planes; ++plane) {
                    const int at = level(base + 4 * plane), bit = whole >> (planes - plane) & 1;
                    m = 2 * m + coder.adaptive(chances, m ? HALF + at * POINTS + int(std::min<int64_t>(m, POINTS)) - 1 : LATER + at * NEAR + near, bit);
                }
            } else {
                const int at = level(k), shift = std::clamp((k - TOP) >> 2, 0, WIDEST);
                const int high = whole >> shift;
                m = coder.adaptive(chances, at * NEAR + near, high > 0);
                if (m) {
                    while (m <= ESCAPE && coder.adaptive(chances, MORE + at * STEPS + int(std::min<int64_t>(m, STEPS)) - 1, high > m)) ++m;
                    if (m > ESCAPE) {  // Exp-Golomb
                        const int64_t rest = high - m + 1;
                        int bits = 0;
                        while (bits < LONGEST && coder.plain(WRITES ? rest >> (bits + 1) > 0 : 0)) ++bits;
                        int64_t value = 1;
                        for (int b = bits - 1; b >= 0; --b) value = 2 * value + coder.plain(int(rest >> b & 1));
                        m += value - 1;
                    }
                }
                for (int b = shift - 1; b >= 0; --b) m = 2 * m + coder.plain(whole >> b & 1);
                m = std::min<int64_t>(m, MOST >> (finest - planes));  // only damaged bytes have more
            }
            if (m && !was) negative[t * dims + j] = uint8_t(coder.plain(WRITES ? sign[t * dims + j] : 0));
            row[j] = int32_t(m);
            up = row[j];
        }
    }
}

// klt/table.py, compiled.
template <typename Coder>
void table(Coder &coder, int64_t rows, int64_t columns, int32_t *values, bool predicts) {
    constexpr int PLACES = 8, STEP = 12;
    std::vector<Chance> chances(PLACES * (2 + STEP), Chance{32768, 2});
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) {
            int32_t &value = values[r * columns + c];
            int64_t guess = 0, place = std::min<int64_t>(c / 8, PLACES - 1);
            if (predicts) {
                const int64_t left = c ? values[r * columns + c - 1] : 0, up = r ? values[(r - 1) * columns + c] : left;
                guess = (left + up) >> 1;
                place = std::clamp<int64_t>(left - up, -4, 3) + 4;
            }
            const int64_t wanted = int64_t(value) - guess, size = wanted < 0 ? -wanted : wanted;
            const int base = int(place) * (2 + STEP);
            int64_t m = coder.adaptive(chances.data(), base, size > 0);
            int negative = 0;
            if (m) {
                negative = coder.adaptive(chances.data(), base + 1, wanted < 0);
                m += tail(coder, chances.data(), base + 2, STEP, size - 1);
            }
            value = int32_t(std::clamp<int64_t>(guess + (negative ? -m : m), -MOST, MOST));
        }
}

void start(std::vector<Chance> &chances, const uint16_t *initial) {
    chances.resize(CONTEXTS);
    for (int c = 0; c < CONTEXTS; ++c) chances[c] = {initial[c], FIRST};
}

}  // namespace

extern "C" {

// y: [tokens, dims], in finest steps. planes: [passes], bit-planes below the first step after each pass. points: [CLASSES * POINTS].
// errors: [passes + 1], in squared finest steps. counts: [CONTEXTS, 2] and offsets: [CLASSES * POINTS, 2], added to, or null.
// Returns -1, or the number of the first value that is too large.
int64_t abkt_klt_encode(int64_t tokens, int64_t dims, const float *y, const int32_t *token, const int32_t *klass, int64_t passes,
                        const int32_t *planes, const uint16_t *initial, const float *points, uint8_t *out, int64_t capacity, int64_t *sizes,
                        double *errors, int64_t *counts, double *offsets) {
    const int64_t n = tokens * dims;
    const int finest = planes[passes - 1];
    std::vector<int32_t> target(n), found(n, 0);
    std::vector<uint8_t> sign(n), negative(n);
    errors[0] = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float a = std::fabs(y[i]);
        if (!(a < float(MOST))) return i;
        target[i] = int32_t(a);
        sign[i] = y[i] < 0;
        errors[0] += double(a) * a;
    }
    for (int64_t p = 0; p < passes; ++p) {
        std::vector<Chance> chances;
        start(chances, initial);
        Encode coder{Writer{out, out, out + capacity}, counts};
        pass<true>(coder, chances.data(), tokens, dims, token, klass, p ? planes[p - 1] : -1, planes[p], finest, target.data(), sign.data(),
                   found.data(), negative.data());
        sizes[p] = coder.io.close();
        out += sizes[p];
        capacity -= sizes[p];
        const double unit = double(1 << (finest - planes[p]));
        double error = 0;
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t j = 0; j < dims; ++j) {
                const int64_t i = t * dims + j;
                const double a = std::fabs(double(y[i]));
                const int32_t m = found[i];
                if (!m) { error += a * a; continue; }
                const int at = level(klass[j] + token[t] + 4 * planes[p]) * POINTS + std::min<int32_t>(m, POINTS) - 1;
                const double off = a - (double(m) + points[at]) * unit;
                error += off * off;
                if (offsets) { offsets[2 * at] += a / unit - m; offsets[2 * at + 1] += 1; }
            }
        errors[p + 1] = error;
    }
    return -1;
}

// values: [rows, columns]. Returns the bytes written.
int64_t abkt_klt_pack(int64_t rows, int64_t columns, const int32_t *values, int64_t predicts, uint8_t *out, int64_t capacity) {
    std::vector<int32_t> copy(values, values + rows * columns);
    Encode coder{Writer{out, out, out + capacity}, nullptr};
    table(coder, rows, columns, copy.data(), predicts != 0);
    return coder.io.close();
}

void abkt_klt_unpack(int64_t rows, int64_t columns, int32_t *values, int64_t predicts, const uint8_t *data, int64_t size) {
    std::fill(values, values + rows * columns, 0);
    Decode coder{Reader(data, size)};
    table(coder, rows, columns, values, predicts != 0);
}

// The values after `present` passes, in finest steps. data, starts, sizes: the passes' bytes.
void abkt_klt_decode(int64_t tokens, int64_t dims, const int32_t *token, const int32_t *klass, int64_t present, const int32_t *planes,
                     int64_t finest, const uint16_t *initial, const float *points, const uint8_t *data, const int64_t *starts,
                     const int64_t *sizes, float *y) {
    const int64_t n = tokens * dims;
    std::vector<int32_t> found(n, 0);
    std::vector<uint8_t> negative(n, 0);
    for (int64_t p = 0; p < present; ++p) {
        std::vector<Chance> chances;
        start(chances, initial);
        Decode coder{Reader(data + starts[p], sizes[p])};
        pass<false>(coder, chances.data(), tokens, dims, token, klass, p ? planes[p - 1] : -1, planes[p], int(finest), nullptr, nullptr,
                    found.data(), negative.data());
    }
    const float unit = present ? float(1 << (finest - planes[present - 1])) : 0.0f;
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < dims; ++j) {
            const int64_t i = t * dims + j;
            const int32_t m = found[i];
            float value = 0;
            if (m) value = (float(m) + points[level(klass[j] + token[t] + 4 * planes[present - 1]) * POINTS + std::min<int32_t>(m, POINTS) - 1]) * unit;
            y[i] = negative[i] ? -value : value;
        }
}

}  // extern "C"
