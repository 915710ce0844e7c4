// One step of a recurrent cell, forward and back: one thread a hidden unit of a sample. A row of gates has a vector of `hidden`
// numbers for each gate, as `cpu.rs` says. States and gates are f32; what goes through matrix products has the type T.

enum { TANH = 0, RELU = 1, LSTM = 2, GRU = 3 };

struct Steps {
    i64 cell, reverse, steps, samples, hidden;
    // Vectors in a row of gates, and in a row of what is kept of them.
    i64 gates, kept;
    // The place in the sequence of this step.
    i64 t;
    DEV i64 length(const i64* lengths, i64 sample) const {
        i64 n = lengths ? lengths[sample] : steps;
        return n < 0 ? 0 : n > steps ? steps : n;
    }
    // The place of a sample's first step; outside of the sequence when it has none.
    DEV i64 first(const i64* lengths, i64 sample) const {
        i64 n = length(lengths, sample);
        return n == 0 ? -1 : reverse ? n - 1 : 0;
    }
};

DEV float logistic_slope(float y) { return y * (1.0f - y); }
DEV float tanh_slope(float y) { return 1.0f - y * y; }

// `x` are the input's gates of the step, `made` the state's, which what the way back reads takes the place of; without
// `had_state` the state was zero and `made` holds nothing. `narrow` is the state for the next step's product, unless null.
template <class T> DEV void step(const T* x, float* made, const void* bias, int bias_type, float* h, float* c, T* narrow, T* y, float* cells, const i64* lengths, int had_state, const Steps& s) {
    i64 n = s.hidden;
    for (EACH(i, s.samples * n)) {
        i64 sample = i / n, unit = i - sample * n;
        float* row = made + sample * s.kept * n + unit;
        if (s.t >= s.length(lengths, sample)) {
            for (i64 k = 0; k < s.kept; k++) row[k * n] = 0.0f;
            if (cells) cells[i] = 0.0f;
            store(y, i, 0.0f);
            if (narrow) store(narrow, i, h[i]);
            continue;
        }
        const T* input = x + sample * s.gates * n + unit;
        // The state's part of gate k, and with the input's part.
        auto state = [&](int k) {
            float sum = had_state ? row[k * n] : 0.0f;
            return bias ? sum + load_any(bias, bias_type, k * n + unit) : sum;
        };
        auto gate = [&](int k) { return state(k) + load(input, k * n); };
        float next;
        if (s.cell == LSTM) {
            float in = logistic(gate(0)), forget = logistic(gate(1)), fresh = tanhf(gate(2)), out = logistic(gate(3));
            float cell = fmaf(forget, c[i], in * fresh);
            row[0] = in;
            row[n] = forget;
            row[2 * n] = fresh;
            row[3 * n] = out;
            c[i] = cell;
            cells[i] = cell;
            next = out * tanhf(cell);
        } else if (s.cell == GRU) {
            float reset = logistic(gate(0)), update = logistic(gate(1)), inner = state(2);
            float fresh = tanhf(fmaf(reset, inner, load(input, 2 * n)));
            row[0] = reset;
            row[n] = update;
            row[2 * n] = fresh;
            row[3 * n] = inner;
            next = fmaf(update, h[i] - fresh, fresh);
        } else {
            float sum = gate(0);
            next = s.cell == TANH ? tanhf(sum) : sum > 0.0f ? sum : 0.0f;
        }
        h[i] = next;
        store(y, i, next);
        if (narrow) store(narrow, i, next);
    }
}

// `y`, `made` and `cells` are those of all steps, `dx` and `dr` (GRU) those of this one; `h0` and `c0` may be null (zero), and so may
// `g`, the gradient of all outputs. `dh` and `dc` come in as the state's gradient after the step and go out as the part of that before
// it that does not go through the recurrent weight.
template <class T> DEV void step_back(const T* y, const float* made, const float* cells, const T* h0, const float* c0, const T* g, float* dh, float* dc, T* dx, T* dr, const i64* lengths, const Steps& s) {
    i64 n = s.hidden, all = s.samples * n;
    for (EACH(i, all)) {
        i64 sample = i / n, unit = i - sample * n, at = s.t * all + i;
        T* to = dx + sample * s.gates * n + unit;
        T* through = dr ? dr + sample * s.gates * n + unit : nullptr;
        if (s.t >= s.length(lengths, sample)) {
            for (i64 k = 0; k < s.gates; k++) {
                store(to, k * n, 0.0f);
                if (through) store(through, k * n, 0.0f);
            }
            continue;
        }
        bool first = s.t == s.first(lengths, sample);
        i64 past = at + (s.reverse ? all : -all);
        const float* row = made + (s.t * s.samples + sample) * s.kept * n + unit;
        float grad = dh[i] + (g ? load(g, at) : 0.0f), rest = 0.0f;
        if (s.cell == LSTM) {
            float in = row[0], forget = row[n], fresh = row[2 * n], out = row[3 * n];
            float t = tanhf(cells[at]), before = !first ? cells[past] : c0 ? c0[i] : 0.0f;
            float cell = fmaf(grad * out, tanh_slope(t), dc[i]);
            store(to, 0, cell * fresh * logistic_slope(in));
            store(to, n, cell * before * logistic_slope(forget));
            store(to, 2 * n, cell * in * tanh_slope(fresh));
            store(to, 3 * n, grad * t * logistic_slope(out));
            dc[i] = cell * forget;
        } else if (s.cell == GRU) {
            float reset = row[0], update = row[n], fresh = row[2 * n], inner = row[3 * n];
            float before = !first ? load(y, past) : h0 ? load(h0, i) : 0.0f;
            float d_fresh = grad * (1.0f - update) * tanh_slope(fresh);
            float d_update = grad * (before - fresh) * logistic_slope(update);
            float d_reset = d_fresh * inner * logistic_slope(reset);
            store(to, 0, d_reset);
            store(to, n, d_update);
            store(to, 2 * n, d_fresh);
            store(through, 0, d_reset);
            store(through, n, d_update);
            store(through, 2 * n, d_fresh * reset);
            rest = grad * update;
        } else {
            float out = load(y, at);
            store(to, 0, s.cell == TANH ? grad * tanh_slope(out) : out > 0.0f ? grad : 0.0f);
        }
        dh[i] = rest;
    }
}

// Row `sample` of `to` is that of `from` [steps, samples, width] at the sample's first step, or zero.
template <class T> DEV void first_rows(const T* from, T* to, const i64* lengths, const Steps& s) {
    i64 width = s.gates * s.hidden;
    for (EACH(i, s.samples * width)) {
        i64 sample = i / width, t = s.first(lengths, sample);
        to[i] = t < 0 ? from_f32<T>(0.0f) : from[t * s.samples * width + i];
    }
}

#define CELL(NAME, TYPE) \
    KERNEL step_##NAME(const TYPE* x, float* made, const void* bias, int bias_type, float* h, float* c, TYPE* narrow, TYPE* y, float* cells, const i64* lengths, int had_state, Steps s) { \
        step(x, made, bias, bias_type, h, c, narrow, y, cells, lengths, had_state, s); \
    } \
    KERNEL step_back_##NAME(const TYPE* y, const float* made, const float* cells, const TYPE* h0, const float* c0, const TYPE* g, float* dh, float* dc, TYPE* dx, TYPE* dr, const i64* lengths, Steps s) { \
        step_back(y, made, cells, h0, c0, g, dh, dc, dx, dr, lengths, s); \
    } \
    KERNEL first_rows_##NAME(const TYPE* from, TYPE* to, const i64* lengths, Steps s) { first_rows(from, to, lengths, s); }
FOR_FLOATS(CELL)

// What is wrong with lengths.
KERNEL check_lengths(const i64* lengths, i64 count, i64 steps, Fault* fault, int op) {
    for (EACH(i, count))
        if (lengths[i] < 0 || lengths[i] > steps) report(fault, op, i, lengths[i], steps + 1);
}
