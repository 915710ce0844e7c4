// The rows of attention between its matrix products: scores to weights, and the way back. A team a query.

constexpr int N = 4;

// What hides keys from queries and what is added to their scores; `walk` has where each query's mask and bias begin.
struct Look {
    const u8* mask;
    const void* bias;
    i64 mask_step, bias_step, mask_at, bias_at, query;
    int bias_type, causal;
    float scale;
    DEV float score(float product, int key) const {
        if ((causal && key > query) || (mask && mask[mask_at + key * mask_step] == 0)) return -INFINITY;
        float s = product * scale;
        return bias ? s + load_any(bias, bias_type, bias_at + key * bias_step) : s;
    }
};
// What dropout does: nothing (mode 0), or it drops words below `from` (1), or everything (2).
struct Drop {
    u64 key;
    u32 from;
    int mode;
    float scale;
    static DEV u32 one(const Words& words, u32 i) {
        u32 low = i & 1 ? words.w[1] : words.w[0], high = i & 1 ? words.w[3] : words.w[2];
        return i & 2 ? high : low;
    }
    // What the weights from that place of [.., queries, keys] on are multiplied with.
    DEV Floats<N> factors(u64 place) const {
        float all = mode == 0 ? 1.0f : 0.0f;
        Floats<N> f = {{all, all, all, all}};
        if (mode != 1) return f;
        u32 shift = (u32)place & 3;
        Words words = philox(key, place / 4), next = words;
        if (shift) next = philox(key, place / 4 + 1);
        for (u32 e = 0; e < N; e++) {
            u32 i = shift + e, a = one(words, i & 3), b = one(next, i & 3);
            f.v[e] = (i < 4 ? a : b) >= from ? scale : 0.0f;
        }
        return f;
    }
};
#define LOOK \
    i64 rows, int k, int size, i64 first, i64 queries, const u8 *mask, i64 mask_step, const void *bias, int bias_type, \
        i64 bias_step, int causal, float scale, const u64 *key_at, u64 key, u32 from, int mode, float kept, Walk walk
#define THE_LOOK \
    i64 at[2]; \
    walk.places(first + row, at); \
    Look look = {mask, bias, mask_step, bias_step, at[0], at[1], (first + row) % queries, bias_type, causal, scale}; \
    Drop drop = {key_at ? *key_at : key, from, mode, kept}; \
    u64 start = (u64)(first + row) * k; \
    int units = live ? (k + N - 1) / N : 0;

// Scores in place of products of queries and keys, past the row's end too: nothing.
DEV Pack<float, N> scores(const Look& look, const float* products, int k, int unit) {
    auto v = read_unit<N>(products, k, unit, 0.0f);
    for (int e = 0; e < N; e++) v.set(e, unit * N + e < k ? look.score(v.at(e), unit * N + e) : -INFINITY);
    return v;
}

// Weights p from products of queries and keys, and the logarithm of each query's sum; infinite for one that looks at nothing.
// The loops stay small: what a thread reads again it has just written or read.
template <class T> DEV void weights(float* products, T* p, float* logs, LOOK) {
    __shared__ float shared[32];
    Team team(size);
    bool live = team.row < rows;
    i64 row = live ? team.row : 0;
    THE_LOOK
    products += row * k;
    float top = -INFINITY, sum = 0.0f;
#pragma unroll 1
    for (int u = team.thread; u < units; u += size) {
        auto v = scores(look, products, k, u);
        for (int e = 0; e < N; e++) top = fmaxf(top, v.at(e));
        write_unit(products, k, u, v);
    }
    top = team.fold(top, -INFINITY, Most(), shared);
    float shift = top == -INFINITY ? 0.0f : top;
#pragma unroll 1
    for (int u = team.thread; u < units; u += size) {
        auto v = read_unit<N>(products, k, u, -INFINITY);
        for (int e = 0; e < N; e++) {
            v.set(e, expf(v.at(e) - shift));
            sum += v.at(e);
        }
        write_unit(products, k, u, v);
    }
    sum = team.fold(sum, 0.0f, Sum(), shared);
    float share = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll 1
    for (int u = team.thread; u < units; u += size) {
        auto v = read_unit<N>(products, k, u, 0.0f);
        auto f = drop.factors(start + u * N);
        Pack<T, N> out = {};
        for (int e = 0; e < N; e++) out.set(e, v.at(e) * share * f.v[e]);
        write_unit(p + row * k, k, u, out);
    }
    if (live && team.thread == 0) logs[first + row] = sum == 0.0f ? INFINITY : shift + logf(sum);
}

// Back: from the products and the gradient `g_p` of the dropped weights, these weights, and the gradient of the products.
// `y` and `g` are the queries' values [rows, width] and their gradient.
template <class T>
DEV void slopes(
    const float* products, const float* g_p, const float* logs, const T* y, const T* g, int width, T* dropped, T* d, LOOK) {
    __shared__ float shared[32];
    Team team(size);
    bool live = team.row < rows;
    i64 row = live ? team.row : 0;
    THE_LOOK
    float share = 0.0f;
#pragma unroll 1
    for (int c = team.thread; live && c < width; c += size)
        share = fmaf(load(y, (first + row) * width + c), load(g, (first + row) * width + c), share);
    share = team.fold(share, 0.0f, Sum(), shared);
    float less = live ? logs[first + row] : 0.0f;
#pragma unroll 1
    for (int u = team.thread; u < units; u += size) {
        auto v = scores(look, products + row * k, k, u), up = read_unit<N>(g_p + row * k, k, u, 0.0f);
        auto f = drop.factors(start + u * N);
        Pack<T, N> out = {}, slope = {};
        for (int e = 0; e < N; e++) {
            float w = expf(v.at(e) - less);
            out.set(e, w * f.v[e]);
            slope.set(e, w * (up.at(e) * f.v[e] - share) * scale);
        }
        write_unit(dropped + row * k, k, u, out);
        write_unit(d + row * k, k, u, slope);
    }
}
#define REST \
    rows, k, size, first, queries, mask, mask_step, bias, bias_type, bias_step, causal, scale, key_at, key, from, mode, kept, walk
#define ATTENTION(NAME, T) \
    KERNEL weights_##NAME##_wide(float* products, T* p, float* logs, LOOK) { weights(products, p, logs, REST); } \
    KERNEL slopes_##NAME##_wide( \
        const float* products, const float* g_p, const float* logs, const T* y, const T* g, int width, T* dropped, T* d, LOOK) { \
        slopes(products, g_p, logs, y, g, width, dropped, d, REST); \
    }
FOR_FLOATS(ATTENTION)
