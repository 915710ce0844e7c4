// Dropout and normal noise: element i uses the words that the CPU's uses. The stream's key is at `key_at`, unless that is null.

// y (+)= x * scale + shift where the element's word is at least `from`, else `low`.
template <class T>
DEV void drop(const T* x, T* y, i64 n, u64 key, u32 from, float scale, float shift, float low, int add) {
    constexpr int N = WIDE<T>;
    bool wide = ((u64)x | (u64)y) % 16 == 0;
    for (EACH(i, (n + N - 1) / N)) {
        i64 at = i * N;
        int have = n - at < N ? (int)(n - at) : N;
        Pack<T, N> v = {}, old = {};
        if (wide && have == N) {
            v = load_pack<N>(x + at);
            if (add) old = load_pack<N>(y + at);
        } else {
            for (int e = 0; e < N; e++) {
                if (e < have) v.set(e, load(x, at + e));
                if (e < have && add) old.set(e, load(y, at + e));
            }
        }
        for (int b = 0; b < N / 4; b++) {
            Words w = philox(key, i * (N / 4) + b);
            for (int e = 0; e < 4; e++) {
                int k = b * 4 + e;
                float kept = w.w[e] >= from ? fmaf(v.at(k), scale, shift) : low;
                v.set(k, add ? old.at(k) + kept : kept);
            }
        }
        if (wide && have == N) {
            store_pack(y + at, v);
        } else {
            for (int e = 0; e < N; e++)
                if (e < have) store(y, at + e, v.at(e));
        }
    }
}
#define DROP(NAME, T) \
    KERNEL drop_##NAME( \
        const T* x, T* y, i64 n, const u64* key_at, u64 key, u32 from, float scale, float shift, float low, int add) { \
        drop(x, y, n, key_at ? *key_at : key, from, scale, shift, low, add); \
    }
FOR_FLOATS(DROP)

// In [0, 1) with 53 bits.
DEV double unit_double(u32 low, u32 high) {
    return (double)(((u64)low | (u64)high << 32) >> 11) * (1.0 / 9007199254740992.0);
}
// Numbers 2b and 2b + 1 are made of block b, in double precision as on the CPU: there are few of them.
KERNEL normal(void* out, int type, i64 n, const u64* key_at, u64 key) {
    if (key_at) key = *key_at;
    for (EACH(b, (n + 1) / 2)) {
        Words w = philox(key, b);
        double radius = sqrt(-2.0 * log(1.0 - unit_double(w.w[0], w.w[1])));
        double angle = 6.283185307179586477 * unit_double(w.w[2], w.w[3]);
        double both[2] = {radius * cos(angle), radius * sin(angle)};
        for (int e = 0; e < 2; e++) {
            if (2 * (i64)b + e >= n) continue;
            if (type == F64) ((double*)out)[2 * b + e] = both[e];
            else store_any(out, type, 2 * b + e, (float)both[e]);
        }
    }
}
