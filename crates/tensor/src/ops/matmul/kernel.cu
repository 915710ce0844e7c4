// What stands beside the library's matrix products: sums down columns, numbers added to rows, results added in another type.

// One part of the sums down the columns of a row-major matrix: rows `chunk * blockIdx.y` on, columns of one tile. `lanes` threads
// (a power of two, at most 32) lie along a row, each with N columns; the others take the rows in turn. The parts follow from the
// matrix's shape alone, so the order of the additions does too.
template <class T, int N> DEV void column_sums(const T* x, float* parts, i64 rows, i64 columns, i64 chunk, int lanes) {
    __shared__ float shared[256 * N];
    int lane = threadIdx.x % lanes, line = threadIdx.x / lanes, lines = 256 / lanes;
    i64 first = (i64)blockIdx.x * lanes * N, column = first + lane * N;
    i64 end = (blockIdx.y + 1ll) * chunk;
    if (end > rows) end = rows;
    float sum[N];
    for (int k = 0; k < N; k++) sum[k] = 0.0f;
    if (column < columns) {
#pragma unroll 4
        for (i64 row = blockIdx.y * chunk + line; row < end; row += lines) {
            auto v = load_pack<N>(x + row * columns + column);
            for (int k = 0; k < N; k++) sum[k] += v.at(k);
        }
    }
    for (int k = 0; k < N; k++) shared[(line * lanes + lane) * N + k] = sum[k];
    __syncthreads();
    int width = lanes * N;
    for (int c = threadIdx.x; c < width; c += 256) {
        if (first + c >= columns) break;
        float total = 0.0f;
        for (int l = 0; l < lines; l++) total += shared[l * width + c];
        parts[blockIdx.y * columns + first + c] = total;
    }
}
#define COLUMN_SUMS(NAME, TYPE) \
    KERNEL column_sums_##NAME(const TYPE* x, float* parts, i64 rows, i64 columns, i64 chunk, int lanes) { \
        column_sums<TYPE, 1>(x, parts, rows, columns, chunk, lanes); \
    } \
    KERNEL column_sums_wide_##NAME(const TYPE* x, float* parts, i64 rows, i64 columns, i64 chunk, int lanes) { \
        column_sums<TYPE, WIDE<TYPE>>(x, parts, rows, columns, chunk, lanes); \
    }
FOR_FLOATS(COLUMN_SUMS)

// The sums of the parts, written or added to `to` of any type. A block has 32 columns.
KERNEL column_totals(const float* parts, int count, i64 columns, void* to, int type, int add) {
    __shared__ float shared[8][32];
    int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    i64 column = blockIdx.x * 32ll + lane;
    float sum = 0.0f;
    if (column < columns)
        for (int p = line; p < count; p += 8) sum += parts[p * columns + column];
    shared[line][lane] = sum;
    __syncthreads();
    if (line == 0 && column < columns) {
        sum = 0.0f;
        for (int l = 0; l < 8; l++) sum += shared[l][lane];
        store_any(to, type, column, add ? load_any(to, type, column) + sum : sum);
    }
}

// Each row of `y` plus the row `bias`.
template <class T, int N> DEV void add_row(T* y, const void* bias, int type, u64 packs, u32 columns) {
    for (EACH(i, packs)) {
        u64 at = i * N;
        u32 column = packs <= 0x0fffffff ? (u32)at % columns : (u32)(at % columns);
        auto v = load_pack<N>(y + at);
        for (int k = 0; k < N; k++) v.set(k, v.at(k) + load_any(bias, type, column + k));
        store_pack(y + at, v);
    }
}
#define ADD_ROW(NAME, TYPE) \
    KERNEL add_row_##NAME(TYPE* y, const void* bias, int type, u64 packs, u32 columns) { \
        add_row<TYPE, 1>(y, bias, type, packs, columns); \
    } \
    KERNEL add_row_wide_##NAME(TYPE* y, const void* bias, int type, u64 packs, u32 columns) { \
        add_row<TYPE, WIDE<TYPE>>(y, bias, type, packs, columns); \
    }
FOR_FLOATS(ADD_ROW)

// `to += from`, dense, f32 += a half: how a weight's gradient gets into its f32 sum.
template <class T> DEV void add_half(const T* from, float* to, i64 n) {
    for (EACH(i, n / 4)) {
        auto x = load_pack<4>(from + i * 4);
        auto y = load_pack<4>(to + i * 4);
        for (int k = 0; k < 4; k++) y.v[k] += x.at(k);
        store_pack(to + i * 4, y);
    }
    for (EACH(i, n % 4)) to[n - 1 - i] += load(from, n - 1 - i);
}
KERNEL add_bf16_f32(const bf16* from, float* to, i64 n) { add_half(from, to, n); }
KERNEL add_f16_f32(const f16* from, float* to, i64 n) { add_half(from, to, n); }

// The same for any two float types.
KERNEL add_any(const void* from, int from_type, void* to, int to_type, i64 n) {
    for (EACH(i, n)) store_any(to, to_type, i, load_any(to, to_type, i) + load_any(from, from_type, i));
}
