// Operands are packed into dense floats with channels last; the three directions are one walk over (output place,
// kernel place) pairs with a different innermost product.
#include "convolution.h"

#include <algorithm>
#include <functional>

size_t Tensor::count() const {
    size_t n = 1;
    for (int64_t s : sizes) n *= (size_t)s;
    return n;
}

size_t Tensor::extent() const {
    size_t last = 0;
    for (size_t i = 0; i < sizes.size(); i++) last += (size_t)((sizes[i] - 1) * strides[i]);
    return last + 1;
}

namespace {

std::string list(const std::vector<int64_t>& values) {
    std::string out = "[";
    for (int64_t v : values) out += (out.size() > 1 ? ", " : "") + std::to_string(v);
    return out + "]";
}

/// Spatial places, and how tensors with channels last are indexed by them.
struct Grid {
    std::vector<int64_t> sizes;
    explicit Grid(const Tensor& t) : sizes(t.sizes.begin() + 2, t.sizes.end()) {}
    int64_t count() const {
        int64_t n = 1;
        for (int64_t s : sizes) n *= s;
        return n;
    }
};

/// Calls `with(first, channel, place, offset in memory)` for every element.
template <class F>
void each_element(const Tensor& t, F with) {
    const Grid grid(t);
    const int64_t places = grid.count();
    for (int64_t place = 0; place < places; place++) {
        int64_t rest = place, spatial = 0;
        for (size_t axis = grid.sizes.size(); axis-- > 0;) {
            spatial += rest % grid.sizes[axis] * t.strides[axis + 2];
            rest /= grid.sizes[axis];
        }
        for (int64_t a = 0; a < t.sizes[0]; a++)
            for (int64_t b = 0; b < t.sizes[1]; b++) with(a, b, place, a * t.strides[0] + b * t.strides[1] + spatial);
    }
}

/// to += factor * from
void add_scaled(float* to, const float* from, float factor, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] += factor * from[i];
}

class Run {
public:
    Run(const Convolution& c, Numerics how) : c(c), how(how), in(c.x), kernel(c.w), out(c.y) {
        groups = c.x.sizes[1] / c.w.sizes[1];
        samples = c.x.sizes[0];
        inner = c.w.sizes[1];
        outer = c.w.sizes[0] / groups;
        places_in = in.count(), places_kernel = kernel.count(), places_out = out.count();
    }

    // Packed: images [sample, place, channel]; weights [place, group, inner, outer], or [place, group, outer, inner]
    // for the gradient of the image, so that the innermost loop is over neighbours.
    std::vector<float> image(const Tensor& t, const void* from, int64_t places) const {
        std::vector<float> packed(t.count());
        const int64_t channels = t.sizes[1];
        each_element(t, [&](int64_t n, int64_t ch, int64_t place, int64_t at) {
            packed[(size_t)((n * places + place) * channels + ch)] = operand(t, from, at);
        });
        return packed;
    }
    std::vector<float> weights(const void* from) const {
        std::vector<float> packed(c.w.count());
        each_element(c.w, [&](int64_t k, int64_t ch, int64_t place, int64_t at) {
            packed[weight_index(k, ch, place)] = operand(c.w, from, at);
        });
        return packed;
    }
    size_t weight_index(int64_t k, int64_t ch, int64_t place) const {
        const int64_t first = (place * groups + k / outer) * inner * outer;
        return (size_t)(first + (c.direction == Direction::data ? k % outer * inner + ch : ch * outer + k % outer));
    }

    /// Calls `with(input place, kernel place, output place)` for every pair that meets inside the image, in a fixed
    /// order.
    template <class F>
    void each_pair(F with) const {
        const size_t axes = in.sizes.size();
        for (int64_t i = 0; i < places_out; i++) {
            const int64_t o = how.backwards ? places_out - 1 - i : i;
            for (int64_t j = 0; j < places_kernel; j++) {
                const int64_t k = how.backwards ? places_kernel - 1 - j : j;
                int64_t rest_o = o, rest_k = k, place = 0, step = 1;
                bool inside = true;
                for (size_t a = axes; a-- > 0 && inside;) {
                    const int64_t at =
                        rest_o % out.sizes[a] * c.stride[a] + rest_k % kernel.sizes[a] * c.dilation[a] - c.before[a];
                    inside = at >= 0 && at < in.sizes[a];
                    place += at * step;
                    step *= in.sizes[a];
                    rest_o /= out.sizes[a], rest_k /= kernel.sizes[a];
                }
                if (inside) with(place, k, o);
            }
        }
    }

    void forward(const void* x_at, const void* w_at, void* y_at, const void* bias_at) const {
        const auto x = image(c.x, x_at, places_in), w = weights(w_at);
        std::vector<float> y(c.y.count(), 0.0f);
        for (int64_t n = 0; n < samples; n++)
            each_pair([&](int64_t i, int64_t k, int64_t o) {
                for (int64_t g = 0; g < groups; g++) {
                    const float* from = &x[(size_t)(((n * places_in + i) * groups + g) * inner)];
                    float* to = &y[(size_t)(((n * places_out + o) * groups + g) * outer)];
                    const float* factors = &w[(size_t)((k * groups + g) * inner * outer)];
                    for (int64_t ch = 0; ch < inner; ch++) add_scaled(to, factors + ch * outer, from[ch], outer);
                }
            });
        for (size_t i = 0; c.biased && i < y.size(); i++) y[i] += load(c.bias.type, bias_at, i % (size_t)c.y.sizes[1]);
        write_image(c.y, y_at, y, places_out);
    }

    void data(void* x_at, const void* w_at, const void* y_at) const {
        const auto y = image(c.y, y_at, places_out), w = weights(w_at);
        std::vector<float> x(c.x.count(), 0.0f);
        for (int64_t n = 0; n < samples; n++)
            each_pair([&](int64_t i, int64_t k, int64_t o) {
                for (int64_t g = 0; g < groups; g++) {
                    float* to = &x[(size_t)(((n * places_in + i) * groups + g) * inner)];
                    const float* from = &y[(size_t)(((n * places_out + o) * groups + g) * outer)];
                    const float* factors = &w[(size_t)((k * groups + g) * inner * outer)];
                    for (int64_t ch = 0; ch < outer; ch++) add_scaled(to, factors + ch * inner, from[ch], inner);
                }
            });
        write_image(c.x, x_at, x, places_in);
    }

    void gradient(const void* x_at, void* w_at, const void* y_at) const {
        const auto x = image(c.x, x_at, places_in), y = image(c.y, y_at, places_out);
        std::vector<float> w(c.w.count(), 0.0f), part(w.size());
        for (int64_t s = 0; s < samples; s++) {
            const int64_t n = how.backwards ? samples - 1 - s : s;
            // Sums of sums: one long sum in f32 would be less exact than any real engine's.
            std::fill(part.begin(), part.end(), 0.0f);
            each_pair([&](int64_t i, int64_t k, int64_t o) {
                for (int64_t g = 0; g < groups; g++) {
                    const float* left = &x[(size_t)(((n * places_in + i) * groups + g) * inner)];
                    const float* right = &y[(size_t)(((n * places_out + o) * groups + g) * outer)];
                    float* to = &part[(size_t)((k * groups + g) * inner * outer)];
                    for (int64_t ch = 0; ch < inner; ch++) add_scaled(to + ch * outer, right, left[ch], outer);
                }
            });
            add_scaled(w.data(), part.data(), 1.0f, (int64_t)w.size());
        }
        each_element(c.w, [&](int64_t k, int64_t ch, int64_t place, int64_t at) {
            write(c.w, w_at, at, w[weight_index(k, ch, place)]);
        });
    }

private:
    float operand(const Tensor& t, const void* from, int64_t at) const {
        const float v = load(t.type, from, (size_t)at);
        return how.tf32 ? as_tf32(v) : v;
    }
    void write(const Tensor& t, void* to, int64_t at, float sum) const {
        // With a factor of zero the old value is not read: it may be uninitialized.
        const float old = c.beta == 0.0f ? 0.0f : c.beta * load(t.type, to, (size_t)at);
        store(t.type, to, (size_t)at, c.alpha * sum + old);
    }
    void write_image(const Tensor& t, void* to, const std::vector<float>& sums, int64_t places) const {
        const int64_t channels = t.sizes[1];
        each_element(t, [&](int64_t n, int64_t ch, int64_t place, int64_t at) {
            write(t, to, at, sums[(size_t)((n * places + place) * channels + ch)]);
        });
    }

    const Convolution& c;
    const Numerics how;
    const Grid in, kernel, out;
    int64_t groups, samples, inner, outer, places_in, places_kernel, places_out;
};

}  // namespace

std::string Convolution::name() const {
    std::string all = std::to_string((int)direction) + (biased ? " biased" : "");
    for (const Tensor* t : {&x, &w, &y}) {
        all += " " + std::to_string((int)t->type) + ":";
        for (int64_t size : t->sizes) all += " " + std::to_string(size);
    }
    for (const auto* list : {&stride, &dilation, &before, &after})
        for (int64_t n : *list) all += " " + std::to_string(n);
    return all;
}

std::string Convolution::wrong() const {
    const size_t axes = stride.size();
    if (axes < 1 || axes > 3) return std::to_string(axes) + " spatial axes";
    if (dilation.size() != axes || before.size() != axes || after.size() != axes) return "lists of different lengths";
    if (x.sizes.size() != axes + 2 || w.sizes.size() != axes + 2 || y.sizes.size() != axes + 2)
        return "tensors of other axes than the convolution";
    const std::string shapes = "x " + list(x.sizes) + ", w " + list(w.sizes) + ", y " + list(y.sizes);
    if (x.sizes[1] % w.sizes[1] != 0 || w.sizes[0] % (x.sizes[1] / w.sizes[1]) != 0)
        return "channels and groups do not match: " + shapes;
    if (x.sizes[0] != y.sizes[0] || w.sizes[0] != y.sizes[1]) return "shapes do not match: " + shapes;
    for (size_t a = 0; a < axes; a++) {
        if (stride[a] < 1 || dilation[a] < 1 || before[a] < 0 || after[a] < 0) return "a negative number";
        const int64_t reach = dilation[a] * (w.sizes[a + 2] - 1) + 1, padded = x.sizes[a + 2] + before[a] + after[a];
        if (padded < reach || (padded - reach) / stride[a] + 1 != y.sizes[a + 2])
            return "y has another size than stride, dilation and padding give: " + shapes;
    }
    if (x.type != y.type && !y.nowhere) return "x and y are of different types";
    return "";
}

void Convolution::run(void* x_at, void* w_at, void* y_at, const void* bias_at, Numerics how) const {
    const Run run(*this, how);
    if (direction == Direction::forward)
        run.forward(x_at, w_at, y_at, bias_at);
    else if (direction == Direction::data)
        run.data(x_at, w_at, y_at);
    else
        run.gradient(x_at, w_at, y_at);
}
