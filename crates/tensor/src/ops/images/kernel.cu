// Images on their way to a network. Each operation is rounded by itself, as on the CPU, so the bits are the same there.

// Images of `h` by `w` pixels and what becomes of their bytes; `rows` by `columns` pixels of each are taken.
struct Look {
    u32 h, w, channels, rows, columns;
    float scale, mean[32], std[32];
};

DEV float normalised(const Look& look, u32 c, float x) {
    return __fdiv_rn(__fsub_rn(__fmul_rn(x, look.scale), look.mean[c]), look.std[c]);
}

// Where an image's part begins, and whether it is mirrored.
struct Place {
    i64 top, left, mirrored;
    DEV Place(const i64* places, u64 n) : top(places[3 * n]), left(places[3 * n + 1]), mirrored(places[3 * n + 2]) {}
};

// C is the number of channels, 0 for any. Without places, whole images.
template <class T, int C> DEV void normalise(const u8* x, T* y, i64 total, const i64* places, const Look& look) {
    constexpr int N = WIDE<T>;
    const u32 channels = C ? C : look.channels;
    for (EACH(i, (total + N - 1) / N)) {
        i64 at = i * N;
        int have = total - at < N ? (int)(total - at) : N;
        u64 pixel = (u64)at / channels;
        u32 c = (u32)(at - pixel * channels);
        Pack<u8, N> bytes = {};
        if (!places) {
            if ((u64)(x + at) % N == 0 && have == N) bytes = load_pack<N>(x + at);
            else for (int e = 0; e < N; e++)
                if (e < have) bytes.v[e] = x[at + e];
        } else {
            u64 line = pixel / look.columns, n = line / look.rows;
            u32 column = (u32)(pixel - line * look.columns), row = (u32)(line - n * look.rows), channel = c;
            Place place(places, n);
            for (int e = 0; e < N; e++) {
                if (e >= have) break;
                i64 a = place.top + row, b = place.left + (place.mirrored ? look.columns - 1 - column : column);
                bool inside = a >= 0 && a < look.h && b >= 0 && b < look.w;
                bytes.v[e] = inside ? x[((n * look.h + a) * look.w + b) * channels + channel] : 0;
                if (++channel < channels) continue;
                channel = 0;
                if (++column < look.columns) continue;
                column = 0;
                if (++row < look.rows) continue;
                row = 0;
                if (e + 1 < have) place = Place(places, ++n);
            }
        }
        Pack<T, N> v = {};
        for (int e = 0; e < N; e++) {
            v.set(e, normalised(look, c, bytes.at(e)));
            if (++c == channels) c = 0;
        }
        if ((u64)(y + at) % 16 == 0 && have == N) store_pack(y + at, v);
        else for (int e = 0; e < N; e++)
            if (e < have) store(y, at + e, v.at(e));
    }
}
#define NORMALISE(NAME, T) \
    KERNEL normalise_##NAME(const u8* x, T* y, i64 total, const i64* places, Look look) { \
        normalise<T, 0>(x, y, total, places, look); \
    } \
    KERNEL normalise_1_##NAME(const u8* x, T* y, i64 total, const i64* places, Look look) { \
        normalise<T, 1>(x, y, total, places, look); \
    } \
    KERNEL normalise_3_##NAME(const u8* x, T* y, i64 total, const i64* places, Look look) { \
        normalise<T, 3>(x, y, total, places, look); \
    }
FOR_FLOATS(NORMALISE)

// `samples` images of `per` elements mixed with partners. A box of rows and columns is top, left, bottom, right.
template <class T>
DEV void mix(const T* x, T* y, i64 samples, int per, const Divisor& line, const Divisor& pixel, const i64* partners,
             const void* factors, int type, const i64* boxes, Fault* fault, int op) {
    constexpr int N = WIDE<T>;
    for (i64 n = blockIdx.y; n < samples; n += gridDim.y) {
        i64 partner = partners[n];
        bool known = partner >= 0 && partner < samples;
        if (!known && blockIdx.x == 0 && threadIdx.x == 0) report(fault, op, n, partner, samples);
        const T *a = x + n * per, *b = x + (known ? partner : n) * per;
        float share = known ? load_any(factors, type, n) : NAN, rest = __fsub_rn(1.0f, share);
        i64 top = boxes[4 * n], left = boxes[4 * n + 1], bottom = boxes[4 * n + 2], right = boxes[4 * n + 3];
        bool box = known && bottom > top && right > left;
        for (int u = blockIdx.x * blockDim.x + threadIdx.x; u < (per + N - 1) / N; u += gridDim.x * blockDim.x) {
            Pack<T, N> v = read_unit<N>(a, per, u, 0.0f), other = read_unit<N>(b, per, u, 0.0f);
            for (int e = 0; e < N; e++) {
                float mixed;
                if (box) {
                    u32 at = (u32)(u * N + e), row = line.under(at), column = pixel.under(at - row * line.d);
                    bool inside = row >= top && row < bottom && column >= left && column < right;
                    mixed = inside ? other.at(e) : v.at(e);
                } else {
                    mixed = __fadd_rn(__fmul_rn(share, v.at(e)), __fmul_rn(rest, other.at(e)));
                }
                v.set(e, mixed);
            }
            write_unit(y + n * per, per, u, v);
        }
    }
}
#define MIX(NAME, T) \
    KERNEL mix_##NAME(const T* x, T* y, i64 samples, int per, Divisor line, Divisor pixel, const i64* partners, \
                      const void* factors, int type, const i64* boxes, Fault* fault, int op) { \
        mix(x, y, samples, per, line, pixel, partners, factors, type, boxes, fault, op); \
    }
FOR_FLOATS(MIX)
