// Functions of one and two numbers, element by element. A function is a row of a table under the name that its rule has on the
// host (`unary.rs`, `binary.rs`, `functions.rs`), which finds its number by the row's place. What networks spend time in
// (UNARY, BINARY) has a kernel for each type, which takes packs of elements and branches once a pack, by all threads alike; what is rare
// (RARE, RARE_PAIR) one for all types, element by element: a compiler's time and a cubin's size count, too.

struct Constants { float a, b, c; };

DEV float normal(float x) { return normcdff(x); }
// sqrt(8/pi) (x + 0.044715 x^3), and its slope.
DEV float gelu_inner(float x) { return (0.07135481627f * x * x + 1.595769122f) * x; }
DEV float gelu_inner_slope(float x) { return 0.2140644488f * x * x + 1.595769122f; }
DEV float tanh_softplus(float x) {
    float e = expf(fminf(20.0f, x)), n = e * (e + 2.0f);
    return n / (n + 2.0f);
}
DEV float at_most(float high, float x) { return x > high ? high : x; }
DEV float at_least(float low, float x) { return x < low ? low : x; }
DEV float hard_sigmoid(float x) { return at_most(1.0f, at_least(0.0f, x * (1.0f / 6.0f) + 0.5f)); }
// log(1 + x) for e^-z of any size of z.
DEV float softplus(float z) { return log1pf(expf(-fabsf(z))) + at_least(0.0f, z); }
DEV float between(float x, float low, float high, float inside) { return x > low && high > x ? inside : 0.0f; }

// ROW(name, value of x, slope at s): s is the input or the output, as the rule on the host says; `p` are its constants.
#define UNARY(ROW) \
    ROW(Neg, -x, -1.0f) \
    ROW(Affine, fmaf(x, p.a, p.b), p.a) \
    ROW(Abs, fabsf(x), s > 0.0f ? 1.0f : s < 0.0f ? -1.0f : 0.0f) \
    ROW(Square, x * x, s + s) \
    ROW(Sqrt, sqrtf(x), 0.5f / s) \
    ROW(Rsqrt, 1.0f / sqrtf(x), s * s * s * -0.5f) \
    ROW(Reciprocal, 1.0f / x, -(s * s)) \
    ROW(Exp, expf(x), s) \
    ROW(Log, logf(x), 1.0f / s) \
    ROW(Sigmoid, logistic(x), s * (1.0f - s)) \
    ROW(Tanh, tanhf(x), 1.0f - s * s) \
    ROW(Relu, at_least(0.0f, x), s > 0.0f ? 1.0f : 0.0f) \
    ROW(Step, x > 0.0f ? 1.0f : 0.0f, 0.0f) \
    ROW(Clamp, at_most(p.b, at_least(p.a, x)), between(s, p.a, p.b, 1.0f)) \
    ROW(LeakyRelu, x > 0.0f ? x : x * p.a, s > 0.0f ? 1.0f : p.a) \
    ROW(Elu, x > 0.0f ? x * p.a : expm1f(x * p.c) * p.b, s > 0.0f ? p.a : expf(s * p.c) * (p.b * p.c)) \
    ROW(Gelu, x * normal(x), fmaf(s * expf(-0.5f * s * s), 0.3989422804f, normal(s))) \
    ROW(GeluTanh, x * logistic(gelu_inner(x)), \
        s * gelu_inner_slope(s) * (logistic(gelu_inner(s)) * (1.0f - logistic(gelu_inner(s)))) + logistic(gelu_inner(s))) \
    ROW(Silu, x * logistic(x), logistic(s) * (s * (1.0f - logistic(s)) + 1.0f)) \
    ROW(Softplus, x * p.a > p.b ? x : softplus(x * p.a) * (1.0f / p.a), s * p.a > p.b ? 1.0f : logistic(s * p.a)) \
    ROW(HardSigmoid, hard_sigmoid(x), between(s, -3.0f, 3.0f, 1.0f / 6.0f)) \
    ROW(HardSwish, x * hard_sigmoid(x), s > -3.0f ? (3.0f > s ? s * (1.0f / 3.0f) + 0.5f : 1.0f) : 0.0f)
#define RARE(ROW) \
    ROW(Expm1, expm1f(x), s + 1.0f) \
    ROW(Log1p, log1pf(x), 1.0f / (s + 1.0f)) \
    ROW(Erf, erff(x), 1.128379167f * expf(-s * s)) \
    ROW(Gaussian, expf(-x * x), -2.0f * s * expf(-s * s)) \
    ROW(Mish, x * tanh_softplus(x), \
        s * logistic(s) * (1.0f - tanh_softplus(s) * tanh_softplus(s)) + tanh_softplus(s)) \
    ROW(sign, (x > 0.0f ? 1.0f : 0.0f) - (x < 0.0f ? 1.0f : 0.0f), 0.0f) \
    ROW(floor, floorf(x), 0.0f) \
    ROW(ceil, ceilf(x), 0.0f) \
    ROW(round, rintf(x), 0.0f) \
    ROW(trunc, truncf(x), 0.0f) \
    ROW(fract, x - truncf(x), 1.0f) \
    ROW(exp2, exp2f(x), 0.6931471806f * exp2f(s)) \
    ROW(log2, log2f(x), 1.442695041f / s) \
    ROW(log10, log10f(x), 0.4342944819f / s) \
    ROW(sin, sinf(x), cosf(s)) \
    ROW(cos, cosf(x), -sinf(s)) \
    ROW(tan, tanf(x), 1.0f + tanf(s) * tanf(s)) \
    ROW(asin, asinf(x), 1.0f / sqrtf(1.0f - s * s)) \
    ROW(acos, acosf(x), -1.0f / sqrtf(1.0f - s * s)) \
    ROW(atan, atanf(x), 1.0f / (1.0f + s * s)) \
    ROW(sinh, sinhf(x), coshf(s)) \
    ROW(cosh, coshf(x), sinhf(s)) \
    ROW(asinh, asinhf(x), 1.0f / sqrtf(1.0f + s * s)) \
    ROW(acosh, acoshf(x), 1.0f / sqrtf(s * s - 1.0f)) \
    ROW(atanh, atanhf(x), 1.0f / (1.0f - s * s)) \
    ROW(softsign, x / (1.0f + fabsf(x)), 1.0f / ((1.0f + fabsf(s)) * (1.0f + fabsf(s)))) \
    ROW(tanh_shrink, x - tanhf(x), tanhf(s) * tanhf(s)) \
    ROW(hard_shrink, fabsf(x) <= p.a ? 0.0f : x, fabsf(s) > p.a ? 1.0f : 0.0f) \
    ROW(soft_shrink, fabsf(x) <= p.a ? 0.0f : x - copysignf(p.a, x), fabsf(s) > p.a ? 1.0f : 0.0f) \
    ROW(threshold, x <= p.a ? p.b : x, s > p.a ? 1.0f : 0.0f) \
    ROW(pow, powf(x, p.a), p.a == 0.0f ? 0.0f : p.a * powf(s, p.a - 1.0f))

// ROW(name, value of a and b).
#define BINARY(ROW) \
    ROW(Add, a + b) \
    ROW(Sub, a - b) \
    ROW(Mul, a * b) \
    ROW(Div, a / b) \
    ROW(Maximum, a != a ? a : b != b || b > a ? b : a) \
    ROW(Minimum, a != a ? a : b != b || b < a ? b : a) \
    ROW(Prelu, a > 0.0f ? a : a * b)
#define RARE_PAIR(ROW) \
    ROW(pow, powf(a, b)) \
    ROW(remainder, remainder_of(a, b)) \
    ROW(atan2, atan2f(a, b)) \
    ROW(logaddexp, a == b ? a + 0.6931471806f : fmaxf(a, b) + log1pf(expf(-fabsf(a - b))))

DEV float remainder_of(float a, float b) {
    float r = fmodf(a, b);
    return r != 0.0f && (r < 0.0f) != (b < 0.0f) ? r + b : r;
}

#define NUMBER(NAME, ...) NUMBER_##NAME,
enum Unary { UNARY(NUMBER) };
#undef NUMBER
#define NUMBER(NAME, ...) RARE_##NAME,
enum Rare { RARE(NUMBER) };
#undef NUMBER
#define NUMBER(NAME, ...) PAIR_##NAME,
enum Binary { BINARY(NUMBER) };
#undef NUMBER
#define NUMBER(NAME, ...) RARE_PAIR_##NAME,
enum RarePair { RARE_PAIR(NUMBER) };

template <int N> struct Numbers { float v[N]; };

template <int N> DEV Numbers<N> value(int f, Constants p, Numbers<N> in) {
    switch (f) {
#define CASE(NAME, VALUE, SLOPE) \
    case NUMBER_##NAME: \
        _Pragma("unroll") for (int k = 0; k < N; k++) { float x = in.v[k]; in.v[k] = VALUE; } break;
        UNARY(CASE)
#undef CASE
    }
    return in;
}
template <int N> DEV Numbers<N> slope(int f, Constants p, Numbers<N> in) {
    switch (f) {
#define CASE(NAME, VALUE, SLOPE) \
    case NUMBER_##NAME: \
        _Pragma("unroll") for (int k = 0; k < N; k++) { float s = in.v[k]; (void)s; in.v[k] = SLOPE; } break;
        UNARY(CASE)
#undef CASE
    }
    return in;
}
template <int N> DEV Numbers<N> pair(int f, Numbers<N> one, Numbers<N> two) {
    switch (f) {
#define CASE(NAME, VALUE) \
    case PAIR_##NAME: \
        _Pragma("unroll") for (int k = 0; k < N; k++) { float a = one.v[k], b = two.v[k]; one.v[k] = VALUE; } break;
        BINARY(CASE)
#undef CASE
    }
    return one;
}
DEV float rare_value(int f, Constants p, float x) {
    switch (f) {
#define CASE(NAME, VALUE, SLOPE) case RARE_##NAME: return VALUE;
        RARE(CASE)
#undef CASE
    }
    return x;
}
DEV float rare_slope(int f, Constants p, float s) {
    switch (f) {
#define CASE(NAME, VALUE, SLOPE) case RARE_##NAME: return SLOPE;
        RARE(CASE)
#undef CASE
    }
    return s;
}
DEV float rare_pair(int f, float a, float b) {
    switch (f) {
#define CASE(NAME, VALUE) case RARE_PAIR_##NAME: return VALUE;
        RARE_PAIR(CASE)
#undef CASE
    }
    return a;
}

// Dense operands are read by packs: `packs` of them, none where an address does not allow it, and the rest one by one.

// y = f(x), dense.
template <class T> DEV void map(int f, Constants p, const T* x, T* y, i64 n, i64 packs) {
    constexpr int N = WIDE<T>;
    for (EACH(i, packs)) {
        auto in = load_pack<N>(x + i * N);
        Numbers<N> v;
        for (int k = 0; k < N; k++) v.v[k] = in.at(k);
        v = value(f, p, v);
        for (int k = 0; k < N; k++) in.set(k, v.v[k]);
        store_pack(y + i * N, in);
    }
    for (EACH(i, n - packs * N)) store(y, n - 1 - i, value(f, p, Numbers<1>{{load(x, n - 1 - i)}}).v[0]);
}
// dx (+)= g f'(saved), dense.
template <class T>
DEV void map_gradient(int f, Constants p, const T* saved, const T* g, T* dx, i64 n, i64 packs, int add) {
    constexpr int N = WIDE<T>;
    for (EACH(i, packs)) {
        auto in = load_pack<N>(saved + i * N), up = load_pack<N>(g + i * N);
        Pack<T, N> old = {};
        if (add) old = load_pack<N>(dx + i * N);
        Numbers<N> v;
        for (int k = 0; k < N; k++) v.v[k] = in.at(k);
        v = slope(f, p, v);
        for (int k = 0; k < N; k++) old.set(k, up.at(k) * v.v[k] + (add ? old.at(k) : 0.0f));
        store_pack(dx + i * N, old);
    }
    for (EACH(i, n - packs * N)) {
        i64 at = n - 1 - i;
        float d = load(g, at) * slope(f, p, Numbers<1>{{load(saved, at)}}).v[0];
        store(dx, at, d + (add ? load(dx, at) : 0.0f));
    }
}
// out = f(a, b), all dense and of one type; `step` is 0 for an operand of a single element.
template <class T> DEV void zip(int f, const T* a, int a_step, const T* b, int b_step, T* out, i64 n, i64 packs) {
    constexpr int N = WIDE<T>;
    for (EACH(i, packs)) {
        Numbers<N> x, y;
        if (a_step) {
            auto in = load_pack<N>(a + i * N);
#pragma unroll
            for (int k = 0; k < N; k++) x.v[k] = in.at(k);
        } else {
            float one = load(a, 0);
#pragma unroll
            for (int k = 0; k < N; k++) x.v[k] = one;
        }
        if (b_step) {
            auto in = load_pack<N>(b + i * N);
#pragma unroll
            for (int k = 0; k < N; k++) y.v[k] = in.at(k);
        } else {
            float one = load(b, 0);
#pragma unroll
            for (int k = 0; k < N; k++) y.v[k] = one;
        }
        x = pair(f, x, y);
        Pack<T, N> z;
#pragma unroll
        for (int k = 0; k < N; k++) z.set(k, x.v[k]);
        store_pack(out + i * N, z);
    }
    for (EACH(i, n - packs * N)) {
        i64 at = n - 1 - i;
        store(out, at, pair(f, Numbers<1>{{load(a, a_step * at)}}, Numbers<1>{{load(b, b_step * at)}}).v[0]);
    }
}
#define MAPS(NAME, T) \
    KERNEL map_##NAME(int f, Constants p, const T* x, T* y, i64 n, i64 packs) { map(f, p, x, y, n, packs); } \
    KERNEL map_gradient_##NAME(int f, Constants p, const T* saved, const T* g, T* dx, i64 n, i64 packs, int add) { \
        map_gradient(f, p, saved, g, dx, n, packs, add); \
    } \
    KERNEL zip_##NAME(int f, const T* a, int a_step, const T* b, int b_step, T* out, i64 n, i64 packs) { \
        zip(f, a, a_step, b, b_step, out, n, packs); \
    }
FOR_FLOATS(MAPS)

// The rare functions, dense, of any float type.
KERNEL map_rare(int f, Constants p, const void* x, void* y, int type, i64 n) {
    for (EACH(i, n)) store_any(y, type, i, rare_value(f, p, load_any(x, type, i)));
}
KERNEL map_gradient_rare(int f, Constants p, const void* saved, const void* g, void* dx, int type, i64 n, int add) {
    for (EACH(i, n)) {
        float d = load_any(g, type, i) * rare_slope(f, p, load_any(saved, type, i));
        store_any(dx, type, i, add ? d + load_any(dx, type, i) : d);
    }
}

// out = f(a, b) of any float types, read through any layout; `out` is dense.
KERNEL zip_any(int f, int rare, const void* a, int a_type, const void* b, int b_type, void* out, int type, Walk walk) {
    for (EACH(i, walk.total())) {
        i64 at[2];
        walk.places(i, at);
        float x = load_any(a, a_type, at[0]), y = load_any(b, b_type, at[1]);
        store_any(out, type, i, rare ? rare_pair(f, x, y) : pair(f, Numbers<1>{{x}}, Numbers<1>{{y}}).v[0]);
    }
}

// The four operations of arithmetic in doubles, which places in larger tensors are reckoned with.
KERNEL zip_f64(int f, const double* a, const double* b, double* out, Walk walk) {
    for (EACH(i, walk.total())) {
        i64 at[2];
        walk.places(i, at);
        double x = a[at[0]], y = b[at[1]];
        out[i] = f == PAIR_Add ? x + y : f == PAIR_Sub ? x - y : f == PAIR_Mul ? x * y : x / y;
    }
}

// out = mask ? a : b, read through any layout.
KERNEL choose(const u8* mask, const void* a, int a_type, const void* b, int b_type, void* out, int type, Walk walk) {
    for (EACH(i, walk.total())) {
        i64 at[3];
        walk.places(i, at);
        store_any(out, type, i, mask[at[0]] ? load_any(a, a_type, at[1]) : load_any(b, b_type, at[2]));
    }
}

// 1 where what two elements give is among the bits `wanted`: less, equal, greater, unordered; with masks (`logic`) none,
// the second, the first, both.
template <class T> DEV u32 compared(T a, T b) { return a < b ? 1 : a == b ? 2 : a > b ? 4 : 8; }
KERNEL test(const void* a, int type, const void* b, int b_type, int logic, u32 wanted, u8* out, Walk walk) {
    for (EACH(i, walk.total())) {
        i64 at[2];
        walk.places(i, at);
        u32 found;
        if (logic) {
            found = 1u << (2 * (((const u8*)a)[at[0]] != 0) + (((const u8*)b)[at[1]] != 0));
        } else if (type == I64) {
            found = compared(((const i64*)a)[at[0]], ((const i64*)b)[at[1]]);
        } else if (type == U8) {
            found = compared(((const u8*)a)[at[0]], ((const u8*)b)[at[1]]);
        } else if (type == F64) {
            found = compared(((const double*)a)[at[0]], ((const double*)b)[at[1]]);
        } else {
            found = compared(load_any(a, type, at[0]), load_any(b, b_type, at[1]));
        }
        out[i] = (found & wanted) != 0;
    }
}
