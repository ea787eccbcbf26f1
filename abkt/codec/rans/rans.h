// The encoding and decoding loops of rans/oracle.py.

#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#if defined(__SSSE3__)
#include <immintrin.h>
#endif

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

// A share in one word, so that eight lanes load theirs with one gather: bits 0 to 31 of the inverse ceil(2**(32 + k) / share) - 2**32, where k
// (bits 57 up) is the least number with share <= 2**k; share (bits 32 up) and start (bits 45 up). x / share == ((x * inverse >> 32) + x) >> k for
// every x below 2**32, because the inverse times the share exceeds 2**(32 + k) by less than the share, which is at most 2**k.
inline uint64_t packed_share(uint64_t start, uint64_t share) {
    uint64_t k = 0;
    while ((1ull << k) < share) ++k;
    const uint64_t inverse = share ? ((1ull << (32 + k)) + share - 1) / share - (1ull << 32) : 0;
    return inverse | share << 32 | start << 45 | k << 57;
}

inline void put_packed(uint64_t &x, uint8_t *&out, uint64_t entry) {
    const uint64_t share = entry >> 32 & 0x1FFF;
    const uint16_t word = uint16_t(x);
    if ((x >> 20) >= share) {
        out -= 2;
        std::memcpy(out, &word, 2);
        x >>= 16;
    }
    const uint64_t quotient = ((x * (entry & 0xFFFFFFFF) >> 32) + x) >> (entry >> 57);
    x += quotient * (SHARES - share) + (entry >> 45 & 0xFFF);
}

#if defined(__AVX2__)
// [mask of the lanes that write a word]: their words, moved to the end of 16 bytes in the order of the lanes.
inline const std::array<std::array<uint8_t, 16>, 256> &to_the_end() {
    static const auto table = [] {
        std::array<std::array<uint8_t, 16>, 256> made{};
        for (int mask = 0; mask < 256; ++mask) {
            made[mask].fill(0x80);
            for (int lane = LANES - 1, at = LANES - 1; lane >= 0; --lane)
                if (mask >> lane & 1) made[mask][2 * at] = uint8_t(2 * lane), made[mask][2 * at + 1] = uint8_t(2 * lane + 1), --at;
        }
        return made;
    }();
    return table;
}

struct Lanes {  // eight states, and one step of all
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    __m512i x;
    void load(const uint64_t *from) { x = _mm512_loadu_si512(from); }
    void save(uint64_t *to) const { _mm512_storeu_si512(to, x); }
    uint8_t *put(uint8_t *out, const uint16_t *at, const uint64_t *entry, const std::array<uint8_t, 16> *order) {
        const __m512i e = _mm512_i64gather_epi64(_mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at))), entry, 8);
        const __m512i share = _mm512_and_si512(_mm512_srli_epi64(e, 32), _mm512_set1_epi64(0x1FFF));
        const __m512i start = _mm512_and_si512(_mm512_srli_epi64(e, 45), _mm512_set1_epi64(0xFFF));
        const __mmask8 full = _mm512_cmpge_epu64_mask(x, _mm512_slli_epi64(share, 20));
        const __m128i words = _mm_shuffle_epi8(_mm512_cvtepi64_epi16(x), _mm_loadu_si128(reinterpret_cast<const __m128i *>(&order[full])));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out - 16), words);
        x = _mm512_mask_srli_epi64(x, full, x, 16);
        const __m512i quotient = _mm512_srlv_epi64(_mm512_add_epi64(_mm512_srli_epi64(_mm512_mul_epu32(x, e), 32), x), _mm512_srli_epi64(e, 57));
        const __m512i rest = _mm512_mul_epu32(quotient, _mm512_sub_epi64(_mm512_set1_epi64(SHARES), share));
        x = _mm512_add_epi64(_mm512_add_epi64(x, start), rest);
        return out - 2 * __builtin_popcount(full);
    }
#else
    __m256i x[2];
    void load(const uint64_t *from) {
        for (int i = 0; i < 2; ++i) x[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from) + i);
    }
    void save(uint64_t *to) const {
        for (int i = 0; i < 2; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i *>(to) + i, x[i]);
    }
    uint8_t *put(uint8_t *out, const uint16_t *at, const uint64_t *entry, const std::array<uint8_t, 16> *order) {
        const __m256i pick = _mm256_setr_epi8(0, 1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1,
                                              -1, -1, -1, -1);
        __m128i words = _mm_setzero_si128();
        int full = 0;
        for (int i = 0; i < 2; ++i) {
            const __m256i e = _mm256_setr_epi64x(int64_t(entry[at[4 * i]]), int64_t(entry[at[4 * i + 1]]), int64_t(entry[at[4 * i + 2]]),
                                                 int64_t(entry[at[4 * i + 3]]));
            const __m256i share = _mm256_and_si256(_mm256_srli_epi64(e, 32), _mm256_set1_epi64x(0x1FFF));
            const __m256i start = _mm256_and_si256(_mm256_srli_epi64(e, 45), _mm256_set1_epi64x(0xFFF));
            const __m256i low = _mm256_cmpgt_epi64(_mm256_slli_epi64(share, 20), x[i]);
            const __m256i word = _mm256_shuffle_epi8(x[i], pick);
            const __m128i four = _mm_unpacklo_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
            words = i ? _mm_unpacklo_epi64(words, four) : four;
            full |= (~_mm256_movemask_pd(_mm256_castsi256_pd(low)) & 15) << (4 * i);
            x[i] = _mm256_blendv_epi8(_mm256_srli_epi64(x[i], 16), x[i], low);
            const __m256i quotient =
                _mm256_srlv_epi64(_mm256_add_epi64(_mm256_srli_epi64(_mm256_mul_epu32(x[i], e), 32), x[i]), _mm256_srli_epi64(e, 57));
            const __m256i rest = _mm256_mul_epu32(quotient, _mm256_sub_epi64(_mm256_set1_epi64x(SHARES), share));
            x[i] = _mm256_add_epi64(_mm256_add_epi64(x[i], start), rest);
        }
        const __m128i moved = _mm_shuffle_epi8(words, _mm_loadu_si128(reinterpret_cast<const __m128i *>(&order[full])));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out - 16), moved);
        return out - 2 * __builtin_popcount(unsigned(full));
    }
#endif
};
#endif

// As encode, with packed shares: symbol i has entry[at[i]]. Needs 16 bytes more.
inline uint8_t *encode_packed(int64_t n, uint8_t *end, const uint16_t *at, const uint64_t *entry) {
    if (n == 0) return end;
    uint64_t x[LANES];
    for (auto &state : x) state = LEAST;
    uint8_t *out = end;
    int64_t base = n / LANES * LANES;
    for (int64_t i = n - 1; i >= base; --i) put_packed(x[i - base], out, entry[at[i]]);
#if defined(__AVX2__)
    const auto *const order = to_the_end().data();
    Lanes lanes;
    lanes.load(x);
    for (base -= LANES; base >= 0; base -= LANES) out = lanes.put(out, at + base, entry, order);
    lanes.save(x);
#else
    for (base -= LANES; base >= 0; base -= LANES)
        for (int lane = LANES - 1; lane >= 0; --lane) put_packed(x[lane], out, entry[at[base + lane]]);
#endif
    out -= STATE_BYTES;
    for (int lane = 0; lane < LANES; ++lane) {
        const uint32_t state = uint32_t(x[lane]);
        std::memcpy(out + 4 * lane, &state, 4);
    }
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
