// rans/oracle.py, compiled: the same bytes, one stream after another. Built by compile.py.

#include <cstdint>

#include "rans.h"

namespace {

template <typename Code>
void fill(int64_t contexts, int64_t alphabet, const uint16_t *tables, Code code) {
    for (int64_t c = 0; c < contexts; ++c)
        for (int64_t s = 0, start = 0; s < alphabet; start += tables[c * alphabet + s], ++s)
            code(c, s, start, int64_t(tables[c * alphabet + s]));
}

}  // namespace

extern "C" {

// Stream i goes to the last `sizes[i]` bytes of out[i * capacity .. (i + 1) * capacity); capacity is most_bytes(n). `shared`: [contexts * alphabet].
// Returns the first stream with a symbol that has no share, or -1.
int64_t abkt_rans_encode(int64_t streams, int64_t n, const uint8_t *symbols, const uint8_t *contexts, int64_t rows, int64_t alphabet,
                      const uint16_t *tables, rans::Share *shared, int64_t capacity, uint8_t *out, int64_t *sizes) {
    fill(rows, alphabet, tables, [&](int64_t c, int64_t s, int64_t start, int64_t share) {
        shared[c * alphabet + s] = rans::share_of(start, share);
    });
    for (int64_t i = 0; i < streams; ++i) {
        const uint8_t *s = symbols + i * n, *c = contexts + i * n;
        uint8_t *end = out + (i + 1) * capacity;
        uint32_t least = rans::SHARES;
        const auto share = [&](int64_t at) {
            const rans::Share &found = shared[c[at] * alphabet + s[at]];
            least = found.share < least ? found.share : least;
            return found;
        };
        sizes[i] = end - rans::encode(n, end, share);
        if (least == 0) return i;
    }
    return -1;
}

// Returns the first stream that is damaged, or -1. `owner`: [contexts, 4096] and `shared`: [contexts * alphabet] are scratch memory.
int64_t abkt_rans_decode(int64_t streams, int64_t n, const uint8_t *data, const int64_t *offsets, const int64_t *sizes,
                         const uint8_t *contexts, int64_t rows, int64_t alphabet, const uint16_t *tables, uint8_t *owner,
                         rans::Interval *shared, uint8_t *symbols) {
    fill(rows, alphabet, tables, [&](int64_t c, int64_t s, int64_t start, int64_t share) {
        for (int64_t at = start; at < start + share; ++at) owner[c * rans::SHARES + at] = uint8_t(s);
        shared[c * alphabet + s] = {uint16_t(start), uint16_t(share)};
    });
    for (int64_t i = 0; i < streams; ++i) {
        const uint8_t *c = contexts + i * n;
        uint8_t *out = symbols + i * n;
        bool good = rans::decode(n, data + offsets[i], sizes[i], [&](int64_t at, uint32_t place) {
            const uint8_t s = owner[c[at] * rans::SHARES + place];
            out[at] = s;
            return shared[c[at] * alphabet + s];
        });
        if (!good) return i;
    }
    return -1;
}

}  // extern "C"
