// Normalisation by the moments of channels, of batches and of groups: passes over the matrix [rows, channels] of each
// sample (one for a whole batch). A thread keeps to its columns, one pack of N, and takes the moments or factors of those
// channels into registers; a block covers a strip of `width` packs and sweeps the rows in tiles of UNROLL x `lanes` rows,
// every `parts`-th tile. The number of parts follows from the shape alone, and so does the order of all sums:
// within a thread by rows, over the lanes of a block by halving, over the parts in doubles.
//
// Bytes that must be moved at least (n elements of s bytes; what is per channel counts nothing):
//   forward   moments            n s      x
//             normalise          2 n s    x, y                      (3 n s with a residual)
//   backward  gradient_sums      2 n s    g, x; a ReLU's mask is computed from x again, so y is not read
//                                4 n s    g, x, y, residual's gradient written: with ReLU and residual
//             input_gradient     3 n s    g, x, dx                  (4 n s where dx is added to)
// The second pass of each pair sweeps from the end, where the first one left the operands in the L2 cache. While a tile is
// computed the next one is fetched into that cache: registers for more loads would cost blocks side by side.

// `Matrix::cuda` on the host.
struct Matrix { i64 samples, rows, cols, width, lanes, parts; };

// Numbers of the channels: mean and 1/deviation start `step` further for each sample. Without gamma it is 1, without beta 0.
struct Channels {
    const float *mean, *inverse, *gamma, *beta;
    i64 step;
};

constexpr int THREADS = 256;
// Rows a thread loads at once.
constexpr int UNROLL = 4;

// Where a thread works. Threads of the last strip that have no column of their own come to the barriers with the others.
template <int N> struct Spot {
    int lane;
    i64 col;
    bool inside;
    DEV Spot(const Matrix& m) {
        u32 width = (u32)m.width;
        lane = (int)(threadIdx.x / width);
        col = ((i64)blockIdx.x * width + threadIdx.x % width) * N;
        inside = col < m.cols;
    }
};

template <int N> DEV void read_row(float (&out)[N], const float* p, float otherwise) {
    constexpr int W = N < 4 ? N : 4;
    for (int k = 0; k < N; k += W) {
        if (p) {
            auto part = load_pack<W>(p + k);
            for (int j = 0; j < W; j++) out[k + j] = part.at(j);
        } else {
            for (int j = 0; j < W; j++) out[k + j] = otherwise;
        }
    }
}
template <int N> DEV void write_row(float* p, const float* in) {
    constexpr int W = N < 4 ? N : 4;
    for (int k = 0; k < N; k += W) {
        Pack<float, W> part;
        for (int j = 0; j < W; j++) part.set(j, in[k + j]);
        store_pack(p + k, part);
    }
}
DEV const float* at(const float* p, i64 i) { return p ? p + i : p; }

// Mean, and sum of the squared distances from it, of N columns, with the number of rows that they are of.
template <int N> struct Moments {
    static constexpr int K = 2 * N + 1;
    float v[K];
    DEV float& mean(int k) { return v[k]; }
    DEV float& spread(int k) { return v[N + k]; }
    DEV float& count() { return v[2 * N]; }
    // By the rule of Chan, Golub and LeVeque (1979).
    DEV void merge(const Moments& other) {
        float n = other.v[2 * N], all = count() + n, share = all > 0.0f ? n / all : 0.0f, both = count() * share;
        for (int k = 0; k < N; k++) {
            float d = other.v[k] - mean(k);
            mean(k) = fmaf(d, share, mean(k));
            spread(k) += fmaf(d * d, both, other.v[N + k]);
        }
        count() = all;
    }
};
template <int N> struct Sums {
    static constexpr int K = 2 * N;
    float v[K];
    DEV void merge(const Sums& other) {
        for (int k = 0; k < K; k++) v[k] += other.v[k];
    }
};

// What the lanes of a column hold, merged into lane 0's by halving. `room` has K numbers for each thread.
template <class V> DEV void fold_lanes(V& mine, float* room, int lane, int width, int lanes) {
    for (int left = lanes; left > 1; left = (left + 1) / 2) {
        int half = (left + 1) / 2;
        if (lane >= half && lane < left)
            for (int k = 0; k < V::K; k++) room[k * THREADS + threadIdx.x] = mine.v[k];
        __syncthreads();
        if (lane < left - half) {
            V other;
            for (int k = 0; k < V::K; k++) other.v[k] = room[k * THREADS + threadIdx.x + half * width];
            mine.merge(other);
        }
        __syncthreads();
    }
}

// Each part's means and spreads: parts[sample][part][2][cols].
template <class T, int N> DEV void moments(const T* x, float* parts, const Matrix& m) {
    __shared__ float room[Moments<N>::K * THREADS];
    Spot<N> spot(m);
    const int lanes = (int)m.lanes;
    const i64 tile = (i64)UNROLL * lanes, stride = (i64)lanes * m.cols, step = m.parts * tile;
    for (i64 s = blockIdx.z; s < m.samples; s += gridDim.z) {
        Moments<N> mine = {};
        const T* from = x + s * m.rows * m.cols + spot.col;
        for (i64 row = blockIdx.y * tile + spot.lane; spot.inside && row < m.rows; row += step) {
            const T* p = from + row * m.cols;
            if (row + (UNROLL - 1) * lanes < m.rows) {
                Pack<T, N> in[UNROLL];
                const bool next = row + step + (UNROLL - 1) * lanes < m.rows;
                for (int u = 0; u < UNROLL; u++) in[u] = load_pack_ahead<N>(p + u * stride, next, step * m.cols);
                float all = mine.count() + UNROLL, share = UNROLL / all, both = mine.count() * share;
                for (int k = 0; k < N; k++) {
                    float sum = 0.0f, squares = 0.0f;
                    for (int u = 0; u < UNROLL; u++) sum += in[u].at(k);
                    float mean = sum * (1.0f / UNROLL), d = mean - mine.mean(k);
                    for (int u = 0; u < UNROLL; u++) {
                        float e = in[u].at(k) - mean;
                        squares = fmaf(e, e, squares);
                    }
                    mine.mean(k) = fmaf(d, share, mine.mean(k));
                    mine.spread(k) += fmaf(d * d, both, squares);
                }
                mine.count() = all;
            } else {
                for (i64 r = row; r < m.rows; r += lanes, p += stride) {
                    auto in = load_pack<N>(p);
                    float all = mine.count() + 1.0f, share = 1.0f / all, both = mine.count() * share;
                    for (int k = 0; k < N; k++) {
                        float d = in.at(k) - mine.mean(k);
                        mine.mean(k) = fmaf(d, share, mine.mean(k));
                        mine.spread(k) = fmaf(d * d, both, mine.spread(k));
                    }
                    mine.count() = all;
                }
            }
        }
        fold_lanes(mine, room, spot.lane, (int)m.width, lanes);
        if (spot.inside && spot.lane == 0) {
            float* out = parts + (s * m.parts + blockIdx.y) * 2 * m.cols + spot.col;
            write_row<N>(out, mine.v);
            write_row<N>(out + m.cols, mine.v + N);
        }
    }
}

// (x - mean) inverse gamma + beta. Halves are multiplied as they are and the mean's part is in the constant: what that is
// rounded by is far below what an x is, and it saves registers.
template <class T, int N> struct Line {
    static constexpr bool CENTRED = sizeof(T) == 4;
    float mean[N], scale[N], constant[N];
    DEV void read(const Channels& of, i64 sample, i64 col) {
        read_row<N>(mean, of.mean + sample * of.step + col, 0.0f);
        read_row<N>(scale, of.inverse + sample * of.step + col, 0.0f);
        read_row<N>(constant, at(of.gamma, col), 1.0f);
        for (int k = 0; k < N; k++) scale[k] *= constant[k];
        read_row<N>(constant, at(of.beta, col), 0.0f);
        for (int k = 0; !CENTRED && k < N; k++) constant[k] = fmaf(-mean[k], scale[k], constant[k]);
    }
    DEV float operator()(int k, float x) const { return fmaf(CENTRED ? x - mean[k] : x, scale[k], constant[k]); }
};
// A number of this size and below is rounded to 0.
template <class T> constexpr float NOTHING = 0.0f;
template <> constexpr float NOTHING<bf16> = 0x1p-134f;
template <> constexpr float NOTHING<f16> = 0x1p-25f;

// Rows from `row` on, as far as a thread's steps go.
DEV int rows_left(i64 rows, i64 row) { return (int)min(rows - row, (i64)1 << 20); }

// y = (x - mean) inverse gamma + beta, plus the residual, cut off at 0. Not a number stays one.
template <class T, int N>
DEV void normalise(const T* x, const T* residual, T* y, const Channels& of, int relu, const Matrix& m) {
    Spot<N> spot(m);
    if (!spot.inside) return;
    const int lanes = (int)m.lanes;
    const i64 tile = (i64)UNROLL * lanes, stride = (i64)lanes * m.cols, tiles = (m.rows + tile - 1) / tile;
    const i64 step = gridDim.y * tile;
    for (i64 s = blockIdx.z; s < m.samples; s += gridDim.z) {
        Line<T, N> line;
        line.read(of, s, spot.col);
        const i64 start = s * m.rows * m.cols + spot.col;
        i64 row = (tiles - 1 - blockIdx.y) * tile + spot.lane, place = start + row * m.cols;
        for (; row >= 0; row -= step, place -= step * m.cols) {
            const int left = rows_left(m.rows, row);
            Pack<T, N> in[UNROLL], more[UNROLL];
            for (int u = 0; u < UNROLL; u++)
                if (u * lanes < left) in[u] = load_pack_ahead<N>(x + place + u * stride, row >= step, -step * m.cols);
            if (residual) {
                for (int u = 0; u < UNROLL; u++)
                    if (u * lanes < left) more[u] = load_pack_ahead<N>(residual + place + u * stride, row >= step, -step * m.cols);
            }
            for (int u = 0; u < UNROLL; u++) {
                for (int k = 0; k < N; k++) {
                    float v = line(k, in[u].at(k));
                    if (residual) v += more[u].at(k);
                    in[u].set(k, relu && v < 0.0f ? 0.0f : v);
                }
                if (u * lanes < left) store_pack(y + place + u * stride, in[u]);
            }
        }
    }
}

// How the gradient behind a ReLU is found: PLAIN: there is none; AGAIN: the output is computed from x again, in the very
// steps of `normalise`; KEPT: it is read, and what the ReLU let through is written for the residual. ROWS is PLAIN with
// moments of rows, one after the other in `mean`, instead of columns.
enum { PLAIN, AGAIN, KEPT, ROWS };

// Each part's sums of g (x - mean), with ROWS of g (x - mean) inverse, and of g: parts[sample][part][2][cols].
template <class T, int N, int MODE>
DEV void gradient_sums(const T* g, const T* x, const T* y, T* passed, const Channels& of, float* parts, const Matrix& m) {
    constexpr int U = 2;
    __shared__ float room[Sums<N>::K * THREADS];
    Spot<N> spot(m);
    const int lanes = (int)m.lanes;
    const i64 tile = (i64)U * lanes, stride = (i64)lanes * m.cols, step = m.parts * tile;
    for (i64 s = blockIdx.z; s < m.samples; s += gridDim.z) {
        Sums<N> mine = {};
        Line<T, N> line;
        if (MODE != ROWS && spot.inside) line.read(of, s, spot.col);
        i64 row = blockIdx.y * tile + spot.lane, place = s * m.rows * m.cols + spot.col + row * m.cols;
        for (; spot.inside && row < m.rows; row += step, place += step * m.cols) {
            const int left = rows_left(m.rows, row);
            Pack<T, N> up[U], in[U], out[U];
            const bool next = row + step + (U - 1) * lanes < m.rows;
            // A row past the end is read as the first one of the tile and its g is taken as 0.
            for (int u = 0; u < U; u++) {
                const i64 p = u * lanes < left ? place + u * stride : place;
                up[u] = load_pack_ahead<N>(g + p, next, step * m.cols);
                in[u] = load_pack_ahead<N>(x + p, next, step * m.cols);
                if (MODE == KEPT) out[u] = load_pack_ahead<N>(y + p, next, step * m.cols);
            }
            for (int u = 0; u < U; u++) {
                const bool there = u * lanes < left;
                float centre = 0.0f, inverse = 1.0f;
                if (MODE == ROWS) {
                    const i64 r = 2 * (there ? row + u * lanes : row);
                    centre = of.mean[r];
                    inverse = of.mean[r + 1];
                }
                for (int k = 0; k < N; k++) {
                    float a = in[u].at(k), v = there ? up[u].at(k) : 0.0f;
                    float d = MODE == ROWS ? (a - centre) * inverse : a - line.mean[k];
                    if (MODE == AGAIN && !(line(k, a) > NOTHING<T>)) v = 0.0f;
                    if (MODE == KEPT) {
                        if (!(out[u].at(k) > 0.0f)) v = 0.0f;
                        out[u].set(k, v);
                    }
                    mine.v[k] = fmaf(v, d, mine.v[k]);
                    mine.v[N + k] += v;
                }
                if (MODE == KEPT && there) store_pack(passed + place + u * stride, out[u]);
            }
        }
        fold_lanes(mine, room, spot.lane, (int)m.width, lanes);
        if (spot.inside && spot.lane == 0) {
            float* out = parts + (s * m.parts + blockIdx.y) * 2 * m.cols + spot.col;
            write_row<N>(out, mine.v);
            write_row<N>(out + m.cols, mine.v + N);
        }
    }
}

// dx (+)= scale g + slope (x - mean) + shift, with rule[sample][2][cols] for slope and shift, which are 0 without it. With
// MODE AGAIN g is what the ReLU lets through.
template <class T, int N, int MODE>
DEV void input_gradient(const T* g, const T* x, T* dx, const Channels& of, const float* rule, int add, const Matrix& m) {
    constexpr int U = 2;
    constexpr bool CENTRED = Line<T, N>::CENTRED;
    Spot<N> spot(m);
    if (!spot.inside) return;
    const int lanes = (int)m.lanes;
    const i64 tile = (i64)U * lanes, stride = (i64)lanes * m.cols, tiles = (m.rows + tile - 1) / tile;
    const i64 step = gridDim.y * tile;
    for (i64 s = blockIdx.z; s < m.samples; s += gridDim.z) {
        Line<T, N> line;
        line.read(of, s, spot.col);
        float slope[N], shift[N];
        read_row<N>(slope, at(rule, s * 2 * m.cols + spot.col), 0.0f);
        read_row<N>(shift, at(rule, (s * 2 + 1) * m.cols + spot.col), 0.0f);
        for (int k = 0; !CENTRED && k < N; k++) shift[k] = fmaf(-line.mean[k], slope[k], shift[k]);
        const i64 start = s * m.rows * m.cols + spot.col;
        i64 row = (tiles - 1 - blockIdx.y) * tile + spot.lane, place = start + row * m.cols;
        for (; row >= 0; row -= step, place -= step * m.cols) {
            const int left = rows_left(m.rows, row);
            Pack<T, N> up[U], in[U], old[U];
            for (int u = 0; u < U; u++) {
                if (u * lanes >= left) continue;
                up[u] = load_pack_ahead<N>(g + place + u * stride, row >= step, -step * m.cols);
                in[u] = load_pack_ahead<N>(x + place + u * stride, row >= step, -step * m.cols);
                if (add) old[u] = load_pack<N>(dx + place + u * stride);
            }
            for (int u = 0; u < U; u++) {
                for (int k = 0; k < N; k++) {
                    float v = up[u].at(k), a = in[u].at(k), d = CENTRED ? a - line.mean[k] : a;
                    float base = fmaf(d, slope[k], shift[k]);
                    if (MODE == AGAIN && !(line(k, a) > NOTHING<T>)) v = 0.0f;
                    if (add) base += old[u].at(k);
                    in[u].set(k, fmaf(v, line.scale[k], base));
                }
                if (u * lanes < left) store_pack(dx + place + u * stride, in[u]);
            }
        }
    }
}

// Four blocks of the moments' and three of the gradients' have room on a multiprocessor side by side.
#define PASSES(NAME, T, N) \
    KERNEL __launch_bounds__(THREADS, 4) moments_##NAME##_##N(const T* x, float* parts, Matrix m) { \
        moments<T, N>(x, parts, m); \
    } \
    KERNEL __launch_bounds__(THREADS, 3) normalise_##NAME##_##N( \
        const T* x, const T* residual, T* y, Channels of, int relu, Matrix m) { \
        normalise<T, N>(x, residual, y, of, relu, m); \
    } \
    GRADIENTS(NAME, T, N, plain, PLAIN) GRADIENTS(NAME, T, N, again, AGAIN) \
    GRADIENT_SUMS(NAME, T, N, kept, KEPT) GRADIENT_SUMS(NAME, T, N, rows, ROWS)
#define GRADIENT_SUMS(NAME, T, N, MODE, CODE) \
    KERNEL __launch_bounds__(THREADS, 3) gradient_sums_##MODE##_##NAME##_##N( \
        const T* g, const T* x, const T* y, T* passed, Channels of, float* parts, Matrix m) { \
        gradient_sums<T, N, CODE>(g, x, y, passed, of, parts, m); \
    }
#define GRADIENTS(NAME, T, N, MODE, CODE) \
    GRADIENT_SUMS(NAME, T, N, MODE, CODE) \
    KERNEL __launch_bounds__(THREADS, 3) input_gradient_##MODE##_##NAME##_##N( \
        const T* g, const T* x, T* dx, Channels of, const float* rule, int add, Matrix m) { \
        input_gradient<T, N, CODE>(g, x, dx, of, rule, add, m); \
    }
// By sixteen bytes; by four where a channel number has no larger factor, or memory begins anywhere; one by one.
PASSES(f32, float, 4) PASSES(f32, float, 1)
PASSES(bf16, bf16, 8) PASSES(bf16, bf16, 2) PASSES(bf16, bf16, 1)
PASSES(f16, f16, 8) PASSES(f16, f16, 2) PASSES(f16, f16, 1)

// What follows the sweeps is small: a block of THREADS takes UNITS neighbouring channels or groups, LANES threads each, and
// adds up in doubles.
constexpr int UNITS = 4, LANES = THREADS / UNITS;

// Room for two sums of each unit from each warp.
constexpr int WARPS = THREADS / 32, ROOM = 2 * WARPS * UNITS;
// The sums over a unit's lanes, first of each warp's, then over the warps; all threads of the block take part, and all get their unit's.
DEV void over_lanes(double& a, double& b, double* room) {
    for (int step = 16; step >= UNITS; step /= 2) {
        a += __shfl_xor_sync(0xffffffffu, a, step);
        b += __shfl_xor_sync(0xffffffffu, b, step);
    }
    double* mine = room + 2 * (threadIdx.x % UNITS);
    if (threadIdx.x % 32 < UNITS) {
        mine[threadIdx.x / 32 * 2 * UNITS] = a;
        mine[threadIdx.x / 32 * 2 * UNITS + 1] = b;
    }
    __syncthreads();
    a = b = 0.0;
    for (int w = 0; w < WARPS; w++) {
        a += mine[w * 2 * UNITS];
        b += mine[w * 2 * UNITS + 1];
    }
    __syncthreads();
}

DEV float inverse_deviation(float variance, double eps) { return (float)(1.0 / sqrt((double)variance + eps)); }

// Mean, biased variance and 1/deviation of each sample's groups, [samples, groups], from what `moments` left of their
// channels; with `spread` mean and 1/deviation by channel too, [samples, 2, cols].
KERNEL finish_moments(
    const float* parts, float* mean, float* variance, float* inverse, float* spread, i64 groups, double eps, Matrix m) {
    __shared__ double room[ROOM];
    const int lane = threadIdx.x / UNITS, each = (int)(m.cols / groups), items = (int)m.parts * each;
    const i64 group = (i64)blockIdx.x * UNITS + threadIdx.x % UNITS, first = group * each;
    const bool inside = group < groups;
    // Rows of a part: it has every `parts`-th tile, and the last tile of all may be short.
    const i64 tile = (i64)UNROLL * m.lanes, tiles = (m.rows + tile - 1) / tile;
    const i64 least = m.parts ? tiles / m.parts : 0, more = tiles - least * m.parts, lacking = tiles * tile - m.rows;
    const i64 last = more ? more - 1 : m.parts - 1;
    const double share = m.rows ? 1.0 / ((double)m.rows * each) : 0.0;
    for (i64 s = blockIdx.y; s < m.samples; s += gridDim.y) {
        const float* from = parts + s * m.parts * 2 * m.cols + first;
        // Distances from the first mean of all, which is one of the group's and so not far from its own: doubles have room for
        // the square that is taken off again.
        const double near = inside && items ? from[0] : 0.0;
        double shift = 0.0, sum = 0.0;
        for (int i = lane; inside && i < items; i += LANES) {
            const int part = each == 1 ? i : i / each;
            const float* p = from + (i64)part * 2 * m.cols + (i - part * each);
            const double n = (double)((least + (part < more)) * tile - (part == last ? lacking : 0));
            const double off = p[0] - near;
            shift += n * off;
            sum += p[m.cols] + n * off * off;
        }
        over_lanes(shift, sum, room);
        shift *= share;
        sum = sum * share - shift * shift;
        sum = sum < 0.0 ? 0.0 : sum;
        const double centre = near + shift;
        if (!inside) continue;
        const float spread_of = inverse_deviation((float)sum, eps);
        if (lane == 0) {
            mean[s * groups + group] = (float)centre;
            variance[s * groups + group] = (float)sum;
            inverse[s * groups + group] = spread_of;
        }
        for (int c = lane; spread && c < each; c += LANES) {
            spread[s * 2 * m.cols + first + c] = (float)centre;
            spread[(s * 2 + 1) * m.cols + first + c] = spread_of;
        }
    }
}

// 1/deviation of n channels from given variances.
KERNEL deviations(const float* variance, float* inverse, i64 n, double eps) {
    for (EACH(i, n)) inverse[i] = inverse_deviation(variance[i], eps);
}

// Moments by channel, [samples, 2, cols], from those of groups.
KERNEL spread_groups(const float* mean, const float* inverse, float* spread, i64 samples, i64 cols, i64 groups) {
    const i64 each = cols / groups;
    for (EACH(i, samples * cols)) {
        const i64 s = i / cols, c = i - s * cols, from = s * groups + c / each;
        spread[s * 2 * cols + c] = mean[from];
        spread[(s * 2 + 1) * cols + c] = inverse[from];
    }
}

// Where a parameter's gradient goes; nowhere when `p` is null.
struct Target {
    void* p;
    int dtype, add;
    DEV void give(i64 i, float x) const {
        if (p) store_any(p, dtype, i, add ? load_any(p, dtype, i) + x : x);
    }
};

// Sums of g x^ and of g over `count` parts [count][2][cols] of each sample: to `sums` [samples][2][cols], to the gradients of
// gamma and beta, and as the factors of `input_gradient` (one sample), where they are wanted. The first sums are multiplied
// with `of.inverse` if there is one.
KERNEL finish_sums(const float* parts, i64 count, i64 cols, i64 samples, Channels of, float share, float* sums, Target gamma,
                   Target beta, float* rule) {
    __shared__ double room[ROOM];
    const int lane = threadIdx.x / UNITS;
    const i64 c = (i64)blockIdx.x * UNITS + threadIdx.x % UNITS;
    const bool inside = c < cols;
    for (i64 s = blockIdx.y; s < samples; s += gridDim.y) {
        double near = 0.0, plain = 0.0;
        for (i64 i = lane; inside && i < count; i += LANES) {
            const float* p = parts + (s * count + i) * 2 * cols + c;
            near += p[0];
            plain += p[cols];
        }
        over_lanes(near, plain, room);
        if (!inside || lane != 0) continue;
        const float inverse = of.inverse ? of.inverse[s * of.step + c] : 1.0f;
        const float of_gamma = (float)near * inverse, of_beta = (float)plain;
        if (sums) {
            sums[s * 2 * cols + c] = of_gamma;
            sums[(s * 2 + 1) * cols + c] = of_beta;
        }
        gamma.give(c, of_gamma);
        beta.give(c, of_beta);
        if (rule) {
            const float scale = inverse * (of.gamma ? of.gamma[c] : 1.0f);
            rule[c] = -(scale * inverse * (of_gamma * share));
            rule[cols + c] = -(scale * (of_beta * share));
        }
    }
}

// The factors of `input_gradient` for groups of channels, from each sample's sums; a warp a group of a sample.
KERNEL group_rule(const float* sums, Channels of, float* rule, i64 samples, i64 cols, i64 groups, float share) {
    const int lane = threadIdx.x % 32, each = (int)(cols / groups), warps = blockDim.x / 32;
    for (i64 i = (i64)blockIdx.x * warps + threadIdx.x / 32; i < samples * groups; i += (i64)gridDim.x * warps) {
        const i64 s = i / groups, first = (i - s * groups) * each;
        const float inverse = of.inverse[s * of.step + first];
        float slope = 0.0f, shift = 0.0f;
        for (i64 c = first + lane; c < first + each; c += 32) {
            const float scale = inverse * (of.gamma ? of.gamma[c] : 1.0f);
            slope -= scale * inverse * (sums[s * 2 * cols + c] * share);
            shift -= scale * (sums[(s * 2 + 1) * cols + c] * share);
        }
        slope = warp_fold(slope, Sum());
        shift = warp_fold(shift, Sum());
        for (i64 c = first + lane; c < first + each; c += 32) {
            rule[s * 2 * cols + c] = slope;
            rule[(s * 2 + 1) * cols + c] = shift;
        }
    }
}
