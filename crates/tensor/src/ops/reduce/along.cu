// Along an axis of dense elements [outer, length, inner]: sums and products up to each element, sorting, the k largest.

// Where number j of a line lies.
struct Lines {
    i64 count, length, inner;
    DEV i64 place(i64 line, i64 j) const { return (line / inner * length + j) * inner + line % inner; }
};
#define LINES_PARAMETERS i64 count, i64 length, i64 inner
#define LINES Lines{count, length, inner}

DEV double joined(double a, double b, int product) { return product ? a * b : a + b; }

struct Join {
    int product;
    DEV double operator()(double a, double b) const { return joined(a, b, product); }
};

// A line by a thread. In doubles, as rounding errors grow along the line.
template <class T> DEV void cumulate(const Lines& lines, const T* x, T* y, int product, int reverse) {
    for (EACH(line, lines.count)) {
        double total = product ? 1.0 : 0.0;
        i64 at = lines.place(line, reverse ? lines.length - 1 : 0), step = reverse ? -lines.inner : lines.inner;
#pragma unroll 4
        for (i64 j = 0; j < lines.length; j++, at += step) {
            total = joined(total, load(x, at), product);
            store(y, at, (float)total);
        }
    }
}
// A line by a block of 256 threads with 8 neighbouring elements each.
template <class T> DEV void cumulate_long(const Lines& lines, const T* x, T* y, int product, int reverse) {
    __shared__ double totals[2][256];
    double none = product ? 1.0 : 0.0, before = none;
    int me = threadIdx.x;
    for (i64 start = 0; start < lines.length; start += 2048) {
        double mine[8], total = none;
        for (int k = 0; k < 8; k++) {
            i64 j = start + me * 8 + k;
            if (j < lines.length) {
                i64 at = lines.place(blockIdx.x, reverse ? lines.length - 1 - j : j);
                total = joined(total, load(x, at), product);
            }
            mine[k] = total;
        }
        double all, first = joined(before, block_before(total, none, Join{product}, totals, all), product);
        before = joined(before, all, product);
        for (int k = 0; k < 8; k++) {
            i64 j = start + me * 8 + k;
            if (j >= lines.length) break;
            i64 at = lines.place(blockIdx.x, reverse ? lines.length - 1 - j : j);
            store(y, at, (float)joined(first, mine[k], product));
        }
    }
}

// The gradient of a cumulative product, exact where elements are 0 (see `along.rs`). `products` has room for all elements.
template <class T> DEV void cumprod_gradient(const Lines& lines, const T* x, const void* g, int g_type, double* products, float* dx) {
    for (EACH(line, lines.count)) {
        i64 zero = 0, n = lines.length;
        double product = 1.0, sum = 0.0;
        for (; zero < n; zero++) {
            float v = load(x, lines.place(line, zero));
            if (v == 0.0f) break;
            product *= v;
            products[lines.place(line, zero)] = product;
        }
        for (i64 j = zero; j < n; j++) dx[lines.place(line, j)] = 0.0f;
        if (zero < n) {
            double rest = product;
            sum = rest * load_any(g, g_type, lines.place(line, zero));
            for (i64 j = zero + 1; j < n; j++) {
                i64 at = lines.place(line, j);
                rest *= load(x, at);
                sum += rest * load_any(g, g_type, at);
            }
            dx[lines.place(line, zero)] = (float)sum;
        }
        sum = 0.0;
        for (i64 k = zero - 1; k >= 0; k--) {
            i64 at = lines.place(line, k);
            sum += products[at] * load_any(g, g_type, at);
            dx[at] = (float)(sum / load(x, at));
        }
    }
}

struct Least { DEV i64 operator()(i64 a, i64 b) const { return a < b ? a : b; } };

// The same for a few long lines: each by a block of 256 threads with 8 neighbouring elements at a time.
template <class T>
DEV void cumprod_gradient_long(const Lines& lines, const T* x, const void* g, int g_type, double* products, float* dx) {
    __shared__ double shared[2][256];
    __shared__ i64 places[32];
    __shared__ double sums[32];
    i64 n = lines.length, line = blockIdx.x;
    int me = threadIdx.x;
    i64 zero = n;
    for (i64 j = me; j < n; j += 256) {
        if (load(x, lines.place(line, j)) != 0.0f) continue;
        zero = j;
        break;
    }
    zero = block_fold(zero, n, Least{}, places);
    // The products up to each element; the first 0 is left out, and what comes from it on is its own gradient.
    double before = 1.0, rest = 0.0;
    for (i64 start = 0; start < n; start += 2048) {
        double mine[8], total = 1.0, all;
        for (int k = 0; k < 8; k++) {
            i64 j = start + me * 8 + k;
            if (j < n && j != zero) total *= load(x, lines.place(line, j));
            mine[k] = total;
        }
        double first = before * block_before(total, 1.0, Times{}, shared, all);
        before *= all;
        for (int k = 0; k < 8; k++) {
            i64 j = start + me * 8 + k;
            if (j >= n) break;
            i64 at = lines.place(line, j);
            double product = first * mine[k];
            products[at] = product;
            if (j < zero) continue;
            rest += product * load_any(g, g_type, at);
            dx[at] = 0.0f;
        }
    }
    rest = block_fold(rest, 0.0, Sum{}, sums);
    if (zero < n && me == 0) dx[lines.place(line, zero)] = (float)rest;
    // From there back to the start.
    before = 0.0;
    for (i64 start = 0; start < zero; start += 2048) {
        double mine[8], total = 0.0, all;
        for (int k = 0; k < 8; k++) {
            i64 j = zero - 1 - (start + me * 8 + k);
            if (j >= 0) {
                i64 at = lines.place(line, j);
                total += products[at] * load_any(g, g_type, at);
            }
            mine[k] = total;
        }
        double first = before + block_before(total, 0.0, Sum{}, shared, all);
        before += all;
        for (int k = 0; k < 8; k++) {
            i64 j = zero - 1 - (start + me * 8 + k);
            if (j < 0) break;
            i64 at = lines.place(line, j);
            dx[at] = (float)((first + mine[k]) / load(x, at));
        }
    }
}

// Sorting: each line as `width` keys, a power of two, which a bitonic network (Batcher, 1968) puts in rising order. A key has
// the element's order in its upper half and its place in the lower one, so no two are equal.
#define LAST 0xffffffffffffffffull
DEV u32 ordered(float x) {
    if (x != x) return 0xffffffffu;
    u32 bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
template <class T> DEV void keys(const Lines& lines, i64 width, const T* x, u64* out, int largest) {
    for (EACH(i, lines.count * width)) {
        i64 line = i / width, j = i - line * width;
        u64 key = LAST;
        if (j < lines.length) {
            u32 order = ordered(load(x, lines.place(line, j)));
            key = (u64)(largest ? ~order : order) << 32 | (u64)j;
        }
        out[i] = key;
    }
}
// The first k of each line in the order of their places: their keys anew.
KERNEL by_place(u64* keys, i64 total, i64 width, i64 k) {
    for (EACH(i, total)) keys[i] = (i64)(i % width) < k ? keys[i] & 0xffffffffull : LAST;
}

#define CHUNK 2048
DEV void put_in_order(u64& a, u64& b, bool rising) {
    if ((a > b) == rising) {
        u64 c = a;
        a = b;
        b = c;
    }
}
// The network's stages of `from` to `to` keys as far as they compare keys of one chunk.
KERNEL sort_chunk(u64* keys, i64 total, i64 width, i64 from, i64 to) {
    __shared__ u64 chunk[CHUNK];
    i64 base = (i64)blockIdx.x * CHUNK;
    for (int i = threadIdx.x; i < CHUNK; i += blockDim.x) chunk[i] = base + i < total ? keys[base + i] : LAST;
    for (i64 size = from; size <= to; size *= 2) {
        for (int apart = size > CHUNK ? CHUNK / 2 : (int)(size / 2); apart > 0; apart /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < CHUNK / 2; pair += blockDim.x) {
                int i = pair / apart * apart * 2 + pair % apart;
                put_in_order(chunk[i], chunk[i + apart], (((base + i) & (width - 1)) & size) == 0);
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNK; i += blockDim.x)
        if (base + i < total) keys[base + i] = chunk[i];
}
// One step of the stage of `size` keys, between keys that lie `apart`.
KERNEL sort_apart(u64* keys, i64 pairs, i64 width, i64 size, i64 apart) {
    for (EACH(pair, pairs)) {
        u64 i = pair / apart * apart * 2 + pair % apart;
        put_in_order(keys[i], keys[i + apart], ((i & (width - 1)) & size) == 0);
    }
}
// The elements of the first k keys of each line, and their places.
template <class T> DEV void take(const Lines& lines, i64 width, i64 k, const u64* keys, const T* x, T* y, i64* places) {
    Lines kept = {lines.count, k, lines.inner};
    for (EACH(i, lines.count * k)) {
        i64 line = i / k, j = i - line * k, from = keys[line * width + j] & 0xffffffffull;
        i64 at = kept.place(line, j);
        y[at] = x[lines.place(line, from)];
        places[at] = from;
    }
}

#define ALONG(NAME, T) \
    KERNEL cumulate_##NAME(LINES_PARAMETERS, const T* x, T* y, int product, int reverse) { \
        cumulate(LINES, x, y, product, reverse); \
    } \
    KERNEL cumulate_long_##NAME(LINES_PARAMETERS, const T* x, T* y, int product, int reverse) { \
        cumulate_long(LINES, x, y, product, reverse); \
    } \
    KERNEL cumprod_gradient_##NAME(LINES_PARAMETERS, const T* x, const void* g, int g_type, double* products, float* dx) { \
        cumprod_gradient(LINES, x, g, g_type, products, dx); \
    } \
    KERNEL cumprod_gradient_long_##NAME(LINES_PARAMETERS, const T* x, const void* g, int g_type, double* products, float* dx) { \
        cumprod_gradient_long(LINES, x, g, g_type, products, dx); \
    } \
    KERNEL keys_##NAME(LINES_PARAMETERS, i64 width, const T* x, u64* out, int largest) { \
        keys(LINES, width, x, out, largest); \
    } \
    KERNEL take_##NAME(LINES_PARAMETERS, i64 width, i64 k, const u64* keys, const T* x, T* y, i64* places) { \
        take(LINES, width, k, keys, x, y, places); \
    }
FOR_FLOATS(ALONG)
