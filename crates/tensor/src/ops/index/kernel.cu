// Picking elements by index, and adding to indexed places in a fixed order without atomics: the indices are sorted together
// with their positions, and each run of equal ones is added up in the order of the positions.

// Where words of a type lie: [outer, size, inner] picked from, [outer, count, inner] picked.
struct Slices {
    i64 size, count, inner;
    // The parts (outer, index, inner) of a place in what is picked.
    DEV void split(u64 i, i64& o, i64& j, i64& c) const {
        if (i <= 0xffffffffull && count <= 0xffffffffll && inner <= 0xffffffffll) {
            u32 unit = (u32)i / (u32)inner;
            c = (u32)i - unit * (u32)inner;
            o = unit / (u32)count;
            j = unit - (u32)o * (u32)count;
        } else {
            u64 unit = i / inner;
            c = i - unit * inner;
            o = unit / count;
            j = unit - o * count;
        }
    }
};

// What is picked by an index outside its axis: no number, for every float type.
template <class T> DEV T none() {
    T x;
    memset(&x, 0xff, sizeof(T));
    return x;
}

template <class T>
DEV void pick(const T* x, const i64* list, T* out, i64 total, Slices of, Fault* faults, int op) {
    for (EACH(i, total)) {
        i64 o, j, c;
        of.split(i, o, j, c);
        i64 index = list[j];
        bool known = (u64)index < (u64)of.size;
        if (!known && o == 0 && c == 0) report(faults, op, j, index, of.size);
        out[i] = known ? x[(o * of.size + index) * of.inner + c] : none<T>();
    }
}
// The walk has each index's place in the source, save for what the index adds: `along` times itself.
template <class T>
DEV void gather(const T* x, const i64* list, T* out, i64 along, i64 limit, const Walk& walk, Fault* faults, int op) {
    for (EACH(i, walk.total())) {
        i64 at[1], index = list[i];
        walk.places(i, at);
        bool known = (u64)index < (u64)limit;
        if (!known) report(faults, op, i, index, limit);
        out[i] = known ? x[at[0] + index * along] : none<T>();
    }
}
typedef Pack<u32, 4> Wide;
#define PICK(BYTES, T) \
    KERNEL pick_##BYTES( \
        const T* x, const i64* list, T* out, i64 total, i64 size, i64 count, i64 inner, Fault* faults, int op) { \
        pick(x, list, out, total, Slices{size, count, inner}, faults, op); \
    }
#define GATHER(BYTES, T) \
    KERNEL gather_##BYTES( \
        const T* x, const i64* list, T* out, i64 along, i64 limit, Walk walk, Fault* faults, int op) { \
        gather(x, list, out, along, limit, walk, faults, op); \
    }
PICK(1, u8) PICK(2, u16) PICK(4, u32) PICK(8, u64) PICK(16, Wide)
GATHER(1, u8) GATHER(2, u16) GATHER(4, u32) GATHER(8, u64)

KERNEL one_hot(const i64* list, i64 rows, i64 classes, void* out, int type, Fault* faults, int op) {
    for (EACH(i, rows * classes)) {
        i64 row = i / classes, c = i - row * classes, index = list[row];
        bool known = (u64)index < (u64)classes;
        if (!known && c == 0) report(faults, op, row, index, classes);
        store_any(out, type, i, !known ? NAN : c == index ? 1.0f : 0.0f);
    }
}

// Keys to sort: the place above, the position in the lowest `bits` bits. What is not added anywhere comes last.
constexpr u64 LAST = ~0ull;

KERNEL slice_keys(const i64* list, i64 n, i64 limit, i64 skip, int skips, int bits, i64 padded, u64* keys, Fault* faults, int op) {
    for (EACH(i, padded)) {
        u64 key = LAST;
        if ((i64)i < n) {
            i64 index = list[i];
            bool known = (u64)index < (u64)limit;
            if (!known) report(faults, op, i, index, limit);
            if (known && !(skips && index == skip)) key = (u64)index << bits | i;
        }
        keys[i] = key;
    }
}
KERNEL element_keys(const i64* list, i64 along, i64 limit, int bits, i64 padded, u64* keys, Walk walk, Fault* faults, int op) {
    for (EACH(i, padded)) {
        u64 key = LAST;
        if (i < walk.total()) {
            i64 at[1], index = list[i];
            walk.places(i, at);
            bool known = (u64)index < (u64)limit;
            if (!known) report(faults, op, i, index, limit);
            if (known) key = (u64)(at[0] + index * along) << bits | i;
        }
        keys[i] = key;
    }
}

// Batcher's bitonic sort: all keys differ, so there is one order. Pair p of distance j.
DEV u32 first_of(u32 p, u32 j) { return (p & ~(j - 1)) << 1 | (p & (j - 1)); }

// Stages `from` to `to` as far as they stay within `chunk` keys, at most 4096 of them.
KERNEL sort_chunks(u64* keys, i64 from, i64 to, int chunk) {
    __shared__ u64 mine[4096];
    u64* all = keys + (i64)blockIdx.x * chunk;
    i64 base = (i64)blockIdx.x * chunk;
    for (int i = threadIdx.x; i < chunk; i += blockDim.x) mine[i] = all[i];
    __syncthreads();
    for (i64 k = from; k <= to; k *= 2) {
        for (u32 j = (u32)(k < chunk ? k : chunk) / 2; j > 0; j /= 2) {
            for (u32 p = threadIdx.x; p < (u32)chunk / 2; p += blockDim.x) {
                u32 i = first_of(p, j);
                u64 a = mine[i], b = mine[i + j];
                if ((a > b) == (((base + i) & k) == 0)) {
                    mine[i] = b;
                    mine[i + j] = a;
                }
            }
            __syncthreads();
        }
    }
    for (int i = threadIdx.x; i < chunk; i += blockDim.x) all[i] = mine[i];
}
// One step of stage k whose pairs lie further apart.
KERNEL sort_step(u64* keys, i64 k, i64 j, i64 pairs) {
    for (EACH(p, pairs)) {
        u64 i = (p & ~(u64)(j - 1)) << 1 | (p & (u64)(j - 1));
        u64 a = keys[i], b = keys[i + j];
        if ((a > b) == ((i & (u64)k) == 0)) {
            keys[i] = b;
            keys[i + j] = a;
        }
    }
}

// Keys that one thread looks at.
constexpr int STRETCH = 32;

// Sorted keys, and how their places and positions name units of `inner` numbers: columns go over outer and inner.
struct Runs {
    const u64* keys;
    i64 n, size, count, inner, columns;
    int bits;
    DEV u64 place(i64 i) const { return keys[i] == LAST ? LAST : keys[i] >> bits; }
    DEV i64 from(i64 i, i64 column) const {
        i64 o = column / inner, position = keys[i] & ((1ull << bits) - 1);
        return (o * count + position) * inner + column - o * inner;
    }
    DEV i64 to(u64 place, i64 column) const {
        i64 o = column / inner;
        return (o * size + (i64)place) * inner + column - o * inner;
    }
};

// out += g, each run that lies within a stretch; of others the parts: [stretches, 2, columns], of a run that began before,
// and of one that goes on.
KERNEL add_runs(
    const u64* keys, i64 n, int bits, i64 size, i64 count, i64 inner, i64 columns, const void* g, int g_type, void* out,
    int type, float* parts) {
    Runs runs = {keys, n, size, count, inner, columns, bits};
    i64 stretches = (n + STRETCH - 1) / STRETCH;
    for (EACH(item, stretches * columns)) {
        i64 stretch = item / columns, column = item - stretch * columns;
        i64 begin = stretch * STRETCH, end = begin + STRETCH < n ? begin + STRETCH : n;
        bool opens = begin == 0 || runs.place(begin - 1) != runs.place(begin);
        float sum = 0.0f;
        for (i64 i = begin; i < end; i++) {
            u64 place = runs.place(i);
            if (place == LAST) break;
            sum += load_any(g, g_type, runs.from(i, column));
            bool closes = i + 1 == n || runs.place(i + 1) != place;
            if (!closes && i + 1 < end) continue;
            if (opens && closes) {
                i64 at = runs.to(place, column);
                store_any(out, type, at, load_any(out, type, at) + sum);
            } else {
                parts[(stretch * 2 + (opens ? 1 : 0)) * columns + column] = sum;
            }
            sum = 0.0f;
            opens = true;
        }
    }
}
// out += the runs that go over several stretches, by the stretch in which they begin.
KERNEL add_parts(
    const u64* keys, i64 n, int bits, i64 size, i64 count, i64 inner, i64 columns, void* out, int type, const float* parts) {
    Runs runs = {keys, n, size, count, inner, columns, bits};
    i64 stretches = (n + STRETCH - 1) / STRETCH;
    for (EACH(item, (stretches - 1) * columns)) {
        i64 stretch = item / columns, column = item - stretch * columns, end = (stretch + 1) * STRETCH;
        u64 place = runs.place(end - 1);
        bool goes_on = place != LAST && runs.place(end) == place;
        bool began = stretch > 0 && runs.place(end - STRETCH - 1) == place && runs.place(end - STRETCH) == place;
        if (!goes_on || began) continue;
        float sum = parts[(stretch * 2 + 1) * columns + column];
        for (i64 next = stretch + 1; next < stretches && runs.place(next * STRETCH) == place; next++)
            sum += parts[next * 2 * columns + column];
        i64 at = runs.to(place, column);
        store_any(out, type, at, load_any(out, type, at) + sum);
    }
}
