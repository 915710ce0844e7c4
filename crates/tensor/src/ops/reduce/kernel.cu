// Folds over axes. Every kept place has a state into which its elements are folded. A place's elements are cut into parts by
// the shape alone; `finish` merges the parts' states in order. A rule says what a state is:
//   begin(i)           the state of kept place i before any element
//   step(s, x, place)  folds in an element, the place-th of those that are reduced
//   merge(a, b)        two states as one
//   end(s, i)          writes the result of kept place i

// What a total adds up of an element x, and what becomes of it: the host's numbers (`cuda.rs`).
enum { PLAIN, SIZE, SQUARE, DEVIATION, EXPONENTIAL, POWER, NOT_ZERO, ZERO };
enum { TIMES, ROOT, LOG, TO_POWER, SOME, NONE };

struct Total {
    typedef float State;
    int term, end_as;
    float power, scale;
    const float* shifts;
    void* out;
    int type, add;
    float shift;
    DEV State begin(i64 i) {
        shift = shifts ? shifts[i] : 0.0f;
        return 0.0f;
    }
    // Without powers, which would make dense kernels large.
    DEV float of(float x) const {
        switch (term) {
        case SIZE: return fabsf(x);
        case SQUARE: return x * x;
        case DEVIATION: return (x - shift) * (x - shift);
        case EXPONENTIAL: return expf(x - shift);
        case NOT_ZERO: return x != 0.0f ? 1.0f : 0.0f;
        case ZERO: return x == 0.0f ? 1.0f : 0.0f;
        default: return x;
        }
    }
    DEV void step(State& s, float x, i64) const { s += term == POWER ? powf(fabsf(x), power) : of(x); }
    DEV State merge(State a, State b) const { return a + b; }
    DEV void end(State s, i64 i) {
        if (type == U8) {
            ((u8*)out)[i] = end_as == SOME ? s != 0.0f : s == 0.0f;
            return;
        }
        float y = s * scale;
        if (end_as == ROOT) y = sqrtf(y);
        if (end_as == LOG) y = logf(s) + shifts[i];
        if (end_as == TO_POWER) y = powf(s, scale);
        store_any(out, type, i, add ? y + load_any(out, type, i) : y);
    }
};
#define TOTAL_PARAMETERS \
    int term, int end_as, float power, float scale, const float *shifts, void *out, int type, int add
#define TOTAL Total{term, end_as, power, scale, shifts, out, type, add, 0.0f}

DEV float infinity() { return __uint_as_float(0x7f800000u); }

// The largest or the smallest of x or |x|; not a number wins. With `finite` an infinite one gives 0.
struct Bound {
    typedef float State;
    int largest, size, finite;
    void* out;
    int type;
    DEV State begin(i64) const { return largest ? -infinity() : infinity(); }
    DEV void see(State& s, float x) const {
        if ((largest ? x > s : x < s) || x != x) s = x;
    }
    DEV void step(State& s, float x, i64) const { see(s, size ? fabsf(x) : x); }
    DEV State merge(State a, State b) const {
        see(a, b);
        return a;
    }
    DEV void end(State s, i64 i) const { store_any(out, type, i, finite && fabsf(s) == infinity() ? 0.0f : s); }
};
#define BOUND_PARAMETERS int largest, int size, int finite, void *out, int type
#define BOUND Bound{largest, size, finite, out, type}

// The largest or smallest element and its place. Not a number is better than all; of equals the first counts.
struct Best {
    struct State {
        float x;
        i64 place;
    };
    int largest;
    void* out;
    int type;
    i64* places;
    DEV State begin(i64) const { return {0.0f, -1}; }
    DEV bool better(float x, float best) const {
        return (largest ? x > best : x < best) || (x != x && best == best);
    }
    DEV void step(State& s, float x, i64 place) const {
        if (s.place < 0 || better(x, s.x)) s = {x, place};
    }
    // The places of states need not be in order.
    DEV State merge(State a, State b) const {
        if (b.place < 0 || a.place < 0) return b.place < 0 ? a : b;
        if (better(a.x, b.x)) return a;
        if (better(b.x, a.x)) return b;
        return a.place < b.place ? a : b;
    }
    DEV void end(State s, i64 i) const {
        store_any(out, type, i, s.x);
        places[i] = s.place;
    }
};
#define BEST_PARAMETERS int largest, void *out, int type, i64 *places
#define BEST Best{largest, out, type, places}

// In doubles, so that the products on the way leave no range.
struct Product {
    typedef double State;
    void* out;
    int type;
    DEV State begin(i64) const { return 1.0; }
    DEV void step(State& s, float x, i64) const { s *= x; }
    DEV State merge(State a, State b) const { return a * b; }
    DEV void end(State s, i64 i) const { store_any(out, type, i, (float)s); }
};
#define PRODUCT_PARAMETERS void *out, int type
#define PRODUCT Product{out, type}

// How the elements of a place are shared out: to the parts, `per` elements each, and of a part to the threads of a group. The
// state of part p of place i is number p * count + i.
struct Cut {
    i64 length, count, per;
    int parts, group;
};
#define CUT_PARAMETERS i64 length, i64 count, i64 per, int parts, int group, void *states
#define CUT Cut{length, count, per, parts, group}

// The states of a group's threads as one, at its first thread. All threads of the block come here.
template <class R> DEV typename R::State together(const R& rule, typename R::State mine, int lane, int group) {
    __shared__ typename R::State shared[256];
    if (group == 1) return mine;
    shared[threadIdx.x] = mine;
    for (int step = group / 2; step > 0; step /= 2) {
        __syncthreads();
        if (lane < step) shared[threadIdx.x] = rule.merge(shared[threadIdx.x], shared[threadIdx.x + step]);
    }
    return shared[threadIdx.x];
}

// Kept and reduced places anywhere. Groups of 1, 32 or 256 threads, blocks of 256. One kernel a rule reads all types.
template <class R>
DEV void fold(R rule, const Cut& cut, void* states, const void* x, int x_type, const Walk& kept, const Walk& reduced) {
    typedef typename R::State State;
    i64 unit = (i64)blockIdx.x * (blockDim.x / cut.group) + threadIdx.x / cut.group;
    int lane = threadIdx.x % cut.group;
    i64 part = unit / cut.count, place = unit - part * cut.count;
    bool mine = part < cut.parts;
    State s = rule.begin(mine ? place : 0);
    if (mine) {
        i64 base[1], at[1];
        kept.places(place, base);
        i64 from = part * cut.per, to = from + cut.per < cut.length ? from + cut.per : cut.length;
#pragma unroll 1
        for (i64 i = from + lane; i < to; i += cut.group) {
            reduced.places(i, at);
            i64 there = base[0] + at[0];
            rule.step(s, x_type == U8 ? to_f32(((const u8*)x)[there]) : load_any(x, x_type, there), i);
        }
    }
    s = together(rule, s, lane, cut.group);
    if (!mine || lane > 0) return;
    if (cut.parts == 1) rule.end(s, place);
    else ((State*)states)[unit] = s;
}

// Rows of a dense matrix. With N > 1 rows begin at whole packs.
template <int N, bool SIMPLE, class T> DEV void rows(Total rule, const Cut& cut, float* states, const T* x) {
    i64 unit = (i64)blockIdx.x * (blockDim.x / cut.group) + threadIdx.x / cut.group;
    int lane = threadIdx.x % cut.group;
    i64 part = unit / cut.count, place = unit - part * cut.count;
    bool mine = part < cut.parts;
    float s = rule.begin(mine ? place : 0), sums[N] = {};
    if (mine) {
        i64 from = part * cut.per, to = from + cut.per < cut.length ? from + cut.per : cut.length;
        const T* row = x + place * cut.length;
#pragma unroll(SIMPLE ? 4 : 1)
        for (i64 i = from + lane * N; i < to; i += cut.group * N) {
            auto v = load_pack<N>(row + i);
            for (int k = 0; k < N; k++) sums[k] += SIMPLE ? v.at(k) : rule.of(v.at(k));
        }
        for (int k = 0; k < N; k++) s += sums[k];
    }
    s = together(rule, s, lane, cut.group);
    if (!mine || lane > 0) return;
    if (cut.parts == 1) rule.end(s, place);
    else states[unit] = s;
}

// Columns of dense matrices [outer, length, inner]: a block has `side` threads side by side, each with a pack of columns, and
// the others below them. Blocks along x are the matrices' blocks of columns, along y the parts.
template <int N, bool SIMPLE, class T>
DEV void columns(Total rule, const Cut& cut, float* states, const T* x, i64 inner, int side) {
    __shared__ float shared[256 * N];
    int lane = threadIdx.x % side, line = threadIdx.x / side, lines = blockDim.x / side;
    u32 packs = (u32)(inner / N), across = (packs + side - 1) / side;
    u32 outer = blockIdx.x / across, pack = (blockIdx.x - outer * across) * side + lane;
    i64 place = outer * inner + (i64)pack * N;
    i64 from = blockIdx.y * cut.per, to = from + cut.per < cut.length ? from + cut.per : cut.length;
    bool mine = pack < packs;
    float sums[N] = {};
    if (mine) {
        const T* at = x + outer * cut.length * inner + (i64)pack * N;
        float shifts[N] = {};
        if (!SIMPLE && rule.shifts)
            for (int k = 0; k < N; k++) shifts[k] = rule.shifts[place + k];
#pragma unroll(SIMPLE ? 4 : 1)
        for (i64 r = from + line; r < to; r += lines) {
            auto v = load_pack<N>(at + r * inner);
            for (int k = 0; k < N; k++) {
                if (!SIMPLE) rule.shift = shifts[k];
                sums[k] += SIMPLE ? v.at(k) : rule.of(v.at(k));
            }
        }
    }
    for (int k = 0; k < N; k++) shared[k * 256 + threadIdx.x] = sums[k];
    for (int step = lines / 2; step > 0; step /= 2) {
        __syncthreads();
        if (line < step)
            for (int k = 0; k < N; k++) shared[k * 256 + threadIdx.x] += shared[k * 256 + threadIdx.x + step * side];
    }
    if (!mine || line > 0) return;
    for (int k = 0; k < N; k++) {
        float s = shared[k * 256 + threadIdx.x];
        if (cut.parts == 1) rule.end(s, place + k);
        else states[blockIdx.y * cut.count + place + k] = s;
    }
}

// The parts' states as one: 32 places a block side by side, 32 threads each.
template <class R> DEV void finish(R rule, i64 count, int parts, const void* states) {
    typedef typename R::State State;
    __shared__ State shared[1024];
    int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    i64 place = (i64)blockIdx.x * 32 + lane;
    bool mine = place < count;
    State s = rule.begin(mine ? place : 0);
    if (mine)
        for (int p = line; p < parts; p += 32) s = rule.merge(s, ((const State*)states)[p * count + place]);
    shared[threadIdx.x] = s;
    for (int step = 16; step > 0; step /= 2) {
        __syncthreads();
        if (line < step) shared[threadIdx.x] = rule.merge(shared[threadIdx.x], shared[threadIdx.x + step * 32]);
    }
    if (mine && line == 0) rule.end(shared[lane], place);
}

#define FOLD(RULE, MAKE) \
    KERNEL RULE(CUT_PARAMETERS, const void* x, int x_type, Walk kept, Walk reduced, MAKE##_PARAMETERS) { \
        fold(MAKE, CUT, states, x, x_type, kept, reduced); \
    } \
    KERNEL finish_##RULE(i64 count, int parts, const void* states, MAKE##_PARAMETERS) { \
        finish(MAKE, count, parts, states); \
    }
#define DENSE(NAME, TYPE) \
    KERNEL rows_##NAME(CUT_PARAMETERS, const TYPE* x, int wide, TOTAL_PARAMETERS) { \
        if (wide && term == PLAIN) rows<WIDE<TYPE>, true>(TOTAL, CUT, (float*)states, x); \
        else if (wide) rows<WIDE<TYPE>, false>(TOTAL, CUT, (float*)states, x); \
        else rows<1, false>(TOTAL, CUT, (float*)states, x); \
    } \
    KERNEL columns_##NAME(CUT_PARAMETERS, const TYPE* x, i64 inner, int side, int wide, TOTAL_PARAMETERS) { \
        if (wide && term == PLAIN) columns<WIDE<TYPE>, true>(TOTAL, CUT, (float*)states, x, inner, side); \
        else if (wide) columns<WIDE<TYPE>, false>(TOTAL, CUT, (float*)states, x, inner, side); \
        else columns<1, false>(TOTAL, CUT, (float*)states, x, inner, side); \
    }
FOR_FLOATS(DENSE)
FOLD(total, TOTAL)
FOLD(bound, BOUND)
FOLD(best, BEST)
FOLD(product, PRODUCT)

// dx (+)= g * scale, where g lacks the axis of `length`: [outer, length, inner] from [outer, inner]. N elements at once, which
// never span two rows; `total` of these packs. `same`: g is of the type of dx.
template <int N, class T>
DEV void spread(const void* g, int g_type, int same, float scale, T* dx, Divisor packs, Divisor length, u32 total, int add) {
    for (EACH(i, total)) {
        u32 row = packs.under((u32)i), pack = (u32)i - row * packs.d, outer = length.under(row);
        i64 from = ((i64)outer * packs.d + pack) * N;
        Pack<T, N> y = {}, up = {};
        if (add) y = load_pack<N>(dx + i * N);
        if (same) up = load_pack<N>((const T*)g + from);
        for (int k = 0; k < N; k++) {
            float slope = same ? up.at(k) : load_any(g, g_type, from + k);
            y.set(k, slope * scale + (add ? y.at(k) : 0.0f));
        }
        store_pack(dx + i * N, y);
    }
}
#define SPREAD(NAME, TYPE) \
    KERNEL spread_##NAME(const void* g, int g_type, int same, int wide, float scale, TYPE* dx, Divisor packs, Divisor length, \
                         u32 total, int add) { \
        if (wide) spread<WIDE<TYPE>>(g, g_type, same, scale, dx, packs, length, total, add); \
        else spread<1>(g, g_type, same, scale, dx, packs, length, total, add); \
    }
FOR_FLOATS(SPREAD)

// For each element of a row the product of the others, exact where some are 0: products from both sides in doubles.
template <class T> DEV void others(const T* x, double* before, float* out, i64 count, i64 length) {
    for (EACH(row, count)) {
        i64 first = row * length;
        double product = 1.0;
        for (i64 i = first; i < first + length; i++) {
            before[i] = product;
            product *= load(x, i);
        }
        product = 1.0;
        for (i64 i = first + length - 1; i >= first; i--) {
            out[i] = (float)(before[i] * product);
            product *= load(x, i);
        }
    }
}
// The same for a few long rows: each by a block of 256 threads with 8 neighbouring elements at a time.
template <class T> DEV void others_long(const T* x, double* before, float* out, i64 length) {
    __shared__ double shared[2][256];
    x += blockIdx.x * length, before += blockIdx.x * length, out += blockIdx.x * length;
    for (int back = 0; back < 2; back++) {
        double product = 1.0;
        for (i64 start = 0; start < length; start += 2048) {
            double mine[8], total = 1.0, all;
            for (int k = 0; k < 8; k++) {
                i64 i = start + threadIdx.x * 8 + k;
                mine[k] = total;
                if (i < length) total *= load(x, back ? length - 1 - i : i);
            }
            double first = product * block_before(total, 1.0, Times{}, shared, all);
            product *= all;
            for (int k = 0; k < 8; k++) {
                i64 i = start + threadIdx.x * 8 + k;
                if (i >= length) break;
                if (back) out[length - 1 - i] = (float)(before[length - 1 - i] * (first * mine[k]));
                else before[i] = first * mine[k];
            }
        }
        __syncthreads();
    }
}
#define OTHERS(NAME, TYPE) \
    KERNEL others_##NAME(const TYPE* x, double* before, float* out, i64 count, i64 length) { \
        others(x, before, out, count, length); \
    } \
    KERNEL others_long_##NAME(const TYPE* x, double* before, float* out, i64, i64 length) { \
        others_long(x, before, out, length); \
    }
FOR_FLOATS(OTHERS)
