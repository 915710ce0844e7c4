// Turns preprocessed CUDA C++ into C++: see kernel_source.cpp.
#pragma once
#include <string>
#include <vector>

struct Translated {
    std::string text;
    /// What CUDA would not compile, one message each.
    std::vector<std::string> errors;
};

Translated translate_kernels(const std::string& preprocessed);
