// What stands beside the library's convolutions: images moved into larger ones or cut out of them, and locally connected images.

// An image with channels innermost: `size` along depth, height and width.
struct Sizes { int d, h, w; };

// to[n, i, j, k, c] (+)= from[n, i - shift.d, j - shift.h, k - shift.w, c], or zero where that lies outside; `items` packs of N
// channels, `channels` of them a pixel. It pads (shift > 0) and crops (shift < 0), each side by itself.
template <class T, int N> DEV void shift(const T* from, T* to, u64 items, int channels, Sizes is, Sizes was, Sizes by, int add) {
    for (EACH(i, items)) {
        u64 rest = i / channels;
        int c = (int)(i - rest * channels);
        int x = (int)(rest % is.w) - by.w;
        rest /= is.w;
        int y = (int)(rest % is.h) - by.h;
        rest /= is.h;
        int z = (int)(rest % is.d) - by.d;
        rest /= is.d;
        Pack<T, N> v;
        for (int k = 0; k < N; k++) v.set(k, 0.0f);
        if (x >= 0 && x < was.w && y >= 0 && y < was.h && z >= 0 && z < was.d)
            v = load_pack<N>(from + ((((i64)rest * was.d + z) * was.h + y) * was.w + x) * channels * N + c * N);
        if (add) {
            auto sum = load_pack<N>(to + i * N);
            for (int k = 0; k < N; k++) v.set(k, v.at(k) + sum.at(k));
        }
        store_pack(to + i * N, v);
    }
}
#define SHIFT(NAME, TYPE) \
    KERNEL shift_##NAME(const TYPE* from, TYPE* to, u64 items, int channels, Sizes is, Sizes was, Sizes by, int add) { \
        shift<TYPE, 1>(from, to, items, channels, is, was, by, add); \
    } \
    KERNEL shift_wide_##NAME(const TYPE* from, TYPE* to, u64 items, int channels, Sizes is, Sizes was, Sizes by, int add) { \
        shift<TYPE, WIDE<TYPE>>(from, to, items, channels, is, was, by, add); \
    }
FOR_FLOATS(SHIFT)

// Locally connected images [n, h, w, c] with a weight [oh * ow, kh * kw * c, f]; one thread a result.
struct Local {
    i64 n, h, w, c, oh, ow, f, kh, kw, down, across;
    // Where number j of the window at place p lies in an image.
    DEV i64 in_window(i64 p, i64 j) const {
        i64 y = p / ow * down + j / (kw * c);
        return (y * w + p % ow * across) * c + j % (kw * c);
    }
};

template <class T> DEV void local_forward(const T* x, const void* weight, int weight_type, const void* bias, int bias_type, T* y, Local s) {
    i64 places = s.oh * s.ow, numbers = s.kh * s.kw * s.c, image = s.h * s.w * s.c;
    for (EACH(i, s.n * places * s.f)) {
        i64 f = i % s.f, p = i / s.f % places, n = i / s.f / places;
        float sum = bias ? load_any(bias, bias_type, p * s.f + f) : 0.0f;
        for (i64 j = 0; j < numbers; j++)
            sum += load(x, n * image + s.in_window(p, j)) * load_any(weight, weight_type, (p * numbers + j) * s.f + f);
        store(y, i, sum);
    }
}
template <class T> DEV void local_weight(const T* x, const T* g, void* to, int type, int add, Local s) {
    i64 places = s.oh * s.ow, numbers = s.kh * s.kw * s.c, image = s.h * s.w * s.c;
    for (EACH(i, places * numbers * s.f)) {
        i64 f = i % s.f, j = i / s.f % numbers, p = i / s.f / numbers, at = s.in_window(p, j);
        float sum = add ? load_any(to, type, i) : 0.0f;
        for (i64 n = 0; n < s.n; n++) sum += load(x, n * image + at) * load(g, (n * places + p) * s.f + f);
        store_any(to, type, i, sum);
    }
}
// Over the windows that a number of the image lies in, in the order of their places.
template <class T> DEV void local_input(const T* g, const void* weight, int weight_type, void* to, int type, int add, Local s) {
    i64 places = s.oh * s.ow, numbers = s.kh * s.kw * s.c;
    for (EACH(i, s.n * s.h * s.w * s.c)) {
        i64 c = i % s.c, x = i / s.c % s.w, y = i / s.c / s.w % s.h, n = i / s.c / s.w / s.h;
        float sum = add ? load_any(to, type, i) : 0.0f;
        i64 oy = y < s.kh ? 0 : (y - s.kh) / s.down + 1, first = x < s.kw ? 0 : (x - s.kw) / s.across + 1;
        for (; oy < s.oh && oy * s.down <= y; oy++) {
            for (i64 ox = first; ox < s.ow && ox * s.across <= x; ox++) {
                i64 p = oy * s.ow + ox, j = ((y - oy * s.down) * s.kw + x - ox * s.across) * s.c + c;
                for (i64 f = 0; f < s.f; f++)
                    sum += load(g, (n * places + p) * s.f + f) * load_any(weight, weight_type, (p * numbers + j) * s.f + f);
            }
        }
        store_any(to, type, i, sum);
    }
}
#define LOCAL(NAME, TYPE) \
    KERNEL local_forward_##NAME(const TYPE* x, const void* w, int w_type, const void* b, int b_type, TYPE* y, Local s) { \
        local_forward(x, w, w_type, b, b_type, y, s); \
    } \
    KERNEL local_weight_##NAME(const TYPE* x, const TYPE* g, void* to, int type, int add, Local s) { \
        local_weight(x, g, to, type, add, s); \
    } \
    KERNEL local_input_##NAME(const TYPE* g, const void* w, int w_type, void* to, int type, int add, Local s) { \
        local_input(g, w, w_type, to, type, add, s); \
    }
FOR_FLOATS(LOCAL)
