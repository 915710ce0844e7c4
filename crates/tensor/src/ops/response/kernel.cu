// Local response normalisation: a block takes `group` neighbouring pixels at once and keeps their squares, and what each channel
// gives to the gradients of its window, in shared memory, with zeros where a window reaches over the channels. Bytes that must
// be moved at least (n elements of s bytes): forward 2 n s (x, y), backward 3 n s (g, x, dx).

struct Window { int channels, size, group; float k, share, power, twice; };

DEV float window(const float* x, int size) {
    float sum = x[0];
    for (int t = 1; t < size; t++) sum += x[t];
    return sum;
}
DEV float raised(float x, float power) { return expf(logf(x) * power); }

// The output, or with g the gradient dx (+)=.
template <class T> DEV void respond(const T* x, const T* g, T* out, i64 pixels, int add, const Window& w) {
    extern __shared__ float shared[];
    const int row = w.channels + w.size - 1, before = w.size / 2, after = (w.size - 1) / 2;
    float *squares = shared, *parts = squares + w.group * row, *scaled = parts + w.group * row;
    for (int i = threadIdx.x; i < (g ? 2 : 1) * w.group * row; i += blockDim.x) shared[i] = 0.0f;
    __syncthreads();
    for (i64 first = (i64)blockIdx.x * w.group; first < pixels; first += (i64)gridDim.x * w.group) {
        const i64 start = first * w.channels;
        const int count = (int)min((i64)w.group, pixels - first) * w.channels;
        for (int e = threadIdx.x; e < count; e += blockDim.x) {
            const int p = e / w.channels;
            const float v = load(x, start + e);
            squares[p * row + before + e - p * w.channels] = v * v;
        }
        __syncthreads();
        for (int e = threadIdx.x; e < count; e += blockDim.x) {
            const int p = e / w.channels, at = p * row + e - p * w.channels;
            const float v = load(x, start + e), sum = fmaf(window(squares + at, w.size), w.share, w.k);
            const float part = (g ? load(g, start + e) : v) * raised(sum, w.power);
            if (g) {
                scaled[e] = part;
                parts[at + after] = part * v / sum;
            } else {
                store(out, start + e, part);
            }
        }
        __syncthreads();
        for (int e = threadIdx.x; g && e < count; e += blockDim.x) {
            const int p = e / w.channels, at = p * row + e - p * w.channels;
            const float d = fmaf(load(x, start + e), window(parts + at, w.size) * w.twice, scaled[e]);
            store(out, start + e, add ? load(out, start + e) + d : d);
        }
        __syncthreads();
    }
}

// The same for so many channels that a pixel does not fit into shared memory: every thread computes its windows anew.
template <class T> DEV float sum_around(const T* x, int c, const Window& w) {
    float sum = 0.0f;
    for (int i = max(c - w.size / 2, 0); i <= min(c + (w.size - 1) / 2, w.channels - 1); i++) {
        const float v = load(x, i);
        sum = fmaf(v, v, sum);
    }
    return fmaf(sum, w.share, w.k);
}
template <class T> DEV void respond_far(const T* x, const T* g, T* out, i64 pixels, int add, const Window& w) {
    for (EACH(i, pixels * w.channels)) {
        const i64 start = (i64)i / w.channels * w.channels;
        const int c = (int)((i64)i - start);
        const T* px = x + start;
        const float sum = sum_around(px, c, w), v = load(px, c);
        float d = (g ? load(g, i) : v) * raised(sum, w.power);
        if (g) {
            float others = 0.0f;
            for (int j = max(c - (w.size - 1) / 2, 0); j <= min(c + w.size / 2, w.channels - 1); j++) {
                const float theirs = sum_around(px, j, w);
                others += load(g, start + j) * raised(theirs, w.power) * load(px, j) / theirs;
            }
            d = fmaf(v, others * w.twice, d);
        }
        store(out, i, add ? load(out, i) + d : d);
    }
}

#define RESPOND(NAME, T) \
    KERNEL respond_##NAME(const T* x, const T* g, T* out, i64 pixels, int add, Window w) { \
        respond(x, g, out, pixels, add, w); \
    } \
    KERNEL respond_far_##NAME(const T* x, const T* g, T* out, i64 pixels, int add, Window w) { \
        respond_far(x, g, out, pixels, add, w); \
    }
FOR_FLOATS(RESPOND)
