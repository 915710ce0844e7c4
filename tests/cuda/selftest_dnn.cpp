// Tests of the stand-in for cuDNN: convolutions against plain loops over coordinates.
#include "selftest.h"

extern "C" {
int cudnnCreate(Handle*);
int cudnnSetStream(Handle, Handle);
int cudnnBackendCreateDescriptor(int, Handle*);
int cudnnBackendDestroyDescriptor(Handle);
int cudnnBackendSetAttribute(Handle, int, int, int64_t, const void*);
int cudnnBackendGetAttribute(Handle, int, int, int64_t, int64_t*, void*);
int cudnnBackendFinalize(Handle);
int cudnnBackendExecute(Handle, Handle, Handle);
}

namespace {

using List = std::vector<int64_t>;

enum : int {
    DATA_TYPE = 1,
    INT64 = 3,
    FLOAT = 4,
    POINTER = 6,
    MODE = 7,
    HEURISTICS_MODE = 8,
    NOTE = 11,
    DESCRIPTOR = 15
};

Handle descriptor(int kind) {
    Handle made = nullptr;
    REQUIRE(cudnnBackendCreateDescriptor(kind, &made) == 0);
    return made;
}
template <class T>
void set(Handle to, int attribute, int type, const std::vector<T>& values) {
    REQUIRE(cudnnBackendSetAttribute(to, attribute, type, (int64_t)values.size(), values.data()) == 0);
}

size_t product(const List& sizes) {
    size_t n = 1;
    for (int64_t s : sizes) n *= (size_t)s;
    return n;
}

/// Dense strides with the channels (second) last.
List channels_last(const List& sizes) {
    List strides(sizes.size(), 1);
    int64_t step = sizes[1];
    for (size_t a = sizes.size(); a-- > 2;) {
        strides[a] = step;
        step *= sizes[a];
    }
    strides[0] = step;
    return strides;
}

struct Problem {
    List x, w, y, stride, dilation, before, after;

    size_t index(const List& sizes, int64_t first, int64_t channel, const List& place) const {
        const List strides = channels_last(sizes);
        int64_t at = first * strides[0] + channel;
        for (size_t a = 0; a < place.size(); a++) at += place[a] * strides[a + 2];
        return (size_t)at;
    }
    /// Calls with indices into x, w and y of everything that is multiplied.
    void each_product(const std::function<void(size_t, size_t, size_t)>& with) const {
        const int64_t groups = x[1] / w[1], outer = w[0] / groups;
        const List out(y.begin() + 2, y.end()), kernel(w.begin() + 2, w.end());
        for (size_t o = 0; o < product(out); o++)
            for (size_t k = 0; k < product(kernel); k++) {
                List at_y(out.size()), at_w(out.size()), at_x(out.size());
                size_t rest_o = o, rest_k = k;
                bool inside = true;
                for (size_t a = 0; a < out.size(); a++) {
                    at_y[a] = (int64_t)(rest_o % (size_t)out[a]), rest_o /= (size_t)out[a];
                    at_w[a] = (int64_t)(rest_k % (size_t)kernel[a]), rest_k /= (size_t)kernel[a];
                    at_x[a] = at_y[a] * stride[a] + at_w[a] * dilation[a] - before[a];
                    inside = inside && at_x[a] >= 0 && at_x[a] < x[a + 2];
                }
                if (!inside) continue;
                for (int64_t n = 0; n < x[0]; n++)
                    for (int64_t f = 0; f < w[0]; f++)
                        for (int64_t c = 0; c < w[1]; c++)
                            with(index(x, n, f / outer * w[1] + c, at_x), index(w, f, c, at_w), index(y, n, f, at_y));
            }
    }
};

Handle tensor(int64_t uid, const List& sizes, Type type) {
    const Handle t = descriptor(17);
    set(t, 901, DATA_TYPE, std::vector<int>{type == Type::f32 ? 0 : type == Type::bf16 ? 9 : 2});
    set(t, 902, INT64, sizes);
    set(t, 903, INT64, channels_last(sizes));
    set(t, 906, INT64, List{uid});
    set(t, 900, INT64, List{16});
    REQUIRE(cudnnBackendFinalize(t) == 0);
    return t;
}

/// A graph of the convolution, or nothing when it is refused.
Handle graph_of(const Problem& p, int kind, Type type) {
    const Handle shape = descriptor(1);
    set(shape, 100, DATA_TYPE, std::vector<int>{0});
    set(shape, 101, MODE, std::vector<int>{1});
    set(shape, 106, INT64, List{(int64_t)p.stride.size()});
    set(shape, 102, INT64, p.dilation);
    set(shape, 103, INT64, p.stride);
    set(shape, 104, INT64, p.after);
    set(shape, 105, INT64, p.before);
    REQUIRE(cudnnBackendFinalize(shape) == 0);
    const Handle operation = descriptor(kind), x = tensor(1, p.x, type), w = tensor(2, p.w, type),
                 y = tensor(3, p.y, type);
    const int base = kind == 10 ? 700 : kind == 12 ? 706 : 712;
    set(operation, base, FLOAT, std::vector<float>{1.0f});
    set(operation, base + 1, FLOAT, std::vector<float>{0.0f});
    set(operation, base + 2, DESCRIPTOR, std::vector<Handle>{shape});
    set(operation, base + 3, DESCRIPTOR, std::vector<Handle>{w});
    set(operation, base + 4, DESCRIPTOR, std::vector<Handle>{x});
    set(operation, base + 5, DESCRIPTOR, std::vector<Handle>{y});
    if (cudnnBackendFinalize(operation) != 0) return nullptr;
    Handle library = nullptr;
    REQUIRE(cudnnCreate(&library) == 0);
    const Handle graph = descriptor(15);
    set(graph, 800, 0, std::vector<Handle>{library});
    set(graph, 801, DESCRIPTOR, std::vector<Handle>{operation});
    REQUIRE(cudnnBackendFinalize(graph) == 0);
    // What refers to a descriptor keeps what it holds.
    for (Handle part : {shape, x, w, y, operation}) cudnnBackendDestroyDescriptor(part);
    return graph;
}

struct Choice {
    Handle plan;
    size_t workspace;
};

std::vector<Choice> plans_of(Handle graph) {
    std::vector<Choice> plans;
    for (int mode : {3, 2}) {
        const Handle heuristics = descriptor(4);
        set(heuristics, 201, DESCRIPTOR, std::vector<Handle>{graph});
        set(heuristics, 200, HEURISTICS_MODE, std::vector<int>{mode});
        REQUIRE(cudnnBackendFinalize(heuristics) == 0);
        int64_t count = 0;
        REQUIRE(cudnnBackendGetAttribute(heuristics, 202, DESCRIPTOR, 0, &count, nullptr) == 0 && count > 0);
        std::vector<Handle> configs;
        for (int64_t i = 0; i < count; i++) configs.push_back(descriptor(3));
        REQUIRE(cudnnBackendGetAttribute(heuristics, 202, DESCRIPTOR, count, &count, configs.data()) == 0);
        for (Handle config : configs) {
            Handle engine = descriptor(2);
            int64_t index = -1, got = 0, workspace = 0;
            REQUIRE(cudnnBackendGetAttribute(config, 300, DESCRIPTOR, 1, &got, &engine) == 0);
            REQUIRE(cudnnBackendGetAttribute(engine, 1301, INT64, 1, &got, &index) == 0 && index >= 0);
            int notes[10];
            REQUIRE(cudnnBackendGetAttribute(engine, 1303, NOTE, 10, &got, notes) == 0 && got <= 1);
            const Handle plan = descriptor(5);
            set(plan, 401, DESCRIPTOR, std::vector<Handle>{config});
            REQUIRE(cudnnBackendFinalize(plan) == 0 &&
                    cudnnBackendGetAttribute(plan, 402, INT64, 1, &got, &workspace) == 0);
            plans.push_back({plan, (size_t)workspace});
        }
    }
    REQUIRE(plans.size() == 3 && plans[0].workspace > 0);
    return plans;
}

/// Checks all directions and engines of a problem whose sums are exact.
void check(const Fixture& f, const Problem& p, Type type) {
    Handle library = nullptr;
    REQUIRE(cudnnCreate(&library) == 0 && cudnnSetStream(library, f.stream) == 0);
    const Device workspace = f.buffer(1 << 20);
    const std::vector<float> values[] = {numbers(product(p.x), 1), numbers(product(p.w), 2), numbers(product(p.y), 3)};
    for (int kind : {10, 12, 11}) {
        const size_t target = kind == 10 ? 2 : kind == 12 ? 0 : 1;
        std::vector<float> expected(values[target].size(), 0.0f);
        p.each_product([&](size_t x, size_t w, size_t y) {
            const size_t at[] = {x, w, y};
            const size_t a = target == 0 ? 1 : 0, b = target == 2 ? 1 : 2;
            expected[at[target]] += values[a][at[a]] * values[b][at[b]];
        });
        const Handle graph = graph_of(p, kind, type);
        REQUIRE(graph);
        for (const Choice& choice : plans_of(graph)) {
            Device operands[3];
            for (size_t i = 0; i < 3; i++)
                operands[i] = i == target ? f.buffer(expected.size() * bytes_of(type)) : f.upload(type, values[i]);
            const Handle pack = descriptor(16);
            set(pack, 1000, INT64, List{1, 2, 3});
            set(pack, 1001, POINTER, std::vector<Device>(operands, operands + 3));
            set(pack, 1003, POINTER, std::vector<Device>{workspace});
            REQUIRE(cudnnBackendFinalize(pack) == 0 && cudnnBackendExecute(library, choice.plan, pack) == 0);
            const auto bytes = f.download<unsigned char>(operands[target], expected.size() * bytes_of(type));
            for (size_t i = 0; i < expected.size(); i++) {
                unsigned char rounded[4];
                store(type, rounded, 0, expected[i]);
                REQUIRE(load(type, bytes.data(), i) == load(type, rounded, 0));
            }
        }
    }
}

void convolutions_of_one_to_three_axes(const Fixture& f) {
    check(f, {{2, 3, 9}, {4, 3, 3}, {2, 4, 5}, {2}, {1}, {1}, {1}}, Type::f32);
    check(f, {{2, 3, 5, 7}, {4, 3, 3, 2}, {2, 4, 5, 7}, {1, 1}, {1, 1}, {1, 1}, {1, 0}}, Type::bf16);
    check(f, {{1, 2, 4, 5, 6}, {3, 2, 2, 3, 1}, {1, 3, 3, 3, 3}, {1, 1, 2}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}},
          Type::f16);
}

void convolutions_with_groups_dilation_and_uneven_padding(const Fixture& f) {
    check(f, {{2, 6, 8, 8}, {4, 3, 3, 3}, {2, 4, 4, 3}, {2, 2}, {1, 2}, {0, 1}, {2, 0}}, Type::f32);
    check(f, {{2, 5, 6, 6}, {5, 1, 3, 3}, {2, 5, 6, 6}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, Type::f32);
}

void wrong_size_of_an_output_is_found(const Fixture&) {
    REQUIRE(!graph_of({{2, 3, 9}, {4, 3, 3}, {2, 4, 6}, {2}, {1}, {1}, {1}}, 10, Type::f32));
}

void missing_workspace_is_found(const Fixture& f) {
    const Problem p{{1, 1, 4, 4}, {1, 1, 1, 1}, {1, 1, 4, 4}, {1, 1}, {1, 1}, {0, 0}, {0, 0}};
    Handle library = nullptr;
    REQUIRE(cudnnCreate(&library) == 0 && cudnnSetStream(library, f.stream) == 0);
    const Handle pack = descriptor(16);
    set(pack, 1000, INT64, List{1, 2, 3});
    set(pack, 1001, POINTER, std::vector<Device>{f.buffer(64), f.buffer(4), f.buffer(64)});
    REQUIRE(cudnnBackendFinalize(pack) == 0);
    REQUIRE(cudnnBackendExecute(library, plans_of(graph_of(p, 10, Type::f32))[0].plan, pack) != 0);
}

}  // namespace

const std::vector<Entry> dnn_tests = {
    TEST(convolutions_of_one_to_three_axes),
    TEST(convolutions_with_groups_dilation_and_uneven_padding),
    TEST(wrong_size_of_an_output_is_found),
    TEST(missing_workspace_is_found),
};
