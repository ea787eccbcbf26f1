// klt/planes.py and klt/table.py, compiled: the same bytes. Built by compile.py.

#include <cmath>
#include <cstdlib>
#include <functional>
#include <new>
#include <numeric>

#include "range.h"

namespace {

constexpr int START = -10, TOP = 13, CLASSES = TOP - START + 1, NEAR = 9, STEPS = 8, ESCAPE = 14, POINTS = 3;
constexpr int LATER = CLASSES * NEAR, MORE = 2 * CLASSES * NEAR, HALF = MORE + CLASSES * STEPS, CONTEXTS = HALF + CLASSES * POINTS;
constexpr int FIRST = 24, LONGEST = 24, WIDEST = 16;
constexpr int32_t MOST = 1 << 24;
constexpr int MOST_SAID = 1 + ESCAPE + 2 * LONGEST + 1 + WIDEST + 1;  // of a coefficient that starts

int level(int k) { return std::min(k, TOP) - START; }

constexpr int64_t MOST_DIMS = 512, MOST_PLANES = 24;
constexpr int64_t WIDE = 32;  // rows may be worked on in whole vectors: so much room lies behind them
constexpr int32_t NEVER = -MOST;
int64_t whole_vectors(int64_t n) { return (n + WIDE - 1) & -WIDE; }

// The coefficients of a cell, and which of a token's have started: stretches of neighbours that are all new to a pass, or all known to it.
struct Shape {
    int64_t tokens, dims;
    const int32_t *token;
    std::vector<int32_t> klass;  // NEVER behind the last
    bool falls;                  // klass falls: whatever has started is a prefix
    Shape(int64_t tokens, int64_t dims, const int32_t *token, const int32_t *from)
        : tokens(tokens), dims(dims), token(token), klass(dims + WIDE, NEVER), falls(std::is_sorted(from, from + dims, std::greater<>())) {
        std::copy_n(from, dims, klass.begin());
    }

    // How many classes are at least so large.
    int64_t count(int least) const {
        int found = 0;
        for (int64_t j = 0, n = whole_vectors(dims); j < n; ++j) found += klass[j] >= least;
        return found;
    }
    // known(from, to) and fresh(from, to), in order. before: -1 if no pass was.
    template <class Known, class Fresh> void stretches(int64_t t, int before, int planes, Known known, Fresh fresh) const {
        const int now = START - 4 * planes - token[t], then = before < 0 ? MOST : START - 4 * before - token[t];
        if (falls) {
            const int64_t old = before < 0 ? 0 : count(then), all = count(now);
            if (old) known(int64_t(0), old);
            if (all > old) fresh(old, all);
            return;
        }
        for (int64_t from = 0, to; from < dims; from = to) {
            const int kind = (klass[from] >= now) + (klass[from] >= then);
            for (to = from + 1; to < dims && (klass[to] >= now) + (klass[to] >= then) == kind; ++to) {}
            if (kind == 2) known(from, to);
            else if (kind == 1) fresh(from, to);
        }
    }
};

// A growing list of what was said. `room` makes sure that so much more fits.
class Words {
  public:
    Said *next = nullptr;
    ~Words() { std::free(first_); }
    int64_t size() const { return next - first_; }
    const Said *begin() const { return first_; }
    void room(int64_t more) {
        if (last_ - next >= more) return;
        const int64_t held = size(), wanted = 2 * held + more;
        void *const fresh = std::realloc(first_, wanted * sizeof(Said));
        if (!fresh) throw std::bad_alloc();
        first_ = static_cast<Said *>(fresh), next = first_ + held, last_ = first_ + wanted;
    }

  private:
    Said *first_ = nullptr, *last_ = nullptr;
};

struct Encode {
    Said *next;
    int plain_context;
    int adaptive(int context, int bit) { return *next++ = Said(context | bit << BIT), bit; }
    int plain(int bit) { return adaptive(plain_context, bit); }
};

struct Decode {
    Chance *chances;
    Reader io;
    ALWAYS_INLINE int adaptive(int context, int) {
        Chance &chance = chances[context];
        const uint32_t bit = io.bit(chance.zero);
        chance.learn(bit);
        return int(bit);
    }
    ALWAYS_INLINE int plain(int) { return int(io.bit(EVEN)); }
};

// An Exp-Golomb code of `rest`, at least 1.
template <class Coder> int64_t exp_golomb(Coder &coder, int64_t rest) {
    int bits = 0;
    while (bits < LONGEST && coder.plain(rest >> (bits + 1) > 0)) ++bits;
    int64_t value = 1;
    for (int b = bits - 1; b >= 0; --b) value = 2 * value + coder.plain(int(rest >> b & 1));
    return value;
}

// The magnitude of a coefficient that starts, whose class is k, after its first bit: whether it is 1 or more without its plain bits.
template <class Coder> int64_t fresh_rest(Coder &coder, int k, int first, int32_t whole) {
    const int at = level(k), shift = std::clamp((k - TOP) >> 2, 0, WIDEST);
    const int64_t high = whole >> shift;
    int64_t m = first;
    if (m) {
        while (m <= ESCAPE && coder.adaptive(MORE + at * STEPS + int(std::min<int64_t>(m, STEPS)) - 1, high > m)) ++m;
        if (m > ESCAPE) m += exp_golomb(coder, std::max<int64_t>(high - m + 1, 1)) - 1;
    }
    for (int b = shift - 1; b >= 0; --b) m = 2 * m + coder.plain(whole >> b & 1);
    return m;
}

// What each pass says of a cell, since all of its values are known: contexts by whole vectors.
class Model {
  public:
    // target: magnitudes at the finest step, negative: signs; both with WIDE more behind them.
    Model(const Shape &shape, const int32_t *target, const uint8_t *negative, int finest)
        : shape_(shape), target_(target), negative_(negative), finest_(finest), room_(shape.dims + WIDE), whole_(room_), more_(room_),
          near_(2 * room_ + 1), said_(room_ * std::max(4, finest + 2)), quads_(room_) {}

    void pass(Words &words, int before, int planes) {
        const int shift = finest_ - planes, steps = planes - before;
        uint8_t *above = near_.data() + 1, *here = above + room_;  // 0, 1, or 2 and more; one 0 before the first
        std::fill(near_.begin(), near_.end(), 0);
        for (int64_t t = 0; t < shape_.tokens; ++t, std::swap(above, here)) {
            const int token = shape_.token[t];
            words.room(shape_.dims * std::max(MOST_SAID, steps + 1) + WIDE);
            settle(target_ + t * shape_.dims, START - 4 * planes - token, shift, here);
            const auto known = [&](int64_t from, int64_t to) {
                for (int q = 1; q <= steps; ++q) contexts(from, to, token + 4 * (before + q), steps - q, above, here - 1, said_.data() + (q - 1) * room_);
                signs(from, to, steps, negative_ + t * shape_.dims);
                words.next = steps < 4 ? quads(words.next, from, to) : merged(words.next, from, to, steps);
            };
            const auto fresh = [&](int64_t from, int64_t to) {
                Encode coder{words.next, CONTEXTS};
                for (int64_t j = from; j < to; ++j) {
                    const int k = shape_.klass[j] + token + 4 * planes, shift = std::clamp((k - TOP) >> 2, 0, WIDEST);
                    fresh_rest(coder, k, coder.adaptive(level(k) * NEAR + above[j] * 3 + here[j - 1], whole_[j] >> shift > 0), whole_[j]);
                    if (whole_[j]) coder.plain(negative_[t * shape_.dims + j]);
                }
                words.next = coder.next;
            };
            shape_.stretches(t, before, planes, known, fresh);
        }
    }

  private:
    // The magnitudes of a token at the step of the pass, and what they are to the contexts of their neighbours.
    void settle(const int32_t *__restrict target, int least, int shift, uint8_t *__restrict here) {
        const int32_t *__restrict const klass = shape_.klass.data();
        int32_t *__restrict const whole = whole_.data();
        for (int64_t j = 0, n = whole_vectors(shape_.dims); j < n; ++j) {
            const int32_t held = target[j] >> shift, m = klass[j] >= least ? held : 0;
            whole[j] = m, here[j] = uint8_t(std::min(m, 2));
        }
    }
    // The context of a plane's bit of each magnitude, and the bit. left: planes of the pass below it.
    void contexts(int64_t from, int64_t to, int base, int left, const uint8_t *__restrict above, const uint8_t *__restrict up, Said *__restrict said) const {
        const int32_t *__restrict const klass = &shape_.klass[from], *__restrict const whole = &whole_[from];
        above += from, up += from, said += from;
        for (int64_t j = 0, n = whole_vectors(to - from); j < n; ++j) {
            const int at = std::min(klass[j] + base, TOP) - START, bits = whole[j] >> left, m = bits >> 1;
            const int later = LATER + at * NEAR + above[j] * 3 + up[j], half = HALF - 1 + at * POINTS + std::min(m, POINTS);
            said[j] = Said((m ? half : later) | (bits & 1) << BIT);
        }
    }
    // The signs, behind the contexts; and how many words each magnitude takes: those that were 0 until now take their sign.
    void signs(int64_t from, int64_t to, int steps, const uint8_t *__restrict negative) {
        const int32_t *__restrict const whole = &whole_[from];
        uint8_t *__restrict const more = &more_[from];
        Said *__restrict const sign = &said_[steps * room_ + from];
        negative += from;
        for (int64_t j = 0, n = whole_vectors(to - from); j < n; ++j) {
            more[j] = uint8_t(steps + ((whole[j] != 0) & (whole[j] >> steps == 0)));
            sign[j] = Said(CONTEXTS | negative[j] << BIT);
        }
    }
    // All words in order, four at a time of which more_ count.
    Said *quads(Said *next, int64_t from, int64_t to) {
        const Said *__restrict const a = &said_[from], *__restrict const b = a + room_, *__restrict const c = b + room_, *__restrict const d = c + room_;
        uint64_t *__restrict const quad = quads_.data();
        for (int64_t j = 0, n = whole_vectors(to - from); j < n; ++j) quad[j] = a[j] | uint64_t(b[j]) << 16 | uint64_t(c[j]) << 32 | uint64_t(d[j]) << 48;
        for (int64_t j = 0; j < to - from; next += more_[from + j], ++j) std::memcpy(next, &quad[j], 4 * sizeof(Said));
        return next;
    }
    Said *merged(Said *next, int64_t from, int64_t to, int steps) const {
        for (int64_t j = from; j < to; next += more_[j], ++j)
            for (int q = 0; q <= steps; ++q) next[q] = said_[q * room_ + j];
        return next;
    }

    const Shape &shape_;
    const int32_t *target_;
    const uint8_t *negative_;
    int finest_;
    int64_t room_;
    std::vector<int32_t> whole_;
    std::vector<uint8_t> more_, near_;
    std::vector<Said> said_;
    std::vector<uint64_t> quads_;
};

std::vector<uint8_t> padded(const uint8_t *data, int64_t size) {
    std::vector<uint8_t> bytes(size + Reader::ROOM);
    std::copy(data, data + size, bytes.begin());
    return bytes;
}

// Reads one pass, a token at a time: `open` a token, read it beside the tokens of other passes, and `close` it.
class Reading {
  public:
    Reading(const Shape &shape, const std::vector<Chance> &initial, const uint8_t *data, int64_t size, int before, int planes, int finest, int32_t *found, uint8_t *negative)
        : shape_(shape), before_(before), planes_(planes), steps_(before < 0 ? 0 : planes - before), most_(MOST >> (finest - planes)), found_(found),
          all_negative_(negative), bytes_(padded(data, size)), chances_(initial), coder_{chances_.data(), Reader(bytes_.data(), size)}, at_(new Row()) {}

    void open(int64_t t) {
        row_ = found_ + t * shape_.dims, negative_ = all_negative_ + t * shape_.dims, token_ = shape_.token[t], up_ = 0;
        wide_ = TOP + 4 - token_ - 4 * planes_;
        stretches_.clear();
        known_ = all_ = 0;
        const auto known = [&](int64_t from, int64_t to) {
            for (int q = 0; q < steps_; ++q) contexts(from, to, LATER, token_ + 4 * (before_ + 1 + q), at_->near, at_->contexts[q]);
            sizes(from, to, row_, at_->state);
            if (!from) known_ = all_ = to;
            stretches_.push_back({from, to, true});
        };
        const auto fresh = [&](int64_t from, int64_t to) {
            contexts(from, to, 0, token_ + 4 * planes_, at_->near, at_->contexts[0]);
            if (from == all_) all_ = to;
            stretches_.push_back({from, to, false});
        };
        shape_.stretches(t, before_, planes_, known, fresh);
    }
    // Tokens of K passes, coefficient by coefficient, since each bit waits for the one before it in its own pass alone.
    template <int K> static void read(Reading *const lanes) {
        int64_t most = 0;
        for (int k = 0; k < K; ++k) most = std::max(most, lanes[k].all_);
        for (int64_t j = 0; j < most; ++j)
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k) lanes[k].step(j);
        for (int k = 0; k < K; ++k) lanes[k].rest();
    }
    void close() {
        for (const Stretch &s : stretches_)
            if (s.known) finer(s.to - s.from, steps_, at_->bits + s.from, row_ + s.from);
        settle(shape_.dims, row_, at_->negative, at_->near, negative_);
    }

  private:
    struct Stretch { int64_t from, to; bool known; };
    // Where the contexts of a plane's bit begin: those of a magnitude that is 0, to which `up` is added, and the others.
    struct Contexts { Said later, half; };
    // What is needed of each coefficient of a token, and what is found. near: 3 times what the token above is to the contexts.
    struct Row {
        uint8_t state[MOST_DIMS + WIDE], bits[MOST_DIMS + WIDE], negative[MOST_DIMS + WIDE], near[MOST_DIMS + WIDE];
        Contexts contexts[MOST_PLANES][MOST_DIMS + WIDE];
    };

    void contexts(int64_t from, int64_t to, int first, int base, const uint8_t *__restrict near, Contexts *__restrict found) const {
        const int32_t *__restrict const klass = &shape_.klass[from];
        near += from, found += from;
        for (int64_t j = 0, n = whole_vectors(to - from); j < n; ++j) {
            const int at = std::min(klass[j] + base, TOP) - START;
            found[j] = {Said(first + at * NEAR + near[j]), Said(HALF - 1 + at * POINTS)};
        }
    }
    // Magnitudes of 3 and more are alike to the contexts.
    static void sizes(int64_t from, int64_t to, const int32_t *__restrict row, uint8_t *__restrict state) {
        row += from, state += from;
        for (int64_t j = 0, n = whole_vectors(to - from); j < n; ++j) state[j] = uint8_t(std::min(row[j], POINTS));
    }

    static void finer(int64_t n, int steps, const uint8_t *__restrict bits, int32_t *__restrict row) {
        for (int64_t j = 0; j < n; ++j) row[j] = row[j] << steps | bits[j];
    }
    static void settle(int64_t n, const int32_t *__restrict row, uint8_t *__restrict fresh, uint8_t *__restrict near, uint8_t *__restrict negative) {
        for (int64_t j = 0; j < n; ++j) near[j] = uint8_t((row[j] < 2 ? row[j] : 2) * 3), negative[j] |= fresh[j], fresh[j] = 0;
    }

    ALWAYS_INLINE void step(int64_t j) {
        if (j < known_) known(j);
        else if (j < all_) fresh(j);
    }
    // What does not lie in one stretch from the first coefficient on.
    void rest() {
        int64_t next = all_;
        for (const Stretch &s : stretches_) {
            if (s.from < all_) continue;
            if (s.from != next) up_ = 0;
            for (int64_t j = s.from; j < s.to; ++j)
                if (s.known) known(j);
                else fresh(j);
            next = s.to;
        }
    }
    ALWAYS_INLINE void known(int64_t j) {
        Row &at = *at_;
        uint32_t m = at.state[j], found = 0;  // min(m, 3), and min(m, 2) at the end, by shifts
        const bool was = m;
        for (int q = 0; q < steps_; ++q) {
            const Contexts from = at.contexts[q][j];
            const uint32_t bit = uint32_t(coder_.adaptive(int(chosen(m, from.half + m, from.later + up_)), 0));
            found = 2 * found + bit, m = 0x33333210u >> 4 * (2 * m + bit) & 3;
        }
        at.negative[j] = uint8_t(coder_.io.plain_if((m != 0) & !was));
        at.bits[j] = uint8_t(found), up_ = 0x2210u >> 4 * m & 3;
    }
    ALWAYS_INLINE void fresh(int64_t j) {
        Chance &chance = coder_.chances[at_->contexts[0][j].later + up_];
        const uint32_t bit = coder_.io.rare_bit(chance.zero);
        chance.learn(bit);
        up_ = 0;
        if (__builtin_expect(bit || shape_.klass[j] >= wide_, 0)) large(j, int(bit));
    }
    // The rest of a coefficient that starts, after its first bit.
    __attribute__((noinline)) void large(int64_t j, int first) {
        const int64_t m = fresh_rest(coder_, shape_.klass[j] + token_ + 4 * planes_, first, 0);
        row_[j] = int32_t(std::min<int64_t>(m, most_));  // only damaged bytes have more
        if (row_[j]) at_->negative[j] = uint8_t(coder_.plain(0));
        up_ = uint32_t(std::min(2, row_[j]));
    }

    const Shape &shape_;
    int before_, planes_, steps_;
    int32_t most_, *found_, *row_ = nullptr;
    uint8_t *all_negative_, *negative_ = nullptr;
    int token_ = 0, wide_ = 0;  // wide_: from this class on, a coefficient that starts has plain bits
    uint32_t up_ = 0;           // what the coefficient before is to the contexts
    int64_t known_ = 0, all_ = 0;  // the first of them started before; and so many have started
    std::vector<uint8_t> bytes_;
    std::vector<Chance> chances_;
    Decode coder_;
    std::unique_ptr<Row> at_;
    std::vector<Stretch> stretches_;
};

// klt/table.py, compiled.
template <typename Coder>
void table(Coder &coder, int64_t rows, int64_t columns, int32_t *values, bool predicts) {
    constexpr int STEP = 12;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) {
            int32_t &value = values[r * columns + c];
            int64_t guess = 0, place = std::min<int64_t>(c / 8, 7);
            if (predicts) {
                const int64_t left = c ? values[r * columns + c - 1] : 0, up = r ? values[(r - 1) * columns + c] : left;
                guess = (left + up) >> 1;
                place = std::clamp<int64_t>(left - up, -4, 3) + 4;
            }
            const int64_t wanted = int64_t(value) - guess, size = wanted < 0 ? -wanted : wanted;
            const int base = int(place) * (2 + STEP);
            int64_t m = coder.adaptive(base, size > 0), more = 0;
            int negative = 0;
            if (m) {
                negative = coder.adaptive(base + 1, wanted < 0);
                while (more < STEP && coder.adaptive(base + 2 + int(more), size - 1 > more)) ++more;
                m += more + (more == STEP ? exp_golomb(coder, std::max<int64_t>(size - more, 1)) - 1 : 0);
            }
            value = int32_t(std::clamp<int64_t>(guess + (negative ? -m : m), -MOST, MOST));
        }
}
constexpr int PLACES = 8 * 14, MOST_ENTRY = 2 + 12 + 2 * LONGEST + 1;

// Where in `points` the point of a magnitude of class k stands.
int point(int k, int32_t m) { return (std::clamp(k, START, TOP) - START) * POINTS + std::clamp(m, 1, POINTS) - 1; }

// The squared error of a cell, in lanes that add up to it.
struct Errors {
    static constexpr int64_t LANES = 16;
    double sums[LANES] = {};
    double total() const { return std::accumulate(sums, sums + LANES, 0.0); }

    // Add what is left of a token's values. sizes: their absolute values; the last `shift` planes of `target` are missing.
    void add(int64_t dims, const float *__restrict sizes, const int32_t *__restrict target, const int32_t *__restrict klass, int base, int shift,
             const float *__restrict points, int32_t *__restrict found, int32_t *__restrict place, float *__restrict left) {
        const float unit = float(1 << shift);
        const int64_t n = (dims + LANES - 1) / LANES * LANES;
        for (int64_t j = 0; j < n; ++j) {
            const int k = std::min(klass[j] + base, TOP), held = target[j] >> shift, m = k < START ? 0 : held;
            found[j] = m;
            place[j] = std::max(k - START, 0) * POINTS + std::clamp(m, 1, POINTS) - 1;
        }
        for (int64_t j = 0; j < n; ++j) {
            const float value = (float(found[j]) + points[place[j]]) * unit;
            left[j] = sizes[j] - (found[j] ? value : 0.0f);
        }
        std::fill(left + dims, left + n, 0.0f);
        float squares[LANES] = {};
        for (int64_t j = 0; j < n; j += LANES)
            for (int64_t lane = 0; lane < LANES; ++lane) squares[lane] += left[j + lane] * left[j + lane];
        for (int64_t lane = 0; lane < LANES; ++lane) sums[lane] += double(squares[lane]);
    }
};

// What a token's magnitudes stand for.
void values(int64_t dims, const int32_t *__restrict found, const uint8_t *__restrict negative, const int32_t *__restrict klass, int base, float unit,
            const float *__restrict points, float *__restrict y) {
    constexpr int64_t MANY = 64;
    int32_t place[MANY];
    for (int64_t from = 0; from < dims; from += MANY) {
        const int64_t n = std::min(MANY, dims - from);
        const int32_t *__restrict const m = found + from;
        for (int64_t j = 0; j < n; ++j) place[j] = point(klass[from + j] + base, m[j]);
        for (int64_t j = 0; j < n; ++j) {
            const float size = (float(m[j]) + points[place[j]]) * (negative[from + j] ? -unit : unit);
            y[from + j] = m[j] ? size : 0.0f;
        }
    }
}

// Where in their bins the magnitudes of a pass lay: added to `offsets`.
void count_offsets(const Shape &shape, const float *sizes, const int32_t *target, int planes, int shift, double *offsets) {
    for (int64_t i = 0; i < shape.tokens * shape.dims; ++i) {
        const int k = shape.klass[i % shape.dims] + shape.token[i / shape.dims] + 4 * planes;
        const int32_t m = k < START ? 0 : target[i] >> shift;
        if (m) offsets[2 * point(k, m)] += double(sizes[i]) / (1 << shift) - m, offsets[2 * point(k, m) + 1] += 1;
    }
}

std::vector<Chance> start(const uint16_t *initial) {
    std::vector<Chance> chances(CONTEXTS + 1, PLAIN);
    for (int c = 0; c < CONTEXTS; ++c) chances[c] = {initial[c], FIRST};
    return chances;
}

}  // namespace

extern "C" {

// y: [tokens, dims], in finest steps. planes: [passes], bit-planes below the first step after each pass. points: [CLASSES * POINTS].
// errors: [passes + 1], in squared finest steps. counts: [CONTEXTS, 2] and offsets: [CLASSES * POINTS, 2], added to, or null.
// Returns 0, or 1 if a value is too large.
int64_t abkt_klt_encode(int64_t tokens, int64_t dims, const float *y, const int32_t *token, const int32_t *klass, int64_t passes,
                        const int32_t *planes, const uint16_t *initial, const float *points, uint8_t *out, int64_t capacity, int64_t *sizes,
                        double *errors, int64_t *counts, double *offsets) {
    const int64_t n = tokens * dims;
    const int finest = planes[passes - 1];
    std::vector<float> size(n + WIDE);
    std::vector<int32_t> target(n + WIDE);
    std::vector<uint8_t> negative(n + WIDE);
    for (int64_t i = 0; i < n; ++i) size[i] = std::fabs(y[i]), negative[i] = y[i] < 0;
    bool good = true;
    for (int64_t i = 0; i < n; ++i) good &= size[i] < float(MOST);
    if (!good) return 1;
    for (int64_t i = 0; i < n; ++i) target[i] = int32_t(size[i]);
    const Shape shape(tokens, dims, token, klass);
    Model model(shape, target.data(), negative.data(), finest);
    Words words;
    std::vector<int64_t> ends{0};
    for (int64_t p = 0; p < passes; ++p) model.pass(words, p ? planes[p - 1] : -1, planes[p]), ends.push_back(words.size());
    std::vector<Lane> lanes;
    for (int64_t p = 0; p < passes; ++p) lanes.emplace_back(words.begin() + ends[p], words.begin() + ends[p + 1], start(initial));
    finish(lanes);
    for (int64_t p = 0; p < passes; ++p) {
        sizes[p] = lanes[p].close(out, capacity);
        out += sizes[p], capacity -= sizes[p];
    }
    for (const Said *said = words.begin(); counts && said < words.next; ++said)
        if (const int context = *said & ((1 << BIT) - 1); context < CONTEXTS) ++counts[2 * context + (*said >> BIT)];
    std::vector<Errors> left(passes + 1);
    std::vector<int32_t> room(2 * (dims + WIDE));
    std::vector<float> off(dims + WIDE);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t p = 0; p <= passes; ++p) {
            const int base = p ? token[t] + 4 * planes[p - 1] : NEVER, shift = p ? finest - planes[p - 1] : 0;
            left[p].add(dims, &size[t * dims], &target[t * dims], shape.klass.data(), base, shift, points, room.data(), &room[dims + WIDE], off.data());
        }
    for (int64_t p = 0; p <= passes; ++p) errors[p] = left[p].total();
    for (int64_t p = 0; p < passes && offsets; ++p) count_offsets(shape, size.data(), target.data(), planes[p], finest - planes[p], offsets);
    return 0;
}

// values: [rows, columns]. Returns the bytes written.
int64_t abkt_klt_pack(int64_t rows, int64_t columns, const int32_t *values, int64_t predicts, uint8_t *out, int64_t capacity) {
    std::vector<int32_t> copy(values, values + rows * columns);
    std::vector<Said> said(rows * columns * MOST_ENTRY);
    Encode coder{said.data(), PLACES};
    table(coder, rows, columns, copy.data(), predicts != 0);
    std::vector<Chance> chances(PLACES + 1, Chance{EVEN, 2});
    chances[PLACES] = PLAIN;
    std::vector<Lane> lanes;
    lanes.emplace_back(said.data(), coder.next, chances);
    finish(lanes);
    return lanes[0].close(out, capacity);
}

void abkt_klt_unpack(int64_t rows, int64_t columns, int32_t *values, int64_t predicts, const uint8_t *data, int64_t size) {
    std::fill(values, values + rows * columns, 0);
    std::vector<Chance> chances(PLACES, Chance{EVEN, 2});
    const std::vector<uint8_t> bytes = padded(data, size);
    Decode coder{chances.data(), Reader(bytes.data(), size)};
    table(coder, rows, columns, values, predicts != 0);
}

// The values after `present` passes, in finest steps. data, starts, sizes: the passes' bytes.
void abkt_klt_decode(int64_t tokens, int64_t dims, const int32_t *token, const int32_t *klass, int64_t present, const int32_t *planes,
                     int64_t finest, const uint16_t *initial, const float *points, const uint8_t *data, const int64_t *starts,
                     const int64_t *sizes, float *y) {
    const int64_t n = tokens * dims;
    std::vector<int32_t> found(n + WIDE);
    std::vector<uint8_t> negative(n);
    const Shape shape(tokens, dims, token, klass);
    const std::vector<Chance> chances = start(initial);
    std::vector<Reading> passes;
    for (int64_t p = 0; p < present; ++p)
        passes.emplace_back(shape, chances, data + starts[p], sizes[p], p ? planes[p - 1] : -1, planes[p], int(finest), found.data(), negative.data());
    for (int64_t step = 0; step < tokens + present - 1; ++step) {  // each pass is a token behind the one before it
        const int64_t first = std::max<int64_t>(0, step - tokens + 1), last = std::min(step, present - 1);
        for (int64_t p = first; p <= last; ++p) passes[p].open(step - p);
        int64_t p = first;
        for (; p + 6 <= last + 1; p += 6) Reading::read<6>(&passes[p]);
        for (; p + 5 <= last + 1; p += 5) Reading::read<5>(&passes[p]);
        for (; p + 4 <= last + 1; p += 4) Reading::read<4>(&passes[p]);
        for (; p + 3 <= last + 1; p += 3) Reading::read<3>(&passes[p]);
        for (; p + 2 <= last + 1; p += 2) Reading::read<2>(&passes[p]);
        for (; p <= last; ++p) Reading::read<1>(&passes[p]);
        for (p = first; p <= last; ++p) passes[p].close();
    }
    const int last = present ? planes[present - 1] : 0;
    for (int64_t t = 0; t < tokens; ++t)
        values(dims, &found[t * dims], &negative[t * dims], klass, token[t] + 4 * last, float(1 << (finest - last)), points, y + t * dims);
}

}  // extern "C"
