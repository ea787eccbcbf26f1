// The encoding and decoding loops of rans/oracle.py.

#pragma once

#include <cstdint>
#include <cstring>

namespace rans {

constexpr int LANES = 8, SHARE_BITS = 12, SHARES = 1 << SHARE_BITS;
constexpr uint32_t LEAST = 1u << 16;
constexpr int64_t STATE_BYTES = 4 * LANES;

// A symbol's interval, and its share's inverse for encoding: x / share == x * inverse >> 44 for every x < share << 20, and the product
// stays below 2**64.
struct Share {
    uint64_t inverse;
    uint32_t share, start;
};

struct Interval {
    uint16_t start, share;
};

inline Share share_of(int64_t start, int64_t share) {
    return {share ? ((1ull << 44) + share - 1) / share : 0, uint32_t(share), uint32_t(start)};
}

inline void put(uint32_t &x, uint8_t *&out, const Share &s) {
    const bool full = (x >> 20) >= s.share;
    const uint16_t word = uint16_t(x);
    std::memcpy(out - 2, &word, 2);  // writes one word more than is kept; the states overwrite it
    out -= full ? 2 : 0;
    x = full ? x >> 16 : x;
    const uint32_t quotient = uint32_t(x * s.inverse >> 44);
    x += quotient * (SHARES - s.share) + s.start;
}

// Codes n symbols into the bytes before `end`, with share(i) for symbol i; returns where the bytes begin. Needs STATE_BYTES + 2 * n bytes.
template <typename ShareAt>
inline uint8_t *encode(int64_t n, uint8_t *end, ShareAt share) {
    if (n == 0) return end;
    uint32_t x[LANES];
    for (auto &state : x) state = LEAST;
    uint8_t *out = end;
    const int64_t whole = n / LANES * LANES;
    for (int64_t i = n - 1; i >= whole; --i) put(x[i - whole], out, share(i));
    for (int64_t base = whole - LANES; base >= 0; base -= LANES) {
#pragma GCC unroll 8
        for (int lane = LANES - 1; lane >= 0; --lane) put(x[lane], out, share(base + lane));
    }
    out -= STATE_BYTES;
    std::memcpy(out, x, STATE_BYTES);
    return out;
}

// Decodes n symbols from `size` bytes; interval(i, place) notes symbol i and returns its interval. False if no encoder wrote these bytes.
template <typename IntervalAt>
inline bool decode(int64_t n, const uint8_t *data, int64_t size, IntervalAt interval) {
    if (n == 0) return size == 0;
    if (size < STATE_BYTES || size % 2) return false;
    uint32_t x[LANES];
    std::memcpy(x, data, STATE_BYTES);
    for (auto state : x)
        if (state < LEAST) return false;
    const uint8_t *in = data + STATE_BYTES, *const end = data + size;
    const auto get = [&](uint32_t &state, int64_t i, const uint8_t *from) {
        const uint32_t place = state & (SHARES - 1);
        const Interval found = interval(i, place);
        const uint32_t next = (state >> SHARE_BITS) * found.share + place - found.start;
        uint16_t word;
        std::memcpy(&word, from, 2);
        const bool low = next < LEAST;
        state = low ? next << 16 | word : next;
        return low;
    };
    const int64_t whole = n / LANES * LANES;
    int64_t base = 0;
    for (; base < whole && end - in >= 2 * LANES; base += LANES) {
#pragma GCC unroll 8
        for (int lane = 0; lane < LANES; ++lane) in += get(x[lane], base + lane, in) ? 2 : 0;
    }
    uint8_t rest[2] = {};
    for (int64_t i = base; i < n; ++i) {  // near the end, check for each word that it exists
        const bool held = end - in >= 2;
        if (get(x[i % LANES], i, held ? in : rest)) {
            if (!held) return false;
            in += 2;
        }
    }
    for (auto state : x)
        if (state != LEAST) return false;
    return in == end;
}

}  // namespace rans
