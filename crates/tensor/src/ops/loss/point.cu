// Losses of numbers one by one, each with its target: their weighted sums and their slopes. `PointLoss::cuda` numbers them.

struct Terms { float value, of_x, of_y; };

DEV float at_least_0(float x) { return x < 0.0f ? 0.0f : x; }
// |d| and its slopes in x and y, where d = x - y.
DEV Terms distance(float d) {
    float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
    return {fabsf(d), sign, -sign};
}
DEV Terms huber(float d, float delta, float scale) {
    float size = fabsf(d), far = delta * (size - 0.5f * delta);
    float slope = (d < -delta ? -delta : d > delta ? delta : d) * scale;
    return {(size > delta ? far : 0.5f * d * d) * scale, slope, -slope};
}
// log(1 + e^x), log(1 + e^-x) and their slopes at x and -x: no term cancels.
struct Soft { float up, down, at, other; };
DEV Soft softplus(float x) {
    float e = expf(-fabsf(x)), small = log1pf(e), near = 1.0f / (1.0f + e), far = e * near;
    return {at_least_0(x) + small, at_least_0(-x) + small, x < 0.0f ? far : near, x > 0.0f ? far : near};
}
DEV Terms poisson(float x, float y, bool of_log, bool full, float eps) {
    Terms t;
    if (of_log) {
        float e = expf(x);
        t = {e - x * y, e - y, -x};
    } else {
        float at = x + eps, log = logf(at);
        t = {x - y * log, 1.0f - y / at, -log};
    }
    if (full && y > 1.0f) {
        float log = logf(y);
        t.value += y * log - y + 0.5f * (log + 1.837877066f);
        t.of_y += log + 0.5f / y;
    }
    return t;
}

// Of one pair; `positive` is what the term of y counts with logits.
DEV Terms terms(int loss, float a, float b, float x, float y, float positive) {
    switch (loss) {
    case 0: return {(x - y) * (x - y), 2.0f * (x - y), -2.0f * (x - y)};
    case 1: return distance(x - y);
    case 2: return huber(x - y, a, b);
    case 3: {
        float yes = -logf(x), no = -log1pf(-x), spread = x * (1.0f - x);
        yes = yes > 100.0f ? 100.0f : yes;
        no = no > 100.0f ? 100.0f : no;
        return {y * yes + (1.0f - y) * no, (x - y) / (spread < 1e-12f ? 1e-12f : spread), yes - no};
    }
    case 4: {
        Soft s = softplus(x);
        float yes = positive * y, no = 1.0f - y;
        return {yes * s.down + no * s.up, no * s.at - yes * s.other, positive * s.down - s.up};
    }
    case 5: {
        float less = a - x * y, on = less > 0.0f ? 1.0f : 0.0f;
        return {at_least_0(less), -(y * on), -(x * on)};
    }
    case 6: {
        float less = at_least_0(a - x * y);
        return {less * less, -2.0f * less * y, -2.0f * less * x};
    }
    case 7: {
        float less = a - x;
        return {y > 0.0f ? x : at_least_0(less), y > 0.0f ? 1.0f : less > 0.0f ? -1.0f : 0.0f, 0.0f};
    }
    case 8: {
        float e = expf(-(x * y));
        return {e, -(e * y), -(e * x)};
    }
    case 9: {
        Soft s = softplus(x * y);
        return {s.down, -(s.other * y), -(s.other * x)};
    }
    case 10: {
        float e = expf(y), d = y - x;
        return {e * d, -e, e * (d + 1.0f)};
    }
    case 11: {
        // 0 log 0 is 0; what is below 0 has no logarithm.
        float log = y == 0.0f ? y : logf(y);
        return {y * (log - x), -y, log + 1.0f - x};
    }
    default: return poisson(x, y, loss == 12, b != 0.0f, a);
    }
}

// Elements that one thread takes at once.
constexpr int N = 4;

// A loss and its operands, and where an element belongs: `k` numbers share a weight, `last` is the last axis.
struct Pair {
    int loss;
    float a, b;
    const void *x, *y, *weights, *positive;
    int x_type, y_type, weights_type, positive_type;
    i64 n, k, last;

    // Calls `f(place in the pack, terms, weight)` for the elements from i on.
    template <class F> DEV void each(i64 i, F f) const {
        int have = n - i < N ? (int)(n - i) : N;
        auto p = load_floats<N>(x, x_type, i, have), q = load_floats<N>(y, y_type, i, have);
        i64 sample = weights ? i / k : 0, in_sample = weights ? i - sample * k : 0, column = positive ? i % last : 0;
        float weight = weights ? load_any(weights, weights_type, sample) : 1.0f;
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (e < have) {
                float more = positive ? load_any(positive, positive_type, column) : 1.0f;
                f(e, terms(loss, a, b, p.v[e], q.v[e], more), weight);
            }
            if (weights && ++in_sample == k) {
                in_sample = 0;
                if (e + 1 < have) weight = load_any(weights, weights_type, ++sample);
            }
            if (positive && ++column == last) column = 0;
        }
    }
};
#define PAIR \
    int loss, float a, float b, const void *x, int x_type, const void *y, int y_type, const void *weights, int weights_type, \
        const void *positive, int positive_type, i64 n, i64 k, i64 last
#define THE_PAIR \
    Pair { loss, a, b, x, y, weights, positive, x_type, y_type, weights_type, positive_type, n, k, last }

// The sums of stretches of `each` elements, one a block.
KERNEL point_sums(PAIR, int each, float* sums) {
    __shared__ float shared[32];
    Pair pair = THE_PAIR;
    i64 start = (i64)blockIdx.x * each, end = start + each < n ? start + each : n;
    float sum = 0.0f;
#pragma unroll 1
    for (i64 i = start + threadIdx.x * N; i < end; i += blockDim.x * N)
        pair.each(i, [&](int, Terms t, float weight) { sum = fmaf(weight, t.value, sum); });
    sum = block_fold(sum, 0.0f, Sum(), shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// d (+)= g * weight * the slope in x, or in y.
template <class T> DEV void point_gradient(const Pair& pair, int in_y, const float* g, T* d, int add) {
    float scale = g[0];
#pragma unroll 1
    for (EACH(pack, (pair.n + N - 1) / N)) {
        i64 i = pack * N, left = pair.n - i;
        int have = left < N ? (int)left : N;
        Pack<T, N> out = {};
        pair.each(i, [&](int e, Terms t, float weight) {
            float slope = (in_y ? t.of_y : t.of_x) * (scale * weight);
            out.set(e, add ? slope + load(d, i + e) : slope);
        });
        if (have == N && (u64)d % sizeof(out) == 0) {
            store_pack(d + i, out);
        } else {
            for (int e = 0; e < N; e++)
                if (e < have) store(d, i + e, out.at(e));
        }
    }
}
#define GRADIENT(NAME, T) \
    KERNEL point_gradient_##NAME(PAIR, int in_y, const float* g, T* d, int add) { \
        point_gradient(THE_PAIR, in_y, g, d, add); \
    }
FOR_FLOATS(GRADIENT)
