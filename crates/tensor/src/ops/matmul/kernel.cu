// What stands beside the library's matrix products: a row added to all rows, results added in another type.

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
