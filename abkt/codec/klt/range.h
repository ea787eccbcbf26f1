// The binary range coder of planes.py, without branches on the bits: their outcomes are near chance, and a wrong guess costs more than a bit.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace {

constexpr int LAST = 255;
constexpr uint32_t EVEN = 32768;  // the chance of a 0 of a plain bit

constexpr std::array<uint16_t, LAST + 2> rates() {
    std::array<uint16_t, LAST + 2> of{};  // the last is 0: a chance that learns nothing
    for (int seen = 0; seen <= LAST; ++seen) of[seen] = uint16_t(65536 / (seen + 2));
    return of;
}
constexpr std::array<uint16_t, LAST + 2> RATES = rates();

// `full` where m is not 0, else `empty`; compilers make a branch of it.
ALWAYS_INLINE uint32_t chosen(uint32_t m, uint32_t full, uint32_t empty) {
#if defined(__x86_64__)
    asm("testl %[m], %[m]\n\tcmovzl %[empty], %[full]" : [full] "+r"(full) : [m] "r"(m), [empty] "r"(empty) : "cc");
    return full;
#else
    return m ? full : empty;
#endif
}

struct Chance {
    uint16_t zero, seen;
    ALWAYS_INLINE void learn(uint32_t bit) {
        const uint32_t flip = (bit - 1) & 0xFFFF;  // 65,535 - zero is zero with all bits flipped; what is here is the other bit's chance
        uint32_t other = zero ^ flip;
        other -= (other * RATES[seen]) >> 16;
        zero = uint16_t(std::max(other, 31 + bit) ^ flip);
        seen += seen < LAST;
    }
};

// What an encoder says: a context, and the bit above it. Context `plain` of a lane's chances learns nothing.
using Said = uint16_t;
constexpr int BIT = 15;
constexpr Chance PLAIN{EVEN, LAST + 1};

// What is said becomes bytes; two lanes side by side, since each bit waits for the one before it.
class Lane {
  public:
    Lane(const Said *from, const Said *to, std::vector<Chance> chances)
        : said_(from), end_(to), chances_(std::move(chances)), digits_(new uint32_t[to - from + 2]), digit_(digits_.get()) { *digit_ = 0; }
    int64_t left() const { return end_ - said_; }

    static void run(Lane &a, Lane &b, int64_t steps) {
        State x(a), y(b);
        const Said *const of_x = a.said_, *const of_y = b.said_;
        for (int64_t i = 0; i < steps; ++i) x.put(of_x[i]), y.put(of_y[i]);
        x.leave(a, steps), y.leave(b, steps);
    }
    static void run(Lane &a, int64_t steps) {
        State x(a);
        const Said *const of_x = a.said_;
        for (int64_t i = 0; i < steps; ++i) x.put(of_x[i]);
        x.leave(a, steps);
    }

    // The bytes without the zeros at the end; returns how many. At most `capacity` are written.
    int64_t close(uint8_t *out, int64_t capacity) {
        uint32_t carry = uint32_t(low_ >> (32 + waiting_));
        for (uint32_t *d = digit_; d > digits_.get(); --d) {
            const uint32_t sum = *d + carry;
            *d = sum & 0xFFFF, carry = sum >> 16;
        }
        uint8_t *at = out, *const end = out + capacity;
        const auto byte = [&](uint64_t value) { if (at < end) *at++ = uint8_t(value); };
        for (const uint32_t *d = digits_.get() + 1; d <= digit_; ++d) byte(*d >> 8), byte(*d);
        for (int shift = 24 + waiting_; shift >= 0; shift -= 8) byte(low_ >> shift);
        while (at > out && at[-1] == 0) --at;
        return at - out;
    }

  private:
    // low_: 32 bits at work, `waiting_` above them that wait to be a digit of 16, and a carry. A digit's own carry is kept until the end.
    struct State {
        uint64_t low;
        uint32_t range;
        int waiting;
        uint32_t *digit;
        Chance *chances;
        explicit State(Lane &lane) : low(lane.low_), range(lane.range_), waiting(lane.waiting_), digit(lane.digit_), chances(lane.chances_.data()) {}
        void put(uint32_t said) {
            Chance &chance = chances[said & ((1 << BIT) - 1)];
            const uint32_t bit = said >> BIT, part = (range >> 16) * chance.zero;
            chance.learn(bit);
            low += part & -bit;
            range = bit ? range - part : part;
            const int shift = __builtin_clz(range) & 24;  // at most 16, since a chance is at least 32
            range <<= shift, low <<= shift, waiting += shift;
            if (waiting < 16) return;
            waiting -= 16;
            *++digit = uint32_t(low >> (32 + waiting));
            low &= (uint64_t(1) << (32 + waiting)) - 1;
        }
        void leave(Lane &lane, int64_t steps) const {
            lane.low_ = low, lane.range_ = range, lane.waiting_ = waiting, lane.digit_ = digit, lane.said_ += steps;
        }
    };
    const Said *said_, *end_;
    std::vector<Chance> chances_;
    std::unique_ptr<uint32_t[]> digits_;
    uint32_t *digit_, range_ = 0xFFFFFFFFu;
    uint64_t low_ = 0;
    int waiting_ = 0;
};

constexpr int64_t SLICE = 4096;

// Run all lanes to their ends: always the two that have most left.
inline void finish(std::vector<Lane> &lanes) {
    std::vector<Lane *> open;
    for (Lane &lane : lanes) open.push_back(&lane);
    const auto longer = [](const Lane *a, const Lane *b) { return a->left() > b->left(); };
    while (open.size() > 1) {
        std::sort(open.begin(), open.end(), longer);
        const int64_t second = open[1]->left(), third = open.size() > 2 ? open[2]->left() : second;
        Lane::run(*open[0], *open[1], std::min(second, second - third + SLICE));
        open.erase(std::remove_if(open.begin(), open.end(), [](const Lane *lane) { return !lane->left(); }), open.end());
    }
    for (Lane *lane : open) Lane::run(*lane, lane->left());
}

inline uint32_t big_endian(const uint8_t *at) {
    uint32_t value;
    std::memcpy(&value, at, 4);
    return __builtin_bswap32(value);
}

class Reader {
  public:
    static constexpr int ROOM = 8;  // zeros that must stand after the bytes
    Reader(const uint8_t *from, int64_t size)
        : code_(uint64_t(big_endian(from)) << 32 | big_endian(from + 4)), at_(from + std::min<int64_t>(8, size)), end_(from + size) {}
    ALWAYS_INLINE uint32_t bit(uint32_t zero) {
        const uint32_t part = (range_ >> 16) * zero;
        const uint64_t whole = uint64_t(part) << 32;
#if defined(__x86_64__)  // compilers make a branch of this
        uint64_t rest = code_;
        uint32_t other = range_ - part;
        uint8_t bit;
        asm("subq %[whole], %[rest]\n\tcmovcq %[code], %[rest]\n\tcmovcl %[part], %[other]\n\tsetnc %[bit]"
            : [rest] "+&r"(rest), [other] "+&r"(other), [bit] "=&r"(bit)
            : [whole] "r"(whole), [code] "r"(code_), [part] "r"(part)
            : "cc");
        code_ = rest, range_ = other;
#else
        const uint32_t bit = code_ >= whole, all = -bit;
        code_ -= whole & -uint64_t(bit);
        range_ = part + ((range_ - 2 * part) & all);
#endif
        next();
        return bit;
    }
    // A plain bit if there is one, else 0.
    ALWAYS_INLINE uint32_t plain_if(uint32_t there) {
        const uint32_t part = (range_ >> 16) << 15, bit = there & uint32_t(code_ >= uint64_t(part) << 32), all = -bit;
        code_ -= uint64_t(part & all) << 32;
        range_ = chosen(there, part + ((range_ - 2 * part) & all), range_);
        next();
        return bit;
    }
    // The same for a bit that is nearly always 0: then nothing waits for it.
    ALWAYS_INLINE uint32_t rare_bit(uint32_t zero) {
        const uint32_t part = (range_ >> 16) * zero;
        const uint64_t whole = uint64_t(part) << 32;
        const bool bit = code_ >= whole;
        if (__builtin_expect(bit, 0)) code_ -= whole, range_ -= part;
        else range_ = part;
        next();
        return bit;
    }

  private:
    ALWAYS_INLINE void next() {
        const int shift = __builtin_clz(range_) & 24;
        range_ <<= shift, code_ <<= shift, left_ -= shift;
        if (left_ < 16) refill();
    }
    // code_: 32 bits at work, and below them left_ that follow, at least 16.
    void refill() {
        code_ |= uint64_t(big_endian(at_) >> 8) << (8 - left_);
        left_ += 24, at_ = std::min(at_ + 3, end_);
    }
    uint64_t code_;
    uint32_t range_ = 0xFFFFFFFFu;
    int left_ = 32;
    const uint8_t *at_, *end_;
};

}  // namespace
