// The largest number of each window of channels-last images, and the way back: each input gathers from the windows that hold it.

// The windows along an axis (`windows.rs`): they slide by `stride`, or cover the axis evenly.
struct Axis {
    Divisor places, windows, stride;
    u32 kernel, step, pad, adaptive;
    DEV i64 start(u32 o) const {
        if (adaptive) return (i64)o * places.d / windows.d;
        return (i64)o * stride.d - pad;
    }
    // The places of window o that lie on the axis.
    DEV void inside(u32 o, i64 start, u32& from, u32& to) const {
        if (adaptive) {
            from = 0;
            to = (u32)(((i64)(o + 1) * places.d + windows.d - 1) / windows.d - start);
            return;
        }
        from = start < 0 ? (u32)((-start + step - 1) / step) : 0;
        i64 end = ((i64)places.d - start + step - 1) / step;
        to = end < kernel ? (u32)end : kernel;
    }
    // The windows that can hold place p.
    DEV void holders(u32 p, u32& from, u32& to) const {
        if (adaptive) {
            from = (u32)((i64)p * windows.d / places.d);
            to = (u32)(((i64)(p + 1) * windows.d + places.d - 1) / places.d);
            return;
        }
        u32 last = p + pad, reach = (kernel - 1) * step;
        from = last > reach ? stride.under(last - reach + stride.d - 1) : 0;
        to = stride.under(last) + 1;
        if (to > windows.d) to = windows.d;
    }
    // The number that place p has in window o, or `kernel` when it has none.
    DEV u32 number(u32 p, u32 o) const {
        u32 apart = (u32)((i64)p - start(o));
        if (step == 1) return apart;
        u32 k = apart / step;
        return k * step == apart ? k : kernel;
    }
};
struct Windows {
    Axis axes[3];
    // Packs of a pixel's channels.
    Divisor packs;
};

// Not a number wins over all, the first of equals over the others.
DEV bool wins(float v, float best) { return !(v <= best) && best == best; }
DEV float lowest() { return __uint_as_float(0xff800000u); }

DEV Item of_windows(u32 i, const Windows& w) {
    return Item(i, w.packs, w.axes[0].windows, w.axes[1].windows, w.axes[2].windows);
}
DEV Item of_places(u32 i, const Windows& w) {
    return Item(i, w.packs, w.axes[0].places, w.axes[1].places, w.axes[2].places);
}

template <class T, class P, int N>
DEV void largest(const Windows& w, const T* x, T* y, P* places, u32 total) {
    const Axis &a = w.axes[0], &b = w.axes[1], &c = w.axes[2];
    for (EACH(i, total)) {
        Item item = of_windows((u32)i, w);
        i64 begin[3] = {a.start(item.at[0]), b.start(item.at[1]), c.start(item.at[2])};
        u32 from[3], to[3];
        for (int k = 0; k < 3; k++) w.axes[k].inside(item.at[k], begin[k], from[k], to[k]);
        float best[N];
        u32 place[N];
        for (int k = 0; k < N; k++) {
            best[k] = lowest();
            place[k] = (from[0] * b.kernel + from[1]) * c.kernel + from[2];
        }
        i64 width = (i64)w.packs.d * N;
        for (u32 p = from[0]; p < to[0]; p++)
            for (u32 q = from[1]; q < to[1]; q++) {
                i64 line = (item.sample * (i64)a.places.d + begin[0] + (i64)p * a.step) * b.places.d + begin[1] + (i64)q * b.step;
                u32 number = (p * b.kernel + q) * c.kernel + from[2];
                const T* at = x + (line * c.places.d + begin[2] + (i64)from[2] * c.step) * width + (i64)item.pack * N;
#pragma unroll 2
                for (u32 r = from[2]; r < to[2]; r++, number++, at += c.step * width) {
                    auto v = load_pack<N>(at);
                    for (int k = 0; k < N; k++) {
                        bool take = wins(v.at(k), best[k]);
                        best[k] = take ? v.at(k) : best[k];
                        place[k] = take ? number : place[k];
                    }
                }
            }
        Pack<T, N> out;
        Pack<P, N> found;
        for (int k = 0; k < N; k++) {
            out.set(k, best[k]);
            found.v[k] = (P)place[k];
        }
        store_pack(y + i * N, out);
        store_pack(places + i * N, found);
    }
}

// The same for K x K places side by side of images, K known, as all loads of a line can then be under way at once.
template <class T, int N, int K> DEV void largest_square(const Windows& w, const T* x, T* y, u8* places, u32 total) {
    const Axis &b = w.axes[1], &c = w.axes[2];
    for (EACH(i, total)) {
        Item item = of_windows((u32)i, w);
        int top = (int)(item.at[1] * b.stride.d) - (int)b.pad, left = (int)(item.at[2] * c.stride.d) - (int)c.pad;
        float best[N];
        u32 place[N];
        u32 first = (top < 0 ? -top : 0) * K + (left < 0 ? -left : 0);
        for (int k = 0; k < N; k++) {
            best[k] = lowest();
            place[k] = first;
        }
        i64 width = (i64)w.packs.d * N;
        const T* corner = x + (((i64)item.sample * b.places.d + top) * c.places.d + left) * width + (i64)item.pack * N;
        for (int q = 0; q < K; q++) {
            if ((u32)(top + q) >= b.places.d) continue;
            const T* line = corner + (i64)q * c.places.d * width;
            Pack<T, N> v[K];
            for (int r = 0; r < K; r++)
                if ((u32)(left + r) < c.places.d) v[r] = load_pack<N>(line + r * width);
            for (int r = 0; r < K; r++) {
                if ((u32)(left + r) >= c.places.d) continue;
                for (int k = 0; k < N; k++) {
                    bool take = wins(v[r].at(k), best[k]);
                    best[k] = take ? v[r].at(k) : best[k];
                    place[k] = take ? q * K + r : place[k];
                }
            }
        }
        Pack<T, N> out;
        Pack<u8, N> found;
        for (int k = 0; k < N; k++) {
            out.set(k, best[k]);
            found.v[k] = (u8)place[k];
        }
        store_pack(y + i * N, out);
        store_pack(places + i * N, found);
    }
}

// dx (+)= the sum of g over the windows whose largest number a place is.
template <class T, class P, int N>
DEV void gather(const Windows& w, const T* g, const P* places, T* dx, u32 total, int add) {
    const Axis &a = w.axes[0], &b = w.axes[1], &c = w.axes[2];
    for (EACH(i, total)) {
        Item item = of_places((u32)i, w);
        u32 from[3], to[3];
        for (int k = 0; k < 3; k++) w.axes[k].holders(item.at[k], from[k], to[k]);
        float sum[N] = {};
        if (add) {
            auto old = load_pack<N>(dx + i * N);
            for (int k = 0; k < N; k++) sum[k] = old.at(k);
        }
        for (u32 p = from[0]; p < to[0]; p++) {
            u32 first = a.number(item.at[0], p);
            if (first == a.kernel) continue;
            for (u32 q = from[1]; q < to[1]; q++) {
                u32 second = b.number(item.at[1], q);
                if (second == b.kernel) continue;
                i64 line = ((i64)item.sample * a.windows.d + p) * b.windows.d + q;
                for (u32 r = from[2]; r < to[2]; r++) {
                    u32 third = c.number(item.at[2], r);
                    if (third == c.kernel) continue;
                    P number = (P)((first * b.kernel + second) * c.kernel + third);
                    i64 at = ((line * c.windows.d + r) * w.packs.d + item.pack) * N;
                    auto up = load_pack<N>(g + at);
                    auto found = load_pack<N>(places + at);
                    for (int k = 0; k < N; k++) sum[k] += found.v[k] == number ? up.at(k) : 0.0f;
                }
            }
        }
        Pack<T, N> out;
        for (int k = 0; k < N; k++) out.set(k, sum[k]);
        store_pack(dx + i * N, out);
    }
}

// The same for K x K places (2 or 3) every second one of images: a thread takes the 2 x 2 places from (2 i, 2 j) on, counted in
// the padded image, which share their windows (i - 1, j - 1) to (i, j), or for K = 2 the one window (i, j). `tiles` are so many
// of them along both axes.
template <class T, int N, int K>
DEV void gather_tiles(const Windows& w, Divisor down, Divisor across, const T* g, const u8* places, T* dx, u32 total, int add) {
    const Axis &b = w.axes[1], &c = w.axes[2];
    constexpr int EARLIER = K - 2;
    for (EACH(t, total)) {
        u32 rest = w.packs.under((u32)t), pack = (u32)t - rest * w.packs.d, next = across.under(rest);
        int j = rest - next * across.d;
        u32 sample = down.under(next);
        int i = next - sample * down.d;
        // Windows in rising order, so that sums are those of any other way.
        float sum[2][2][N] = {};
        for (int di = -EARLIER; di <= 0; di++)
            for (int dj = -EARLIER; dj <= 0; dj++) {
                if ((u32)(i + di) >= b.windows.d || (u32)(j + dj) >= c.windows.d) continue;
                i64 at = ((((i64)sample * b.windows.d + i + di) * c.windows.d + j + dj) * w.packs.d + pack) * N;
                auto up = load_pack<N>(g + at);
                auto found = load_pack<N>(places + at);
                for (int k = 0; k < N; k++) {
                    float v = up.at(k);
                    u32 place = found.v[k];
                    for (int y = 0; y < 2; y++)
                        for (int x = 0; x < 2; x++) {
                            int q = y - 2 * di, r = x - 2 * dj;
                            if (q < K && r < K) sum[y][x][k] += place == (u32)(q * K + r) ? v : 0.0f;
                        }
                }
            }
        for (int y = 0; y < 2; y++)
            for (int x = 0; x < 2; x++) {
                u32 row = 2 * i + y - b.pad, column = 2 * j + x - c.pad;
                if (row >= b.places.d || column >= c.places.d) continue;
                T* to = dx + ((((i64)sample * b.places.d + row) * c.places.d + column) * w.packs.d + pack) * N;
                Pack<T, N> out;
                if (add) out = load_pack<N>(to);
                for (int k = 0; k < N; k++) out.set(k, add ? out.at(k) + sum[y][x][k] : sum[y][x][k]);
                store_pack(to, out);
            }
    }
}

#define LARGEST(NAME, T) \
    KERNEL max_##NAME(Windows w, const T* x, T* y, u8* places, u32 total) { \
        largest<T, u8, WIDE<T>>(w, x, y, places, total); \
    } \
    KERNEL max_one_u8_##NAME(Windows w, const T* x, T* y, u8* places, u32 total) { \
        largest<T, u8, 1>(w, x, y, places, total); \
    } \
    KERNEL max_one_i64_##NAME(Windows w, const T* x, T* y, i64* places, u32 total) { \
        largest<T, i64, 1>(w, x, y, places, total); \
    } \
    KERNEL max_2_##NAME(Windows w, const T* x, T* y, u8* places, u32 total) { \
        largest_square<T, WIDE<T>, 2>(w, x, y, places, total); \
    } \
    KERNEL max_3_##NAME(Windows w, const T* x, T* y, u8* places, u32 total) { \
        largest_square<T, WIDE<T>, 3>(w, x, y, places, total); \
    } \
    KERNEL gather_##NAME(Windows w, const T* g, const u8* places, T* dx, u32 total, int add) { \
        gather<T, u8, WIDE<T>>(w, g, places, dx, total, add); \
    } \
    KERNEL gather_one_u8_##NAME(Windows w, const T* g, const u8* places, T* dx, u32 total, int add) { \
        gather<T, u8, 1>(w, g, places, dx, total, add); \
    } \
    KERNEL gather_one_i64_##NAME(Windows w, const T* g, const i64* places, T* dx, u32 total, int add) { \
        gather<T, i64, 1>(w, g, places, dx, total, add); \
    } \
    KERNEL gather_2_##NAME(Windows w, Divisor down, Divisor across, const T* g, const u8* places, T* dx, u32 total, int add) { \
        gather_tiles<T, WIDE<T>, 2>(w, down, across, g, places, dx, total, add); \
    } \
    KERNEL gather_3_##NAME(Windows w, Divisor down, Divisor across, const T* g, const u8* places, T* dx, u32 total, int add) { \
        gather_tiles<T, WIDE<T>, 3>(w, down, across, g, places, dx, total, add); \
    }
FOR_FLOATS(LARGEST)

// Where each window's place lies in its sample, counted row by row without channels.
KERNEL flat(Windows w, const void* places, int wide_places, i64* out, u32 total) {
    const Axis &a = w.axes[0], &b = w.axes[1], &c = w.axes[2];
    for (EACH(i, total)) {
        Item item = of_windows((u32)i, w);
        u32 place = wide_places ? (u32)((const i64*)places)[i] : ((const u8*)places)[i];
        u32 rest = place / c.kernel, r = place - rest * c.kernel, p = rest / b.kernel, q = rest - p * b.kernel;
        i64 row = (a.start(item.at[0]) + (i64)p * a.step) * b.places.d + b.start(item.at[1]) + (i64)q * b.step;
        out[i] = row * c.places.d + c.start(item.at[2]) + (i64)r * c.step;
    }
}
