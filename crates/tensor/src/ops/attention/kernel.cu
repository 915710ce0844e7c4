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
    // What a weight at that place of [.., queries, keys] is multiplied with.
    DEV float factor(u64 place, u64& block, Words& words) const {
        if (mode != 1) return mode == 0 ? 1.0f : 0.0f;
        if (place / 4 != block) {
            block = place / 4;
            words = philox(key, block);
        }
        u32 e = (u32)place & 3, low = e & 1 ? words.w[1] : words.w[0], high = e & 1 ? words.w[3] : words.w[2];
        return (e & 2 ? high : low) >= from ? scale : 0.0f;
    }
};
#define LOOK \
    i64 rows, int k, int size, i64 first, i64 queries, const u8 *mask, i64 mask_step, const void *bias, int bias_type, \
        i64 bias_step, int causal, float scale, u64 key, u32 from, int mode, float kept, Walk walk
#define THE_LOOK \
    Team team(size); \
    bool live = team.row < rows; \
    i64 row = live ? team.row : 0, at[2]; \
    walk.places(first + row, at); \
    Look look = {mask, bias, mask_step, bias_step, at[0], at[1], (first + row) % queries, bias_type, causal, scale}; \
    Drop drop = {key, from, mode, kept}; \
    u64 start = (u64)(first + row) * k, block = ~0ull; \
    Words words = {}; \
    int have = live ? k : 0;

// Weights p from products of queries and keys, and the logarithm of each query's sum; infinite for one that looks at nothing.
#define WEIGHTS(NAME, T) \
    KERNEL weights_##NAME##_wide(const float* products, T* p, float* logs, LOOK) { \
        __shared__ float shared[32]; \
        THE_LOOK \
        Held<float, N> held(products + row * k, have, team, 0.0f); \
        float top = -INFINITY, sum = 0.0f; \
        held.each([&](int unit, const Pack<float, N>& v) { \
            for (int e = 0; e < N; e++) \
                if (unit * N + e < k) top = fmaxf(top, look.score(v.at(e), unit * N + e)); \
        }); \
        top = team.fold(top, -INFINITY, Most(), shared); \
        float shift = top == -INFINITY ? 0.0f : top; \
        held.each([&](int unit, const Pack<float, N>& v) { \
            for (int e = 0; e < N; e++) \
                if (unit * N + e < k) sum += expf(look.score(v.at(e), unit * N + e) - shift); \
        }); \
        sum = team.fold(sum, 0.0f, Sum(), shared); \
        float share = sum == 0.0f ? 0.0f : 1.0f / sum; \
        held.each([&](int unit, const Pack<float, N>& v) { \
            Pack<T, N> out = {}; \
            for (int e = 0; e < N; e++) { \
                int j = unit * N + e; \
                if (j >= k) continue; \
                float w = expf(look.score(v.at(e), j) - shift) * share; \
                out.set(e, w * drop.factor(start + j, block, words)); \
            } \
            write_unit(p + row * k, k, unit, out); \
        }); \
        if (live && team.thread == 0) logs[first + row] = sum == 0.0f ? INFINITY : shift + logf(sum); \
    }
FOR_FLOATS(WEIGHTS)

// Back: from the products and the gradient `g_p` of the dropped weights, these weights, and the gradient of the products.
// `y` and `g` are the queries' values [rows, width] and their gradient.
#define SLOPES(NAME, T) \
    KERNEL slopes_##NAME##_wide( \
        const float* products, const float* g_p, const float* logs, const T* y, const T* g, int width, T* dropped, T* d, LOOK) { \
        __shared__ float shared[32]; \
        THE_LOOK \
        float share = 0.0f; \
        for (int c = team.thread; live && c < width; c += size) \
            share = fmaf(load(y, (first + row) * width + c), load(g, (first + row) * width + c), share); \
        share = team.fold(share, 0.0f, Sum(), shared); \
        float less = logs[first + row]; \
        _Pragma("unroll 1") for (int unit = team.thread; unit < (have + N - 1) / N; unit += size) { \
            auto s = read_unit<N>(products + row * k, k, unit, 0.0f), dp = read_unit<N>(g_p + row * k, k, unit, 0.0f); \
            Pack<T, N> out = {}, slope = {}; \
            for (int e = 0; e < N; e++) { \
                int j = unit * N + e; \
                if (j >= k) continue; \
                float w = expf(look.score(s.at(e), j) - less), f = drop.factor(start + j, block, words); \
                out.set(e, w * f); \
                slope.set(e, w * (dp.at(e) * f - share) * scale); \
            } \
            write_unit(dropped + row * k, k, unit, out); \
            write_unit(d + row * k, k, unit, slope); \
        } \
    }
FOR_FLOATS(SLOPES)
