// Softmax and its logarithm, cross-entropy, ranks of labels: a team of threads a row, which is read once.

// e^x.
DEV float power_of_e(float x) { return exp2f(x * 1.442695041f); }

// y = e^x / the sum of e^x over each row, or its logarithm.
template <int N, class T> DEV void softmax(const T* x, T* y, i64 rows, int k, int size, int log) {
    __shared__ float shared[32];
    Team team(size);
    bool live = team.row < rows;
    i64 start = live ? team.row * k : 0;
    Held<T, N> row(x + start, live ? k : 0, team, -INFINITY);
    float top = -INFINITY, sum = 0.0f;
    row.each([&](int, const Pack<T, N>& v) {
        for (int e = 0; e < N; e++) top = fmaxf(top, v.at(e));
    });
    top = team.fold(top, -INFINITY, Most(), shared);
    row.each([&](int, const Pack<T, N>& v) {
        for (int e = 0; e < N; e++) sum += power_of_e(v.at(e) - top);
    });
    sum = team.fold(sum, 0.0f, Sum(), shared);
    float share = 1.0f / sum, less = logf(sum);
    row.each([&](int unit, Pack<T, N> v) {
        for (int e = 0; e < N; e++) {
            float d = v.at(e) - top;
            v.set(e, log ? d - less : power_of_e(d) * share);
        }
        write_unit(y + start, k, unit, v);
    });
}

// The same units of two rows.
template <class T, int N, class F> DEV void both(const Held<T, N>& a, const Held<T, N>& b, F f) {
#pragma unroll
    for (int j = 0; j < HELD; j++)
        if (a.first + j * a.step < a.units()) f(a.first + j * a.step, a.v[j], b.v[j]);
#pragma unroll 1
    for (int u = a.first + HELD * a.step; u < a.units(); u += a.step)
        f(u, read_unit<N>(a.row, a.k, u, 0.0f), read_unit<N>(b.row, b.k, u, 0.0f));
}

// dx (+)= the gradient of `softmax` from its output.
template <int N, class T>
DEV void softmax_gradient(const T* y, const T* g, T* dx, i64 rows, int k, int size, int log, int add) {
    __shared__ float shared[32];
    Team team(size);
    bool live = team.row < rows;
    i64 start = live ? team.row * k : 0;
    int have = live ? k : 0;
    Held<T, N> out(y + start, have, team, 0.0f), up(g + start, have, team, 0.0f);
    float sum = 0.0f;
    both(out, up, [&](int, const Pack<T, N>& y, const Pack<T, N>& g) {
        for (int e = 0; e < N; e++) sum += log ? g.at(e) : g.at(e) * y.at(e);
    });
    sum = team.fold(sum, 0.0f, Sum(), shared);
    both(out, up, [&](int unit, const Pack<T, N>& y, const Pack<T, N>& g) {
        Pack<T, N> d = {};
        if (add) d = read_unit<N>(dx + start, k, unit, 0.0f);
        for (int e = 0; e < N; e++) {
            float slope = log ? g.at(e) - power_of_e(y.at(e)) * sum : y.at(e) * (g.at(e) - sum);
            d.set(e, add ? slope + d.at(e) : slope);
        }
        write_unit(dx + start, k, unit, d);
    });
}

// What each class of each row of logits counts: class c of row r `own` times at the label, `spread` times everywhere, both
// times the class's weight; of given probabilities `own` times its share. As `Goal` of the CPU.
struct Goal {
    const i64* labels;
    const void *shares, *weights, *classes;
    int shares_type, weights_type, classes_type, k;
    i64 each, ignore;
    int ignores;
    float own, spread;

    DEV float class_weight(int c) const { return classes ? load_any(classes, classes_type, c) : 1.0f; }
    DEV float weight(i64 row) const { return weights ? load_any(weights, weights_type, row / each) : 1.0f; }
    // The label; -1 without one, -2 for a row that is ignored, -3 for a label that is no class.
    DEV int label(i64 row) const {
        if (!labels) return -1;
        i64 l = labels[row];
        return ignores && l == ignore ? -2 : l < 0 || l >= k ? -3 : (int)l;
    }
    DEV bool dense() const { return shares || spread > 0.0f; }
    // What class c counts besides the label.
    DEV float count(i64 row, int c) const {
        float w = class_weight(c);
        return shares ? fmaf(load_any(shares, shares_type, row * k + c), own * w, spread * w) : spread * w;
    }
};
#define GOAL \
    const i64 *labels, const void *shares, int shares_type, const void *weights, int weights_type, const void *classes, \
        int classes_type, i64 each, i64 ignore, int ignores, float own, float spread, i64 rows, int k, int size
#define THE_GOAL \
    Goal { labels, shares, weights, classes, shares_type, weights_type, classes_type, k, each, ignore, ignores, own, spread }

// Each row's loss, and what its gradient is made of: the largest logit, 1 / the sum of the exponentials, the counts besides
// the label's.
template <int N, class T>
DEV void entropy(const T* x, const Goal& goal, float* losses, float* kept, Fault* faults, int op, i64 rows, int size) {
    __shared__ float shared[32];
    Team team(size);
    int k = goal.k;
    bool live = team.row < rows;
    i64 r = live ? team.row : 0;
    Held<T, N> row(x + r * k, live ? k : 0, team, -INFINITY);
    float top = -INFINITY, sum = 0.0f, counts = 0.0f, dot = 0.0f;
    row.each([&](int, const Pack<T, N>& v) {
        for (int e = 0; e < N; e++) top = fmaxf(top, v.at(e));
    });
    top = team.fold(top, -INFINITY, Most(), shared);
    row.each([&](int, const Pack<T, N>& v) {
        for (int e = 0; e < N; e++) sum += power_of_e(v.at(e) - top);
    });
    sum = team.fold(sum, 0.0f, Sum(), shared);
    if (goal.dense()) {
        // What is read again is near.
#pragma unroll 1
        for (int c = team.thread; live && c < k; c += team.size) {
            float q = goal.count(r, c);
            counts += q;
            dot = fmaf(q, load(x, r * k + c) - top, dot);
        }
        counts = team.fold(counts, 0.0f, Sum(), shared);
        dot = team.fold(dot, 0.0f, Sum(), shared);
    }
    if (!live || team.thread != 0) return;
    int label = goal.label(r);
    float less = logf(sum), loss = 0.0f;
    if (label >= 0) loss = goal.own * goal.class_weight(label) * (less - (load(x, r * k + label) - top));
    // Both terms are at least 0: nothing cancels.
    if (goal.dense()) loss += counts * less - dot;
    loss *= goal.weight(r);
    if (label == -3) report(faults, op, r, goal.labels[r], k);
    losses[r] = label == -2 ? 0.0f : label == -3 ? NAN : loss;
    kept[r * 3] = top;
    kept[r * 3 + 1] = 1.0f / sum;
    kept[r * 3 + 2] = counts;
}

// dx (+)= g * weight * (all counts * p - counts).
template <int N, class T>
DEV void entropy_gradient(const T* x, const Goal& goal, const float* kept, const float* g, T* dx, i64 rows, int size, int add) {
    Team team(size);
    int k = goal.k;
    i64 r = team.row;
    if (r >= rows) return;
    int label = goal.label(r), units = (k + N - 1) / N;
    bool dense = goal.dense();
    float top = kept[r * 3], share = kept[r * 3 + 1], rest = kept[r * 3 + 2];
    float own = label >= 0 ? goal.own * goal.class_weight(label) : 0.0f;
    float scale = label == -3 ? NAN : g[0] * goal.weight(r), total = (own + rest) * scale;
    if (label == -2 && add) return;
#pragma unroll 1
    for (int u = team.thread; u < units; u += team.size) {
        Pack<T, N> v = read_unit<N>(x + r * k, k, u, 0.0f), old = {};
        if (add) old = read_unit<N>(dx + r * k, k, u, 0.0f);
        for (int e = 0; e < N; e++) {
            int c = u * N + e;
            if (c >= k) continue;
            float p = power_of_e(v.at(e) - top) * share;
            float q = dense ? goal.count(r, c) : 0.0f;
            // The label's own place apart: (p - 1) * own keeps its digits where p is near 1.
            float d = c == label ? ((p - 1.0f) * own + (rest * p - q)) * scale : fmaf(p, total, -q * scale);
            if (label == -2) d = 0.0f;
            old.set(e, add ? d + old.at(e) : d);
        }
        write_unit(dx + r * k, k, u, old);
    }
}

#define ROWS_OF(NAME, T, WIDTH, N) \
    KERNEL softmax_##NAME##_##WIDTH(const T* x, T* y, i64 rows, int k, int size, int log) { \
        softmax<N>(x, y, rows, k, size, log); \
    } \
    KERNEL softmax_gradient_##NAME##_##WIDTH( \
        const T* y, const T* g, T* dx, i64 rows, int k, int size, int log, int add) { \
        softmax_gradient<N>(y, g, dx, rows, k, size, log, add); \
    } \
    KERNEL entropy_##NAME##_##WIDTH(const T* x, GOAL, float* losses, float* kept, Fault* faults, int op) { \
        entropy<N>(x, THE_GOAL, losses, kept, faults, op, rows, size); \
    } \
    KERNEL entropy_gradient_##NAME##_##WIDTH(const T* x, GOAL, const float* kept, const float* g, T* dx, int add) { \
        entropy_gradient<N>(x, THE_GOAL, kept, g, dx, rows, size, add); \
    }
#define ROWS(NAME, T) ROWS_OF(NAME, T, one, 1) ROWS_OF(NAME, T, wide, WIDE<T>)
FOR_FLOATS(ROWS)

// The sums of neighbouring stretches of `each` numbers, one a block; the host goes on until one is left.
KERNEL sum_stretches(const float* values, i64 n, int each, float* sums) {
    __shared__ float shared[32];
    i64 start = (i64)blockIdx.x * each, end = start + each < n ? start + each : n;
    float sum = 0.0f;
    for (i64 i = start + threadIdx.x; i < end; i += blockDim.x) sum += values[i];
    sum = block_fold(sum, 0.0f, Sum(), shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// How many logits of each row are not smaller than the label's, which is not counted; a number that is none is not smaller.
// k where the label's is none, 0 for the label `ignore`, -1 for a label that is no class. A warp a row.
KERNEL ranks(const void* x, int type, const i64* labels, i64 ignore, int ignores, i64 rows, int k, i64* out) {
    Team team(32);
    bool live = team.row < rows;
    i64 r = live ? team.row : 0, label = live ? labels[r] : -1;
    bool known = label >= 0 && label < k;
    float own = known ? load_any(x, type, r * k + label) : 0.0f;
    u32 smaller = 0;
    for (int c = team.thread; live && c < k; c += 32) smaller += load_any(x, type, r * k + c) < own;
    smaller = warp_fold(smaller, Sum());
    if (!live || team.thread != 0) return;
    out[r] = ignores && label == ignore ? 0 : !known ? -1 : own != own ? k : k - 1 - (i64)smaller;
}

// What losses that pick a row's number by its label need: where it is (0 for ignored rows), whether the row counts, and how much.
KERNEL label_rows(
    const i64* labels, i64 ignore, int ignores, i64 n, int k, const void* weights, int weights_type, i64 each,
    const void* classes, int classes_type, i64* places, u8* counted, float* factors, Fault* faults, int op) {
    for (EACH(r, n)) {
        i64 label = labels[r];
        bool ignored = ignores && label == ignore, bad = !ignored && (label < 0 || label >= k);
        if (bad) report(faults, op, r, label, k);
        float factor = weights ? load_any(weights, weights_type, r / each) : 1.0f;
        if (classes && !ignored && !bad) factor *= load_any(classes, classes_type, label);
        places[r] = ignored || bad ? 0 : label;
        counted[r] = !ignored;
        factors[r] = ignored ? 0.0f : bad ? NAN : factor;
    }
}

// 1 everywhere but at each row's place.
KERNEL all_but(const i64* places, i64 rows, int k, u8* out) {
    for (EACH(i, rows * k)) out[i] = (i64)(i % k) != places[i / k];
}
