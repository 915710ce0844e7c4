// Optimizers over a flat arena: a block takes one piece of a parameter, so every element is read and written once, and
// what is summed of a piece is summed in an order that its length alone decides. The arithmetic is the CPU's, operation by
// operation (`rules.rs`): products and sums are fused where they are there, and nowhere else.

#ifdef PHALANX_EMULATION
DEV float mul(float a, float b) { return a * b; }
DEV float plus(float a, float b) { return a + b; }
DEV double mul(double a, double b) { return a * b; }
DEV double plus(double a, double b) { return a + b; }
#else
DEV float mul(float a, float b) { return __fmul_rn(a, b); }
DEV float plus(float a, float b) { return __fadd_rn(a, b); }
DEV double mul(double a, double b) { return __dmul_rn(a, b); }
DEV double plus(double a, double b) { return __dadd_rn(a, b); }
#endif
// The larger; `b` where either is not a number.
DEV float larger(float a, float b) { return a > b ? a : b; }

// Neighbouring elements of one parameter.
struct Piece {
    i64 start; // in the arena
    u32 len;
    u32 of; // twice the parameter's number, and 1 when weight decay and trust ratios apply to it
};

// What an update is made with: `Constants::words` on the host. Kernels find it at `at` where that is not null, and do nothing
// when `skip` is set there.
struct Constants {
    float scale, bound, decay, lr;
    float momentum, beta1, beta2, rest1, rest2, root, eps, unbias;
    u32 flags, skip;
    double base, trust, lambda, exact;
};
#define THE_CONSTANTS \
    if (at) c = *at; \
    if (c.skip) return;
enum { NESTEROV = 1, AMSGRAD = 2, CENTERED = 4, WITH_MOMENTUM = 8 };

// What is the same for all elements of a piece.
struct Own { float decay, rate; };

DEV float scaled(const Constants& c, float gradient) {
    gradient = mul(gradient, c.scale);
    gradient = gradient > c.bound ? c.bound : gradient;
    return -c.bound > gradient ? -c.bound : gradient;
}

struct Plain {
    static constexpr bool COUPLED = true, WEIGHTS = true;
    static constexpr int STATES = 0;
    DEV static float step(const Constants& c, Own, float w, float g, float*) { return fmaf(g, -c.lr, w); }
};
struct Momentum {
    static constexpr bool COUPLED = true, WEIGHTS = true;
    static constexpr int STATES = 1;
    DEV static float step(const Constants& c, Own, float w, float g, float* s) {
        s[0] = fmaf(s[0], c.momentum, g);
        float change = c.flags & NESTEROV ? fmaf(s[0], c.momentum, g) : s[0];
        return fmaf(change, -c.lr, w);
    }
};
// The running means of gradients and of their squares.
DEV void observe(const Constants& c, float g, float* s) {
    s[0] = fmaf(s[0], c.beta1, mul(g, c.rest1));
    s[1] = fmaf(s[1], c.beta2, mul(mul(g, g), c.rest2));
}
DEV float ratio(const Constants& c, float mean, float square) { return mean / fmaf(sqrtf(square), c.root, c.eps); }
template <bool DECOUPLED> struct Adam {
    static constexpr bool COUPLED = !DECOUPLED, WEIGHTS = true;
    static constexpr int STATES = 3;
    DEV static float step(const Constants& c, Own own, float w, float g, float* s) {
        observe(c, g, s);
        float by = s[1];
        if (c.flags & AMSGRAD) by = s[2] = larger(s[2], by);
        float change = ratio(c, s[0], by);
        if (DECOUPLED) w = plus(w, -mul(w, own.decay));
        return fmaf(change, -c.lr, w);
    }
};
struct RmsProp {
    static constexpr bool COUPLED = true, WEIGHTS = true;
    static constexpr int STATES = 3;
    DEV static float step(const Constants& c, Own, float w, float g, float* s) {
        s[0] = fmaf(s[0], c.beta2, mul(mul(g, g), c.rest2));
        float by = s[0];
        if (c.flags & CENTERED) {
            s[1] = fmaf(s[1], c.beta2, mul(g, c.rest2));
            by = larger(plus(by, -mul(s[1], s[1])), 0.0f);
        }
        float change = g / plus(sqrtf(by), c.eps);
        if (c.flags & WITH_MOMENTUM) change = s[2] = fmaf(s[2], c.momentum, change);
        return fmaf(change, -c.lr, w);
    }
};
struct Adagrad {
    static constexpr bool COUPLED = true, WEIGHTS = true;
    static constexpr int STATES = 1;
    DEV static float step(const Constants& c, Own, float w, float g, float* s) {
        s[0] = fmaf(g, g, s[0]);
        return fmaf(g / plus(sqrtf(s[0]), c.eps), -c.lr, w);
    }
};
struct Lars {
    static constexpr bool COUPLED = true, WEIGHTS = true;
    static constexpr int STATES = 1;
    DEV static float step(const Constants& c, Own own, float w, float g, float* s) {
        s[0] = fmaf(s[0], c.momentum, mul(g, own.rate));
        return plus(w, -s[0]);
    }
};
// LAMB's first half: the running means; the weights stay.
struct LambMoments {
    static constexpr bool COUPLED = false, WEIGHTS = false;
    static constexpr int STATES = 2;
    DEV static float step(const Constants& c, Own, float w, float g, float* s) {
        observe(c, g, s);
        return w;
    }
};
// Its second half: the step, whose size the norms have set.
struct Lamb {
    static constexpr bool COUPLED = false, WEIGHTS = true;
    static constexpr int STATES = 2;
    DEV static float step(const Constants& c, Own own, float w, float, float* s) {
        float step = mul(ratio(c, s[0], s[1]), c.unbias);
        return plus(w, -mul(fmaf(w, own.decay, step), own.rate));
    }
};

// `states` begin at the element `first` of the arena; those that a rule does not keep are null.
template <class R>
DEV void update(float* weights, const float* gradients, float* const (&states)[3], i64 first, const Piece* pieces,
                const float* rates, const Constants& c) {
    Piece p = pieces[blockIdx.x];
    bool decays = p.of & 1;
    Own own = {decays ? c.decay : 0.0f, rates ? rates[p.of >> 1] : 0.0f};
    float* w = weights + p.start;
    const float* g = gradients + p.start;
    float* state[3];
    for (int k = 0; k < 3; k++) state[k] = k < R::STATES && states[k] ? states[k] + (p.start - first) : nullptr;
    auto one = [&](float weight, float gradient, float* s) {
        gradient = scaled(c, gradient);
        if (R::COUPLED) gradient = fmaf(weight, own.decay, gradient);
        return R::step(c, own, weight, gradient, s);
    };
    u32 packs = p.len / 4;
    for (u32 i = threadIdx.x; i < packs; i += blockDim.x) {
        auto weight = load_pack<4>(w + i * 4), gradient = load_pack<4>(g + i * 4);
        Pack<float, 4> s[3] = {};
        for (int k = 0; k < R::STATES; k++)
            if (state[k]) s[k] = load_pack<4>(state[k] + i * 4);
        for (int j = 0; j < 4; j++) {
            float at[3] = {s[0].v[j], s[1].v[j], s[2].v[j]};
            weight.v[j] = one(weight.v[j], gradient.v[j], at);
            for (int k = 0; k < 3; k++) s[k].v[j] = at[k];
        }
        if (R::WEIGHTS) store_pack(w + i * 4, weight);
        for (int k = 0; k < R::STATES; k++)
            if (state[k]) store_pack(state[k] + i * 4, s[k]);
    }
    for (u32 i = packs * 4 + threadIdx.x; i < p.len; i += blockDim.x) {
        float at[3] = {0.0f, 0.0f, 0.0f};
        for (int k = 0; k < R::STATES; k++)
            if (state[k]) at[k] = state[k][i];
        float weight = one(w[i], g[i], at);
        if (R::WEIGHTS) w[i] = weight;
        for (int k = 0; k < R::STATES; k++)
            if (state[k]) state[k][i] = at[k];
    }
}
#define UPDATE(NAME, RULE) \
    KERNEL NAME(float* weights, const float* gradients, float* s0, float* s1, float* s2, i64 first, const Piece* pieces, \
                const float* rates, const Constants* at, Constants c) { \
        THE_CONSTANTS \
        float* const states[3] = {s0, s1, s2}; \
        update<RULE>(weights, gradients, states, first, pieces, rates, c); \
    }
UPDATE(plain, Plain)
UPDATE(momentum, Momentum)
UPDATE(adam, Adam<false>)
UPDATE(adamw, Adam<true>)
UPDATE(rmsprop, RmsProp)
UPDATE(adagrad, Adagrad)
UPDATE(lars, Lars)
UPDATE(lamb_moments, LambMoments)
UPDATE(lamb, Lamb)

// Σ f(i)² over the elements of a piece, in doubles, in which the square of a single-precision number is exact. All threads get it.
template <class F> DEV double squares(u32 len, F f, double* shared) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < len; i += blockDim.x) {
        double x = (double)f(i);
        sum += x * x;
    }
    return block_fold(sum, 0.0, Sum(), shared);
}

// For each piece Σ gradient².
KERNEL gradient_squares(const float* gradients, const Piece* pieces, double* sums) {
    __shared__ double shared[32];
    Piece p = pieces[blockIdx.x];
    const float* g = gradients + p.start;
    double sum = squares(p.len, [&](u32 i) { return g[i]; }, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
// Their sum, by one block.
KERNEL total(const double* sums, i64 n, double* out) {
    __shared__ double shared[32];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
    sum = block_fold(sum, 0.0, Sum(), shared);
    if (threadIdx.x == 0) out[0] = sum;
}

// For each piece Σ weight² and the sum of squares of what it is set against: `sums[2 piece]` and the one after it.
KERNEL measure_lars(const float* weights, const float* gradients, const Piece* pieces, double* sums, const Constants* at,
                    Constants c) {
    __shared__ double shared[32];
    THE_CONSTANTS
    Piece p = pieces[blockIdx.x];
    const float *w = weights + p.start, *g = gradients + p.start;
    double a = squares(p.len, [&](u32 i) { return w[i]; }, shared);
    double b = squares(p.len, [&](u32 i) { return scaled(c, g[i]); }, shared);
    if (threadIdx.x == 0) sums[2 * blockIdx.x] = a, sums[2 * blockIdx.x + 1] = b;
}
KERNEL measure_lamb(const float* weights, const float* means, const float* roots, i64 first, const Piece* pieces, double* sums,
                    const Constants* at, Constants c) {
    __shared__ double shared[32];
    THE_CONSTANTS
    Piece p = pieces[blockIdx.x];
    const float *w = weights + p.start, *m = means + (p.start - first), *v = roots + (p.start - first);
    float decay = p.of & 1 ? c.decay : 0.0f;
    double a = squares(p.len, [&](u32 i) { return w[i]; }, shared);
    double b = squares(p.len, [&](u32 i) {
        float step = mul(m[i] / plus(mul(sqrtf(v[i]), c.root), c.eps), c.unbias);
        return plus(step, mul(decay, w[i]));
    }, shared);
    if (threadIdx.x == 0) sums[2 * blockIdx.x] = a, sums[2 * blockIdx.x + 1] = b;
}

// The learning rate of each parameter, by a warp: `spans` has the first of its pieces, counted from the launch's first, and
// the one after its last. The ratio is the rule's.
template <class F> DEV void set_rates(const Piece* pieces, const u32* spans, u32 begin, u32 count, const double* sums, float* rates,
                                      const Constants& c, F trust) {
    u32 at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    bool mine = at < count;
    double a = 0.0, b = 0.0;
    u32 first = mine ? spans[2 * at] : 0, end = mine ? spans[2 * at + 1] : 0;
    for (u32 i = first + lane; i < end; i += 32) {
        a += sums[2 * (i - begin)];
        b += sums[2 * (i - begin) + 1];
    }
    a = sqrt(warp_fold(a, Sum()));
    b = sqrt(warp_fold(b, Sum()));
    if (!mine || lane > 0 || first == end) return;
    u32 of = pieces[first - begin].of;
    rates[of >> 1] = (float)(c.base * (of & 1 && a > 0.0 && b > 0.0 ? trust(a, b) : 1.0));
}
KERNEL rates_lars(const Piece* pieces, const u32* spans, u32 begin, u32 count, const double* sums, float* rates,
                  const Constants* at, Constants c) {
    THE_CONSTANTS
    set_rates(pieces, spans, begin, count, sums, rates, c, [&](double w, double g) { return c.trust * w / (g + c.lambda * w); });
}
KERNEL rates_lamb(const Piece* pieces, const u32* spans, u32 begin, u32 count, const double* sums, float* rates,
                  const Constants* at, Constants c) {
    THE_CONSTANTS
    set_rates(pieces, spans, begin, count, sums, rates, c, [](double w, double step) { return w / step; });
}

// In a graph: whether the update is made for which constants `c` are ready. Where a loss or the norm of the averaged gradients is
// not finite nothing is changed, at later launches neither while `halted` is set; but a norm that a loss scale has made too
// large (`scaled`) stops this update alone. Else gradients are scaled down to the norm `most`, if that is above 0: the host's
// arithmetic (`clip_factor`).
KERNEL judge(Constants* c, const float* losses, i64 n, const double* squares, double most, int scaled, u32* halted) {
    if (threadIdx.x > 0) return;
    bool skip = false, halt = *halted != 0;
    for (i64 i = 0; i < n; i++) halt = halt || !(fabsf(losses[i]) < INFINITY);
    if (squares) {
        double norm = mul(sqrt(*squares), c->exact);
        bool finite = fabs(norm) < (double)INFINITY;
        skip = !finite && scaled;
        halt = halt || (!finite && !scaled);
        if (finite && most > 0.0) {
            double factor = most / plus(norm, 1e-6);
            c->scale = (float)mul(c->exact, factor < 1.0 ? factor : 1.0);
        }
    }
    c->skip = skip || halt;
    if (halt) *halted = 1;
}

// `average += (weight - average) by`; in a graph `by` is at `by_at`, below 0 where nothing is to be done, and neither where
// `skip` is set.
KERNEL approach(float* average, const float* weights, const float* by_at, float by, const u32* skip, i64 n) {
    if (by_at) by = *by_at;
    if (by < 0.0f || (skip && *skip)) return;
    for (EACH(i, n)) average[i] = plus(average[i], mul(plus(weights[i], -average[i]), by));
}

// `to += from`, both at 16 bytes' alignment.
KERNEL add(float* to, const float* from, i64 n) {
    for (EACH(i, n / 4)) {
        auto x = load_pack<4>(to + i * 4), y = load_pack<4>(from + i * 4);
        for (int k = 0; k < 4; k++) x.v[k] = plus(x.v[k], y.v[k]);
        store_pack(to + i * 4, x);
    }
    for (EACH(i, n % 4)) to[n - 1 - i] = plus(to[n - 1 - i], from[n - 1 - i]);
}

// `to = a + b`, all at 16 bytes' alignment; `to` may be one of them.
KERNEL sum(float* to, const float* a, const float* b, i64 n) {
    for (EACH(i, n / 4)) {
        auto x = load_pack<4>(a + i * 4), y = load_pack<4>(b + i * 4);
        for (int k = 0; k < 4; k++) x.v[k] = plus(x.v[k], y.v[k]);
        store_pack(to + i * 4, x);
    }
    for (EACH(i, n % 4)) to[n - 1 - i] = plus(a[n - 1 - i], b[n - 1 - i]);
}

// To what a narrow wire can carry: the upper half of a number, or a half after a division by a power of two.
KERNEL round_bf16(float* x, i64 n) {
    for (EACH(i, n)) {
        u32 bits = __float_as_uint(x[i]);
        u32 upper = (bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : (bits + (0x7fffu + (bits >> 16 & 1u))) >> 16;
        x[i] = __uint_as_float(upper << 16);
    }
}
KERNEL round_f16(float* x, float down, float up, i64 n) {
    for (EACH(i, n)) x[i] = mul(to_f32(from_f32<f16>(mul(x[i], down))), up);
}
