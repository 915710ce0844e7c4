// Sums over boxes of channels-last images with one weight an axis, and results that are one place each.

// The taps along an axis: where its lists begin in the table, counted in words of 4 bytes. `ends` has where the list of each result
// ends, `divisors` what its sum is divided by, `places` and `weights` the lists.
struct Axis {
    Divisor results;
    u32 size, ends, divisors, places, weights;
};
struct Boxes {
    Axis axes[3];
    Divisor packs;
};

// y (+)= the sums, N channels at once; `total` of these packs.
template <class T, int N> DEV void sums(const Boxes& w, const u32* table, const T* x, T* y, u32 total, int add) {
    const Axis &a = w.axes[0], &b = w.axes[1], &c = w.axes[2];
    const float* numbers = (const float*)table;
    i64 width = (i64)w.packs.d * N;
    for (EACH(i, total)) {
        Item item((u32)i, w.packs, a.results, b.results, c.results);
        u32 from[3], to[3];
        float divisor = 1.0f;
        for (int k = 0; k < 3; k++) {
            const u32* ends = table + w.axes[k].ends + item.at[k];
            from[k] = item.at[k] > 0 ? ends[-1] : 0;
            to[k] = *ends;
            divisor *= numbers[w.axes[k].divisors + item.at[k]];
        }
        float all[N] = {};
        for (u32 p = from[0]; p < to[0]; p++) {
            i64 plane = (i64)item.sample * a.size + table[a.places + p];
            float outer = numbers[a.weights + p];
            for (u32 q = from[1]; q < to[1]; q++) {
                const T* line = x + (plane * b.size + table[b.places + q]) * c.size * width + (i64)item.pack * N;
                float weight = outer * numbers[b.weights + q], sum[N] = {};
#pragma unroll 4
                for (u32 r = from[2]; r < to[2]; r++) {
                    auto v = load_pack<N>(line + table[c.places + r] * width);
                    float inner = numbers[c.weights + r];
                    for (int k = 0; k < N; k++) sum[k] = fmaf(v.at(k), inner, sum[k]);
                }
                for (int k = 0; k < N; k++) all[k] = fmaf(sum[k], weight, all[k]);
            }
        }
        Pack<T, N> out = {};
        if (add) out = load_pack<N>(y + i * N);
        for (int k = 0; k < N; k++) {
            float v = divisor == 1.0f ? all[k] : all[k] / divisor;
            out.set(k, add ? v + out.at(k) : v);
        }
        store_pack(y + i * N, out);
    }
}
#define SUMS(NAME, T) \
    KERNEL sums_##NAME(Boxes w, const u32* table, const T* x, T* y, u32 total, int add) { \
        sums<T, WIDE<T>>(w, table, x, y, total, add); \
    } \
    KERNEL sums_one_##NAME(Boxes w, const u32* table, const T* x, T* y, u32 total, int add) { \
        sums<T, 1>(w, table, x, y, total, add); \
    }
FOR_FLOATS(SUMS)

// Results that are one place each, or none. The table has the place of each result along each axis, or -1; the images' elements are
// moved by units of 1 to 16 bytes, `units` a pixel; a result without a place is `fill` over and over.
struct Moves {
    Divisor units, results[3];
    u32 size[3], places[3];
};
struct Fill { u64 low, high; };
struct alignas(16) Sixteen { u64 low, high; };
template <class U> DEV U unit_of(Fill fill) { return (U)fill.low; }
template <> DEV Sixteen unit_of<Sixteen>(Fill fill) { return {fill.low, fill.high}; }

template <class U> DEV void moves(const Moves& w, const int* table, const U* x, U* y, Fill fill, u64 total) {
    for (EACH(i, total)) {
        u64 rest = w.units.of(i), unit = i - rest * w.units.d;
        i64 from[3];
        for (int k = 2; k >= 0; k--) {
            u64 next = w.results[k].of(rest);
            from[k] = table[w.places[k] + (u32)(rest - next * w.results[k].d)];
            rest = next;
        }
        bool none = from[0] < 0 || from[1] < 0 || from[2] < 0;
        i64 at = (((i64)rest * w.size[0] + from[0]) * w.size[1] + from[1]) * w.size[2] + from[2];
        y[i] = none ? unit_of<U>(fill) : x[at * w.units.d + (i64)unit];
    }
}
#define MOVES(SIZE, U) \
    KERNEL moves_##SIZE(Moves w, const int* table, const U* x, U* y, Fill fill, u64 total) { \
        moves(w, table, x, y, fill, total); \
    }
MOVES(1, u8) MOVES(2, u16) MOVES(4, u32) MOVES(8, u64) MOVES(16, Sixteen)
