// A convolution on the CPU, as the stand-in for cuDNN runs it.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

#include "../numbers.h"

/// A tensor in memory: dimensions and strides in elements, channels second.
struct Tensor {
    Type type = Type::f32;
    std::vector<int64_t> sizes, strides;
    int64_t uid = 0, alignment = 1;
    /// It is in no memory: one operation of a graph hands it to the next.
    bool nowhere = false;

    size_t count() const;
    /// Elements from the first to the last.
    size_t extent() const;
    size_t bytes() const { return extent() * bytes_of(type); }
};

enum class Direction { forward, data, weights };

/// How an engine computes.
struct Numerics {
    /// Operands of f32 are rounded to TF32 first.
    bool tf32 = false;
    /// Sums go from the end.
    bool backwards = false;
};

struct Convolution {
    Direction direction = Direction::forward;
    Tensor x, w, y;
    /// One number a channel, added to y.
    Tensor bias;
    bool biased = false;
    std::vector<int64_t> stride, dilation, before, after;
    float alpha = 1, beta = 0;

    /// Why it cannot be computed; empty when it can.
    std::string wrong() const;
    /// Computes y, x or w from the other two.
    void run(void* x_at, void* w_at, void* y_at, const void* bias_at, Numerics how) const;
    /// What a library could have a kernel for.
    std::string name() const;
    const Tensor& result() const { return direction == Direction::forward ? y : direction == Direction::data ? x : w; }
};
