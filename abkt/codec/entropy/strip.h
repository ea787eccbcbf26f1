// The sums that stats.py and haar.py need of a strip [tokens, dim], in float64 and in the order in which numpy adds them: token by token.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

// A strip without its outliers: a value that is NaN in `x` counts as the `mean` of its channel.
struct Values {
    int64_t tokens, dim;
    const float *x;
    const double *mean;
    void row(int64_t t, double *to) const {
        for (int64_t c = 0; c < dim; ++c) {
            const float v = x[t * dim + c];
            to[c] = v == v ? double(v) : mean[c];
        }
    }
};

// The centre and deviation of each channel over its known values; a value at or above `limit` is unknown.
struct Known {
    std::vector<double> count, mean, deviation, far;
    Known(const float *x, int64_t tokens, int64_t dim, float limit) : count(dim), mean(dim), deviation(dim), far(dim) {
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t c = 0; c < dim; ++c) {
                const float v = x[t * dim + c];
                const bool known = std::fabs(v) < limit;
                count[c] += known ? 1.0 : 0.0;
                mean[c] += known ? double(v) : 0.0;
            }
        for (int64_t c = 0; c < dim; ++c) mean[c] /= std::max(1.0, count[c]);
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t c = 0; c < dim; ++c) {
                const float v = x[t * dim + c];
                const double left = std::fabs(v) < limit ? double(v) - mean[c] : 0.0, size = std::fabs(left);
                deviation[c] += left * left;
                far[c] = far[c] > size ? far[c] : size;
            }
        for (int64_t c = 0; c < dim; ++c) deviation[c] = std::sqrt(deviation[c] / std::max(1.0, count[c]));
    }
    bool without_outliers(int64_t tokens, double deviations) const {
        bool found = false;
        for (size_t c = 0; c < mean.size(); ++c) found |= count[c] < double(tokens) || far[c] > deviations * deviation[c];
        return !found;
    }
};

// stats._without_outliers. kept: a copy in which outliers are NaN, written only if there are any. Returns whether there are.
bool clean(const float *x, int64_t tokens, int64_t dim, float limit, double deviations, float *kept, double *mean) {
    Known known(x, tokens, dim, limit);
    std::copy(known.mean.begin(), known.mean.end(), mean);
    if (known.without_outliers(tokens, deviations)) return false;
    for (int round = 0; round < 2; ++round) {
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t c = 0; c < dim; ++c) {
                const float v = round ? kept[t * dim + c] : x[t * dim + c];
                const bool stays = std::fabs(v) < limit && std::fabs(double(v) - known.mean[c]) <= deviations * known.deviation[c];
                kept[t * dim + c] = stays ? v : std::numeric_limits<float>::quiet_NaN();
            }
        known = Known(kept, tokens, dim, limit);
    }
    std::copy(known.mean.begin(), known.mean.end(), mean);
    return true;
}

template <class Angle, class V> void turn(const V *a, const Angle *angles, Angle way, int64_t dim, V *to) {
    const int64_t half = dim / 2;
    for (int64_t c = 0; c < half; ++c) {
        const V x = a[c], y = a[half + c], cos = V(angles[c]), sin = V(angles[half + c] * way);
        to[c] = x * cos - y * sin;
        to[half + c] = y * cos + x * sin;
    }
}

// Sums over the tokens of the values, turned back by the angles [tokens, 2, dim / 2] unless they are null.
void add_up(const Values &values, const float *angles, double *sums) {
    std::vector<double> row(values.dim), turned(values.dim);
    std::fill(sums, sums + values.dim, 0.0);
    for (int64_t t = 0; t < values.tokens; ++t) {
        values.row(t, row.data());
        if (angles) turn(row.data(), angles + t * values.dim, -1.0f, values.dim, turned.data()), row.swap(turned);
        for (int64_t c = 0; c < values.dim; ++c) sums[c] += row[c];
    }
}

// Sums of squares of what the centre leaves, and of its differences of neighbouring tokens: [2 * levels + 1, dim], of the values, then for each
// level of its differences and of its sums. The centre turns with the angles unless they are null; `back`: the rest is then turned back.
void add_squares(const Values &values, const float *centre, const float *angles, bool back, int levels, double *squares) {
    constexpr double ROOT_HALF = double(0.70710678118654752440f);
    const int64_t dim = values.dim, group = int64_t(1) << levels;
    std::vector<double> rows(group * dim), turned(dim);
    std::vector<float> level(centre, centre + dim);
    std::fill(squares, squares + (2 * levels + 1) * dim, 0.0);
    const auto add = [dim](const double *row, double *to) {
        for (int64_t c = 0; c < dim; ++c) to[c] += row[c] * row[c];
    };
    for (int64_t first = 0; first < values.tokens; first += group) {
        for (int64_t i = 0; i < group; ++i) {
            double *const row = &rows[i * dim];
            values.row(first + i, row);
            if (angles) turn(centre, angles + (first + i) * dim, 1.0f, dim, level.data());
            for (int64_t c = 0; c < dim; ++c) row[c] -= double(level[c]);
            if (angles && back) {
                turn(row, angles + (first + i) * dim, -1.0f, dim, turned.data());
                std::copy(turned.begin(), turned.end(), row);
            }
            add(row, squares);
        }
        for (int done = 0; done < levels; ++done)
            for (int64_t i = 0; i < group >> (done + 1); ++i) {
                double *const a = &rows[2 * i * dim], *const b = a + dim, *const sum = &rows[i * dim];
                for (int64_t c = 0; c < dim; ++c) {
                    const double p = a[c], q = b[c];
                    turned[c] = (p - q) * ROOT_HALF;
                    sum[c] = (p + q) * ROOT_HALF;
                }
                add(turned.data(), squares + (2 * done + 1) * dim);
                add(sum, squares + (2 * done + 2) * dim);
            }
    }
}

// Squared deviation of the counted tokens from the means of their channels.
double deviation(const float *x, int64_t tokens, int64_t dim, const uint8_t *skipped) {
    std::vector<double> mean(dim), squares(dim);
    double count = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        if (skipped[t]) continue;
        ++count;
        for (int64_t c = 0; c < dim; ++c) mean[c] += double(x[t * dim + c]);
    }
    for (double &m : mean) m /= std::max(1.0, count);
    for (int64_t t = 0; t < tokens; ++t) {
        if (skipped[t]) continue;
        for (int64_t c = 0; c < dim; ++c) {
            const double left = double(x[t * dim + c]) - mean[c];
            squares[c] += left * left;
        }
    }
    double sum = 0;
    for (double s : squares) sum += s;
    return sum;
}

}  // namespace
