// Fractional max pooling, whose windows begin at other places in every plane (a sample's channel), and unpooling.

struct Cut {
    i64 size[3], out[3], kernel[3];
    i64 channels, rank;
};

// Where window o begins along an axis, for a number in 0..1: `starts` of `fractional.rs`, in doubles as there.
DEV i64 begin(const Cut& w, int axis, i64 o, double number) {
    i64 room = w.size[axis] - w.kernel[axis], gaps = w.out[axis] > 2 ? w.out[axis] - 1 : 1;
    if (o + 1 == w.out[axis]) return room;
    double step = (double)room / (double)gaps;
    return (i64)((o + number) * step) - (i64)(number * step);
}
// The number for an axis: an image's first one is that of its width, a volume's that of its depth. A recorded step cannot look
// at the samples first, so one outside 0..1 is taken as the nearest inside.
DEV double number(const Cut& w, int axis, const void* samples, int type, i64 plane) {
    i64 i = axis + w.rank - 3;
    if (i < 0) return 0.0;
    float sample = load_any(samples, type, plane * w.rank + (w.rank == 2 ? 1 - i : i));
    return sample >= 0.0f ? fminf(sample, 0.99999994f) : 0.0f;
}
DEV void places_of(i64 i, const i64 (&sizes)[3], i64 channels, i64& sample, i64 (&at)[3], i64& channel) {
    i64 rest = i / channels;
    channel = i - rest * channels;
    for (int axis = 2; axis >= 0; axis--) {
        i64 next = rest / sizes[axis];
        at[axis] = rest - next * sizes[axis];
        rest = next;
    }
    sample = rest;
}

template <class T>
DEV void fractional(const Cut& w, const T* x, const void* samples, int type, T* y, i64* places, i64 total) {
    for (EACH(i, total)) {
        i64 sample, at[3], channel, from[3];
        places_of(i, w.out, w.channels, sample, at, channel);
        for (int axis = 0; axis < 3; axis++)
            from[axis] = begin(w, axis, at[axis], number(w, axis, samples, type, sample * w.channels + channel));
        const T* image = x + sample * w.size[0] * w.size[1] * w.size[2] * w.channels + channel;
        float best = 0.0f;
        i64 place = -1;
        for (i64 p = from[0]; p < from[0] + w.kernel[0]; p++)
            for (i64 q = from[1]; q < from[1] + w.kernel[1]; q++)
                for (i64 r = from[2]; r < from[2] + w.kernel[2]; r++) {
                    i64 here = (p * w.size[1] + q) * w.size[2] + r;
                    float v = load(image, here * w.channels);
                    if (place < 0 || (!(v <= best) && best == best)) {
                        best = v;
                        place = here;
                    }
                }
        store(y, i, best);
        places[i] = place;
    }
}

// The windows that may hold a place: a window begins less than one place away from o times the step.
DEV void holders(const Cut& w, int axis, i64 p, i64& from, i64& to) {
    i64 room = w.size[axis] - w.kernel[axis], gaps = w.out[axis] > 2 ? w.out[axis] - 1 : 1;
    from = 0;
    to = w.out[axis];
    if (room <= 0 || to <= 2) return;
    i64 low = (p - w.kernel[axis]) * gaps / room - 1, high = (p + 1) * gaps / room + 2;
    if (low > from) from = low;
    if (high < to) to = high;
}
template <class T> DEV void gather(const Cut& w, const T* g, const i64* places, T* dx, i64 total, int add) {
    for (EACH(i, total)) {
        i64 sample, at[3], channel, from[3], to[3];
        places_of(i, w.size, w.channels, sample, at, channel);
        for (int axis = 0; axis < 3; axis++) holders(w, axis, at[axis], from[axis], to[axis]);
        i64 here = (at[0] * w.size[1] + at[1]) * w.size[2] + at[2];
        float sum = add ? load(dx, i) : 0.0f;
        for (i64 p = from[0]; p < to[0]; p++)
            for (i64 q = from[1]; q < to[1]; q++)
                for (i64 r = from[2]; r < to[2]; r++) {
                    i64 window = (((sample * w.out[0] + p) * w.out[1] + q) * w.out[2] + r) * w.channels + channel;
                    if (places[window] == here) sum += load(g, window);
                }
        store(dx, i, sum);
    }
}

// Unpooling. Of several numbers for one place the last one stays: for each place the largest number of its cells, plus 1, in
// `last`. What lies outside is reported and left out.
KERNEL claim(const i64* places, u32* last, i64 cells, i64 limit, i64 channels, i64 total, Fault* faults, int op) {
    for (EACH(i, total)) {
        i64 sample = i / (cells * channels), cell = i / channels - sample * cells, place = places[i];
        if (place < 0 || place >= limit) report(faults, op, i, place, limit);
        else atomicMax(last + (sample * limit + place) * channels + i % channels, (u32)(cell + 1));
    }
}
template <class T>
DEV void put(const T* x, const i64* places, const u32* last, T* y, i64 cells, i64 limit, i64 channels, i64 total) {
    for (EACH(i, total)) {
        i64 sample = i / (cells * channels), cell = i / channels - sample * cells, place = places[i];
        if (place < 0 || place >= limit) continue;
        i64 at = (sample * limit + place) * channels + i % channels;
        if (last[at] == (u32)(cell + 1)) y[at] = x[i];
    }
}

#define FRACTIONAL(NAME, T) \
    KERNEL fractional_##NAME(Cut w, const T* x, const void* samples, int type, T* y, i64* places, i64 total) { \
        fractional(w, x, samples, type, y, places, total); \
    } \
    KERNEL gather_##NAME(Cut w, const T* g, const i64* places, T* dx, i64 total, int add) { \
        gather(w, g, places, dx, total, add); \
    } \
    KERNEL put_##NAME(const T* x, const i64* places, const u32* last, T* y, i64 cells, i64 limit, i64 channels, i64 total) { \
        put(x, places, last, y, cells, limit, channels, total); \
    }
FOR_FLOATS(FRACTIONAL)
