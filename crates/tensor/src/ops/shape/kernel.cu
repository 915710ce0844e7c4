// Copies and sums of strided operands, conversions between types, elements put into a larger tensor.

// `to (+)= from`, one type; the walk has the places in `to` and in `from`.
template <class T> DEV void move(const T* from, T* to, const Walk& walk) {
    for (EACH(i, walk.total())) {
        i64 at[2];
        walk.places(i, at);
        to[at[0]] = from[at[1]];
    }
}
#define MOVE(SIZE, TYPE) KERNEL move_##SIZE(const TYPE* from, TYPE* to, Walk walk) { move(from, to, walk); }
// 16 bytes of a row at once, where all rows are packs of them.
struct alignas(16) Line { u64 half[2]; };
MOVE(1, u8) MOVE(2, u16) MOVE(4, u32) MOVE(8, u64) MOVE(16, Line)

// The same for a matrix of `rows` rows that lies column by column: [batch, rows, columns] read from [batch, columns, rows]
// by tiles, so that both sides are read and written in lines.
template <class T> DEV void transpose(const T* from, T* to, int rows, int columns) {
    __shared__ T tile[32][33];
    const T* source = from + (i64)blockIdx.z * rows * columns;
    T* target = to + (i64)blockIdx.z * rows * columns;
    int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    int r0 = blockIdx.y * 32, c0 = blockIdx.x * 32;
    for (int k = line; k < 32; k += 8)
        if (c0 + k < columns && r0 + lane < rows) tile[k][lane] = source[(i64)(c0 + k) * rows + r0 + lane];
    __syncthreads();
    for (int k = line; k < 32; k += 8)
        if (r0 + k < rows && c0 + lane < columns) target[(i64)(r0 + k) * columns + c0 + lane] = tile[lane][k];
}
#define TRANSPOSE(SIZE, TYPE) \
    KERNEL transpose_##SIZE(const TYPE* from, TYPE* to, int rows, int columns) { transpose(from, to, rows, columns); }
TRANSPOSE(2, u16) TRANSPOSE(4, u32)

template <class T> DEV void add(const T* from, T* to, const Walk& walk) {
    for (EACH(i, walk.total())) {
        i64 at[2];
        walk.places(i, at);
        store(to, at[0], load(to, at[0]) + load(from, at[1]));
    }
}
template <class T> DEV void add_dense(const T* from, T* to, i64 n) {
    constexpr int N = WIDE<T>;
    for (EACH(i, n / N)) {
        auto x = load_pack<N>(from + i * N), y = load_pack<N>(to + i * N);
        for (int k = 0; k < N; k++) y.set(k, y.at(k) + x.at(k));
        store_pack(to + i * N, y);
    }
    for (EACH(i, n % N)) store(to, n - 1 - i, load(to, n - 1 - i) + load(from, n - 1 - i));
}
// The same by packs: the walk counts those.
template <class T> DEV void add_packs(const T* from, T* to, const Walk& walk) {
    constexpr int N = WIDE<T>;
    for (EACH(i, walk.total())) {
        i64 at[2];
        walk.places(i, at);
        auto x = load_pack<N>(from + at[1] * N), y = load_pack<N>(to + at[0] * N);
        for (int k = 0; k < N; k++) y.set(k, y.at(k) + x.at(k));
        store_pack(to + at[0] * N, y);
    }
}
#define ADD(NAME, TYPE) \
    KERNEL add_packs_##NAME(const TYPE* from, TYPE* to, Walk walk) { add_packs(from, to, walk); } \
    KERNEL add_##NAME(const TYPE* from, TYPE* to, Walk walk) { add(from, to, walk); } \
    KERNEL add_dense_##NAME(const TYPE* from, TYPE* to, i64 n) { add_dense(from, to, n); }
FOR_FLOATS(ADD) ADD(f64, double)

// Small tensors of whole words gathered into one, a block a tensor: so that one copy takes them all to the host. They go behind
// the first `first` words of `to`, or of the address that is at `at`, where it is not null.
struct Parts {
    const u32* from[96];
    u32 start[97];
};
KERNEL gather_words(Parts parts, u32 first, u32* const* at, u32* to) {
    if (at) to = *at;
    u32 start = parts.start[blockIdx.x], len = parts.start[blockIdx.x + 1] - start;
    const u32* from = parts.from[blockIdx.x];
    for (u32 i = threadIdx.x; i < len; i += blockDim.x) to[first + start + i] = from[i];
}

// Between float types, dense.
template <class A, class B> DEV void convert(const A* from, B* to, i64 n) {
    constexpr int N = WIDE<A> > WIDE<B> ? WIDE<B> : WIDE<A>;
    for (EACH(i, n / N)) {
        auto x = load_pack<N>(from + i * N);
        Pack<B, N> y;
        for (int k = 0; k < N; k++) y.set(k, x.at(k));
        store_pack(to + i * N, y);
    }
    for (EACH(i, n % N)) store(to, n - 1 - i, load(from, n - 1 - i));
}
#define CONVERT(A, AT, B, BT) KERNEL convert_##A##_##B(const AT* from, BT* to, i64 n) { convert(from, to, n); }
CONVERT(f32, float, bf16, bf16) CONVERT(f32, float, f16, f16) CONVERT(bf16, bf16, f32, float) CONVERT(f16, f16, f32, float)

// Between any two types, by way of doubles, which hold all others' values (integers up to 2^53): what is rare. Integers are cut
// towards zero and to their type's range, not a number is 0.
DEV double widest(const void* p, int dtype, i64 i) {
    switch (dtype) {
    case F64: return ((const double*)p)[i];
    case U8: return ((const u8*)p)[i];
    case I64: return (double)((const i64*)p)[i];
    default: return load_any(p, dtype, i);
    }
}
DEV i64 whole(double x, double low, double high) {
    return x != x ? 0 : x <= low ? (i64)low : x >= high ? (i64)(high - 1.0) : (i64)x;
}
KERNEL convert_any(const void* from, int from_type, void* to, int to_type, i64 n) {
    for (EACH(i, n)) {
        double x = widest(from, from_type, i);
        switch (to_type) {
        case F64: ((double*)to)[i] = x; break;
        case U8: ((u8*)to)[i] = (u8)whole(x, 0.0, 256.0); break;
        case I64:
            ((i64*)to)[i] = from_type == I64 ? ((const i64*)from)[i]
                          : x >= 9223372036854775808.0 ? 0x7fffffffffffffffll
                          : x <= -9223372036854775808.0 ? -0x7fffffffffffffffll - 1 : x != x ? 0 : (i64)x;
            break;
        default: store_any(to, to_type, i, (float)x);
        }
    }
}
