// Normalisation of rows of k numbers by their own moments. A warp has a row where rows are short, a block where they are
// long; what is read again of a row comes from the L1 cache (not in `row_backward_sums`, which reads nothing again).
//
// Bytes that must be moved at least (n elements of s bytes): forward 2 n s (x, y), backward 3 n s (g, x, dx), with the
// parameters' gradients summed on the way where rows have at most SHORT numbers; otherwise those read g and x once more.

constexpr int THREADS = 256;
constexpr int SHORT = 1024;

// Sums over the SPAN threads that have a row together; all of them get it.
template <int SPAN> DEV float over_row(float x, float* room) {
    return SPAN == 32 ? warp_fold(x, Sum()) : block_fold(x, 0.0f, Sum(), room);
}

template <int N> DEV void read_row(float (&out)[N], const float* p, i64 i, float otherwise) {
    constexpr int W = N < 4 ? N : 4;
    for (int k = 0; k < N; k += W) {
        if (p) {
            auto part = load_pack<W>(p + i + k);
            for (int j = 0; j < W; j++) out[k + j] = part.at(j);
        } else {
            for (int j = 0; j < W; j++) out[k + j] = otherwise;
        }
    }
}

// y = (x - mean) inverse gamma + beta; moments[row] = mean, inverse.
template <class T, int N, int SPAN>
DEV void row_forward(const T* x, const float* gamma, const float* beta, T* y, float* moments, i64 rows, i64 k,
                     int centred, float eps) {
    __shared__ float room[32];
    constexpr int ROWS = THREADS / SPAN;
    const int lane = threadIdx.x % SPAN;
    const float share = 1.0f / (float)k;
    for (i64 row = (i64)blockIdx.x * ROWS + threadIdx.x / SPAN; row < rows; row += (i64)gridDim.x * ROWS) {
        const T* from = x + row * k;
        float mean = 0.0f, off = 0.0f, square = 0.0f;
        if (centred) {
            for (i64 i = lane * N; i < k; i += SPAN * N) {
                auto in = load_pack<N>(from + i);
                float sum = 0.0f;
                for (int j = 0; j < N; j++) sum += in.at(j);
                mean += sum;
            }
            mean = over_row<SPAN>(mean, room) * share;
        }
        for (i64 i = lane * N; i < k; i += SPAN * N) {
            auto in = load_pack<N>(from + i);
            float sum = 0.0f, squares = 0.0f;
            for (int j = 0; j < N; j++) {
                float d = in.at(j) - mean;
                sum += d;
                squares = fmaf(d, d, squares);
            }
            off += sum;
            square += squares;
        }
        float variance = over_row<SPAN>(square, room) * share;
        if (centred) {
            // The mean was rounded: what the distances add up to corrects the variance for it.
            off = over_row<SPAN>(off, room) * share;
            variance -= off * off;
        }
        // Not a number stays one.
        const float inverse = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
        if (lane == 0) {
            moments[2 * row] = mean;
            moments[2 * row + 1] = inverse;
        }
        for (i64 i = lane * N; i < k; i += SPAN * N) {
            auto in = load_pack<N>(from + i);
            float scale[N], shift[N];
            read_row<N>(scale, gamma, i, 1.0f);
            read_row<N>(shift, beta, i, 0.0f);
            for (int j = 0; j < N; j++) in.set(j, fmaf((in.at(j) - mean) * inverse, scale[j], shift[j]));
            store_pack(y + row * k + i, in);
        }
    }
}

// One row's dx (+)= (h - mean of h - x^ mean of h x^) inverse with h = g gamma, from the sums of this thread's h and h x^.
template <class T, int N, int SPAN>
DEV void row_gradient(const T* x, const T* g, const float* gamma, T* dx, float mean, float inverse, float level,
                      float slope, i64 k, int centred, int add, float* room) {
    const float share = 1.0f / (float)k;
    level = over_row<SPAN>(level, room) * share;
    slope = over_row<SPAN>(slope, room) * share;
    if (!dx) return;
    if (!centred) level = 0.0f;
    for (i64 i = threadIdx.x % SPAN * N; i < k; i += SPAN * N) {
        auto in = load_pack<N>(x + i), up = load_pack<N>(g + i);
        Pack<T, N> old = {};
        if (add) old = load_pack<N>(dx + i);
        float scale[N];
        read_row<N>(scale, gamma, i, 1.0f);
        for (int j = 0; j < N; j++) {
            float near = (in.at(j) - mean) * inverse, d = up.at(j) * scale[j] - level - near * slope;
            in.set(j, add ? fmaf(d, inverse, old.at(j)) : d * inverse);
        }
        store_pack(dx + i, in);
    }
}

template <class T, int N, int SPAN>
DEV void row_backward(const T* x, const T* g, const float* gamma, const float* moments, T* dx, i64 rows, i64 k,
                      int centred, int add) {
    __shared__ float room[32];
    constexpr int ROWS = THREADS / SPAN;
    for (i64 row = (i64)blockIdx.x * ROWS + threadIdx.x / SPAN; row < rows; row += (i64)gridDim.x * ROWS) {
        const float mean = moments[2 * row], inverse = moments[2 * row + 1];
        float level = 0.0f, slope = 0.0f;
        for (i64 i = threadIdx.x % SPAN * N; i < k; i += SPAN * N) {
            auto in = load_pack<N>(x + row * k + i), up = load_pack<N>(g + row * k + i);
            float scale[N], one = 0.0f, two = 0.0f;
            read_row<N>(scale, gamma, i, 1.0f);
            for (int j = 0; j < N; j++) {
                float h = up.at(j) * scale[j];
                one += h;
                two = fmaf(h, (in.at(j) - mean) * inverse, two);
            }
            level += one;
            slope += two;
        }
        row_gradient<T, N, SPAN>(x + row * k, g + row * k, gamma, dx + row * k, mean, inverse, level, slope, k, centred,
                                 add, room);
    }
}

// The same for rows of up to SHORT numbers, and what each block sees of the sums over the rows of g x^ and of g:
// parts[block][2][k]. `width` threads, a power of two, have a row together, and a thread keeps to its columns: it holds their
// gamma and sums, and of LINES rows at a time x and g, so that each is read once, while the lines after are fetched into the
// L2 cache. The number of blocks follows from the shape. Without dx it is only the sums.
template <int N> constexpr int PACKS = SHORT / N > THREADS ? SHORT / N / THREADS : 1;
template <int N> constexpr int LINES = PACKS<N> > 1 ? 1 : 2;
template <class T, int N>
DEV void row_backward_sums(const T* x, const T* g, const float* gamma, const float* moments, T* dx, float* parts,
                           i64 rows, i64 k, int width, int centred, int add) {
    constexpr int P = PACKS<N>, U = LINES<N>, K = 2 * P * N;
    __shared__ float room[K * THREADS];
    const int spot = threadIdx.x % width, lane = threadIdx.x / width, lanes = THREADS / width;
    const int near_lanes = width < 32 ? width : 32, warps = width / 32;
    const float share = 1.0f / (float)k;
    const i64 tile = (i64)U * lanes, step = gridDim.x * tile;
    float scale[P][N] = {}, of_gamma[P][N] = {}, of_beta[P][N] = {};
    for (int p = 0; p < P; p++)
        if ((p * width + spot) * N < k) read_row<N>(scale[p], gamma, (p * width + spot) * N, 1.0f);
    // Two halves in turn: what one tile's threads still read the next one's do not write.
    float* shared = room;
    for (i64 first = blockIdx.x * tile; first < rows; first += step) {
        Pack<T, N> in[U][P] = {}, up[U][P] = {};
        float mean[U] = {}, inverse[U] = {}, level[U] = {}, slope[U] = {};
#pragma unroll
        for (int u = 0; u < U; u++) {
            const i64 row = first + lane + u * lanes;
            if (row >= rows) continue;
            const bool next = row + step < rows;
#pragma unroll
            for (int p = 0; p < P; p++) {
                const int i = (p * width + spot) * N;
                if (i >= k) continue;
                in[u][p] = load_pack_ahead<N>(x + row * k + i, next, step * k);
                up[u][p] = load_pack_ahead<N>(g + row * k + i, next, step * k);
            }
            mean[u] = moments[2 * row];
            inverse[u] = moments[2 * row + 1];
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
#pragma unroll
            for (int p = 0; p < P; p++) {
                if ((p * width + spot) * N >= k) continue;
                for (int j = 0; j < N; j++) {
                    float near = (in[u][p].at(j) - mean[u]) * inverse[u], v = up[u][p].at(j), h = v * scale[p][j];
                    level[u] += h;
                    slope[u] = fmaf(h, near, slope[u]);
                    of_gamma[p][j] = fmaf(v, near, of_gamma[p][j]);
                    of_beta[p][j] += v;
                }
            }
        }
        for (int half = near_lanes / 2; half > 0; half /= 2) {
            for (int u = 0; u < U; u++) {
                level[u] += __shfl_xor_sync(0xffffffffu, level[u], half);
                slope[u] += __shfl_xor_sync(0xffffffffu, slope[u], half);
            }
        }
        if (warps > 1) {
            if (threadIdx.x % 32 == 0) {
                for (int u = 0; u < U; u++) {
                    shared[u * 16 + threadIdx.x / 32] = level[u];
                    shared[u * 16 + 8 + threadIdx.x / 32] = slope[u];
                }
            }
            __syncthreads();
            for (int u = 0; u < U; u++) {
                level[u] = slope[u] = 0.0f;
                for (int w = lane * warps; w < (lane + 1) * warps; w++) {
                    level[u] += shared[u * 16 + w];
                    slope[u] += shared[u * 16 + 8 + w];
                }
            }
            shared = shared == room ? room + U * 16 : room;
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            const i64 row = first + lane + u * lanes;
            if (row >= rows || !dx) continue;
            const float flat = centred ? level[u] * share : 0.0f, tilt = slope[u] * share;
#pragma unroll
            for (int p = 0; p < P; p++) {
                const int i = (p * width + spot) * N;
                if (i >= k) continue;
                Pack<T, N> old = {};
                if (add) old = load_pack<N>(dx + row * k + i);
                for (int j = 0; j < N; j++) {
                    float near = (in[u][p].at(j) - mean[u]) * inverse[u];
                    float d = up[u][p].at(j) * scale[p][j] - flat - near * tilt;
                    in[u][p].set(j, add ? fmaf(d, inverse[u], old.at(j)) : d * inverse[u]);
                }
                store_pack(dx + row * k + i, in[u][p]);
            }
        }
    }
    // The rows side by side, by halving.
    __syncthreads();
    for (int left = lanes; left > 1; left /= 2) {
        const bool gives = lane >= left / 2 && lane < left, takes = lane < left / 2;
        for (int p = 0; p < P; p++) {
            for (int j = 0; j < N; j++) {
                float* at = room + (p * N + j) * 2 * THREADS + threadIdx.x;
                if (gives) at[0] = of_gamma[p][j], at[THREADS] = of_beta[p][j];
            }
        }
        __syncthreads();
        for (int p = 0; p < P; p++) {
            for (int j = 0; j < N; j++) {
                const float* at = room + (p * N + j) * 2 * THREADS + threadIdx.x + left / 2 * width;
                if (takes) of_gamma[p][j] += at[0], of_beta[p][j] += at[THREADS];
            }
        }
        __syncthreads();
    }
    if (lane != 0) return;
    float* out = parts + (i64)blockIdx.x * 2 * k;
    for (int p = 0; p < P; p++) {
        for (int j = 0; j < N; j++) {
            const int i = (p * width + spot) * N + j;
            if (i < k) out[i] = of_gamma[p][j], out[k + i] = of_beta[p][j];
        }
    }
}

#define ROWS_BY(NAME, T, N, SPAN, WHO) \
    KERNEL __launch_bounds__(THREADS) row_forward_##WHO##_##NAME##_##N( \
        const T* x, const float* gamma, const float* beta, T* y, float* moments, i64 rows, i64 k, int centred, float eps) { \
        row_forward<T, N, SPAN>(x, gamma, beta, y, moments, rows, k, centred, eps); \
    } \
    KERNEL __launch_bounds__(THREADS) row_backward_##WHO##_##NAME##_##N( \
        const T* x, const T* g, const float* gamma, const float* moments, T* dx, i64 rows, i64 k, int centred, int add) { \
        row_backward<T, N, SPAN>(x, g, gamma, moments, dx, rows, k, centred, add); \
    }
#define ROW_PASSES(NAME, T, N) \
    ROWS_BY(NAME, T, N, 32, warp) ROWS_BY(NAME, T, N, THREADS, block) \
    KERNEL __launch_bounds__(THREADS, 3) row_backward_sums_##NAME##_##N( \
        const T* x, const T* g, const float* gamma, const float* moments, T* dx, float* parts, i64 rows, i64 k, \
        int width, int centred, int add) { \
        row_backward_sums<T, N>(x, g, gamma, moments, dx, parts, rows, k, width, centred, add); \
    }
ROW_PASSES(f32, float, 4) ROW_PASSES(f32, float, 1)
ROW_PASSES(bf16, bf16, 8) ROW_PASSES(bf16, bf16, 1)
ROW_PASSES(f16, f16, 8) ROW_PASSES(f16, f16, 1)
