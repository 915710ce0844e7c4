// Convolutions from their definition, for those that the library has no algorithm for: one thread (or block) a result. Any
// padding, and fewer outputs than fit. Operands are of one type and dense, channels innermost; the result is of any float type.

struct Windows {
    // Samples, channels of the input, of the output, groups; then three numbers each, for depth, height and width.
    int n, c, k, groups, size[3], kernel[3], out[3], stride[3], before[3], dilation[3];
    DEV i64 pixels() const { return (i64)size[0] * size[1] * size[2]; }
    DEV i64 places() const { return (i64)out[0] * out[1] * out[2]; }
    DEV int taps() const { return kernel[0] * kernel[1] * kernel[2]; }
    // The pixel that a tap of the window at a place lies on; negative outside of the image.
    DEV i64 pixel(i64 place, int tap) const {
        i64 at[3] = {place / out[2] / out[1], place / out[2] % out[1], place % out[2]};
        int by[3] = {tap / kernel[2] / kernel[1], tap / kernel[2] % kernel[1], tap % kernel[2]};
        i64 found = 0;
        for (int a = 0; a < 3; a++) {
            i64 x = at[a] * stride[a] + (i64)by[a] * dilation[a] - before[a];
            if (x < 0 || x >= size[a]) return -1;
            found = found * size[a] + x;
        }
        return found;
    }
    // The place of the window whose tap lies on a pixel; negative when there is none.
    DEV i64 place(i64 pixel, int tap) const {
        i64 at[3] = {pixel / size[2] / size[1], pixel / size[2] % size[1], pixel % size[2]};
        int by[3] = {tap / kernel[2] / kernel[1], tap / kernel[2] % kernel[1], tap % kernel[2]};
        i64 found = 0;
        for (int a = 0; a < 3; a++) {
            i64 x = at[a] + before[a] - (i64)by[a] * dilation[a];
            if (x < 0 || x % stride[a] != 0 || x / stride[a] >= out[a]) return -1;
            found = found * out[a] + x / stride[a];
        }
        return found;
    }
};

DEV void put(void* to, int type, int add, i64 i, float sum) {
    store_any(to, type, i, add ? load_any(to, type, i) + sum : sum);
}

KERNEL direct_output(const void* x, const void* w, int dtype, void* to, int type, int add, Windows s) {
    int share = s.c / s.groups, rows = s.k / s.groups;
    for (EACH(i, (i64)s.n * s.places() * s.k)) {
        int k = (int)(i % s.k);
        i64 place = i / s.k % s.places(), sample = i / s.k / s.places();
        float sum = 0.0f;
        for (int tap = 0; tap < s.taps(); tap++) {
            i64 pixel = s.pixel(place, tap);
            if (pixel < 0) continue;
            i64 from = (sample * s.pixels() + pixel) * s.c + k / rows * share, by = ((i64)k * s.taps() + tap) * share;
            for (int c = 0; c < share; c++) sum += load_any(x, dtype, from + c) * load_any(w, dtype, by + c);
        }
        put(to, type, add, i, sum);
    }
}

KERNEL direct_input(const void* y, const void* w, int dtype, void* to, int type, int add, Windows s) {
    int share = s.c / s.groups, rows = s.k / s.groups;
    for (EACH(i, (i64)s.n * s.pixels() * s.c)) {
        int c = (int)(i % s.c), first = c / share * rows;
        i64 pixel = i / s.c % s.pixels(), sample = i / s.c / s.pixels();
        float sum = 0.0f;
        for (int tap = 0; tap < s.taps(); tap++) {
            i64 place = s.place(pixel, tap);
            if (place < 0) continue;
            i64 from = (sample * s.places() + place) * s.k;
            for (int k = first; k < first + rows; k++)
                sum += load_any(y, dtype, from + k) * load_any(w, dtype, ((i64)k * s.taps() + tap) * share + c % share);
        }
        put(to, type, add, i, sum);
    }
}

// A block a number of the weight: its threads take the places of all samples in turn.
KERNEL direct_weight(const void* x, const void* y, int dtype, void* to, int type, int add, Windows s) {
    __shared__ float shared[32];
    int share = s.c / s.groups, rows = s.k / s.groups;
    i64 count = (i64)s.k * s.taps() * share, all = s.n * s.places();
    for (i64 i = blockIdx.x; i < count; i += gridDim.x) {
        int k = (int)(i / share / s.taps()), tap = (int)(i / share % s.taps()), c = k / rows * share + (int)(i % share);
        float sum = 0.0f;
        for (i64 j = threadIdx.x; j < all; j += blockDim.x) {
            i64 sample = j / s.places(), pixel = s.pixel(j - sample * s.places(), tap);
            if (pixel < 0) continue;
            sum += load_any(x, dtype, (sample * s.pixels() + pixel) * s.c + c) * load_any(y, dtype, j * s.k + k);
        }
        sum = block_fold(sum, 0.0f, Sum(), shared);
        if (threadIdx.x == 0) put(to, type, add, i, sum);
    }
}
