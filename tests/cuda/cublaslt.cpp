// The stand-in for cuBLASLt: matrix products of f32, bf16 and f16 with sums in f32, in one fixed order. What is
// refused here (types, strides, the type of a bias) is what the real library refuses.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "numbers.h"
#include "standin.h"

namespace {

enum Status : int { success = 0, not_initialized = 1, invalid_value = 7, execution_failed = 13, not_supported = 15 };

/// Numbers of cudaDataType, cublasComputeType_t and cublasLtEpilogue_t.
enum : int { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum : int { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77 };
enum : uint32_t { EPILOGUE_NONE = 1, EPILOGUE_RELU = 2, EPILOGUE_BIAS = 4, EPILOGUE_RELU_BIAS = 6 };

constexpr uint64_t ALGORITHM = 0x7068616c616e7801;
/// Products with a longer sum than this ask for a workspace, so that callers without one are found.
constexpr uint64_t LONG_SUM = 512;
constexpr size_t WORKSPACE = 1 << 16;

struct Description {
    int32_t compute = COMPUTE_32F, scale = R_32F, pointer_mode = 0, transposed_a = 0, transposed_b = 0,
            transposed_c = 0;
    uint32_t epilogue = EPILOGUE_NONE;
    const void* bias = nullptr;
    int64_t bias_stride = 0;
    int32_t bias_type = -1;
};

struct Layout {
    uint32_t type = R_32F;
    int32_t order = 0;
    uint64_t rows = 0, columns = 0;
    int64_t leading = 0;
    int32_t batch = 1;
    int64_t stride = 0;
};

struct Preference {
    uint64_t workspace = 0;
};

struct Algorithm {
    uint64_t data[8];
};

struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};

struct Handle {
    int nothing = 0;
};

Status refuse(Status status, const std::string& why) {
    standin::report("cublasLtMatmul: " + why);
    return status;
}

bool type_of(int number, Type& type) {
    if (number == R_32F)
        type = Type::f32;
    else if (number == R_16BF)
        type = Type::bf16;
    else if (number == R_16F)
        type = Type::f16;
    else
        return false;
    return true;
}

/// A matrix in memory, for any order.
struct Matrix {
    Type type = Type::f32;
    size_t rows = 0, columns = 0, row_step = 0, column_step = 0, batch = 1, stride = 0;

    size_t extent() const { return rows && columns ? (rows - 1) * row_step + (columns - 1) * column_step + 1 : 0; }
    size_t bytes() const { return rows && columns ? ((batch - 1) * stride + extent()) * bytes_of(type) : 0; }
    Matrix transposed(bool really) const {
        Matrix turned = *this;
        if (really) {
            std::swap(turned.rows, turned.columns);
            std::swap(turned.row_step, turned.column_step);
        }
        return turned;
    }
};

/// Whether the ReLU makes 0 of what is not a number.
bool swallows_nan() {
    static const char* set = getenv("PHALANX_STANDIN_BLASLT_RELU");
    return set && std::string(set) == "zero";
}

/// A product that was checked: everything that running it needs.
struct Product {
    Matrix a, b, c, d;
    const void *from_a, *from_b, *from_c, *bias;
    void* to;
    float alpha, beta;
    bool tf32, relu;
    size_t bias_stride;
    void* workspace;
    size_t workspace_used;

    /// One for each kernel that the library could have for it.
    std::string name(int epilogue) const {
        std::string all = "a product of cuBLASLt";
        for (const Matrix* m : {&a, &b, &d})
            for (size_t n : {(size_t)m->type, m->rows, m->columns, m->row_step, m->batch})
                all += " " + std::to_string(n);
        return all + " " + std::to_string(epilogue);
    }

    bool addresses_hold() const {
        const size_t biases = bias ? ((d.batch - 1) * bias_stride + d.rows) * bytes_of(d.type) : 0;
        return phalanx_standin_check(from_a, a.bytes(), "cublasLtMatmul: A") &&
               phalanx_standin_check(from_b, b.bytes(), "cublasLtMatmul: B") &&
               (beta == 0.0f || phalanx_standin_check(from_c, c.bytes(), "cublasLtMatmul: C")) &&
               phalanx_standin_check(to, d.bytes(), "cublasLtMatmul: D") &&
               phalanx_standin_check(bias, biases, "cublasLtMatmul: the bias") &&
               phalanx_standin_check(workspace, workspace_used, "cublasLtMatmul: the workspace");
    }

    int run() const {
        constexpr int ILLEGAL_ADDRESS = 700;
        if (!addresses_hold()) return ILLEGAL_ADDRESS;
        // Whoever keeps something in the workspace shall notice.
        if (workspace_used) memset(workspace, 0xff, workspace_used);
        for (size_t i = 0; i < d.batch; i++) run_one(i);
        return success;
    }

private:
    std::vector<float> packed(const Matrix& m, const void* from, size_t index) const {
        std::vector<float> values(m.rows * m.columns);
        for (size_t r = 0; r < m.rows; r++)
            for (size_t c = 0; c < m.columns; c++) {
                const float v = load(m.type, from, index * m.stride + r * m.row_step + c * m.column_step);
                values[r * m.columns + c] = tf32 ? as_tf32(v) : v;
            }
        return values;
    }

    void run_one(size_t index) const {
        const size_t inner = a.columns;
        const std::vector<float> left = packed(a, from_a, index), right = packed(b, from_b, index);
        std::vector<float> sums(d.columns);
        for (size_t r = 0; r < d.rows; r++) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (size_t k = 0; k < inner; k++) {
                const float factor = left[r * inner + k];
                const float* row = &right[k * d.columns];
                for (size_t c = 0; c < d.columns; c++) sums[c] += factor * row[c];
            }
            const float add = bias ? load(d.type, bias, index * bias_stride + r) : 0.0f;
            for (size_t col = 0; col < d.columns; col++) {
                float value = alpha * sums[col] + add;
                // With a factor of zero C is not read: it may be uninitialized.
                if (beta != 0.0f)
                    value += beta * load(c.type, from_c, index * c.stride + r * c.row_step + col * c.column_step);
                if (relu && (value < 0.0f || (value != value && swallows_nan()))) value = 0.0f;
                store(d.type, to, index * d.stride + r * d.row_step + col * d.column_step, value);
            }
        }
    }
};

Status matrix_of(const Layout& layout, const char* name, Matrix& m) {
    if (!type_of((int)layout.type, m.type))
        return refuse(not_supported, std::string(name) + " has a type that the stand-in does not know");
    if (layout.order > 1)
        return refuse(not_supported, std::string(name) + " has an order that the stand-in does not know");
    const bool by_rows = layout.order == 1;
    const uint64_t line = by_rows ? layout.columns : layout.rows;
    if (layout.leading < (int64_t)line)
        return refuse(invalid_value, std::string(name) + " has lines of " + std::to_string(line) +
                                         " elements, but a leading dimension of " + std::to_string(layout.leading));
    m.rows = layout.rows, m.columns = layout.columns, m.batch = (size_t)layout.batch, m.stride = (size_t)layout.stride;
    m.row_step = by_rows ? (size_t)layout.leading : 1;
    m.column_step = by_rows ? 1 : (size_t)layout.leading;
    if (layout.batch < 1 || layout.stride < 0) return refuse(invalid_value, std::string(name) + " has a wrong batch");
    return success;
}

/// Checks everything that needs no pointers.
Status plan(const Description& what, const Layout& la, const Layout& lb, const Layout& lc, const Layout& ld,
            Product& p) {
    for (auto [layout, name, matrix] : {std::make_tuple(&la, "A", &p.a), std::make_tuple(&lb, "B", &p.b),
                                        std::make_tuple(&lc, "C", &p.c), std::make_tuple(&ld, "D", &p.d)})
        if (Status wrong = matrix_of(*layout, name, *matrix)) return wrong;
    if (what.transposed_c != 0 || what.transposed_a > 1 || what.transposed_b > 1)
        return refuse(not_supported, "an unknown transposition");
    p.a = p.a.transposed(what.transposed_a);
    p.b = p.b.transposed(what.transposed_b);
    const auto shape = [](const Matrix& m) {
        return "[" + std::to_string(m.rows) + ", " + std::to_string(m.columns) + "]";
    };
    if (p.a.rows != p.d.rows || p.b.columns != p.d.columns || p.a.columns != p.b.rows || p.c.rows != p.d.rows ||
        p.c.columns != p.d.columns)
        return refuse(invalid_value, "shapes do not match: op(A) " + shape(p.a) + " op(B) " + shape(p.b) + " C " +
                                         shape(p.c) + " D " + shape(p.d));
    if (p.d.rows == 0 || p.d.columns == 0 || p.a.columns == 0) return refuse(invalid_value, "a matrix has no elements");
    if (p.a.batch != p.d.batch || p.b.batch != p.d.batch || p.c.batch != p.d.batch)
        return refuse(invalid_value, "batches differ");
    if (p.d.batch > 1 && p.d.stride < p.d.extent()) return refuse(invalid_value, "matrices of D's batch overlap");
    if (what.scale != R_32F || what.pointer_mode != 0)
        return refuse(not_supported, "alpha and beta must be f32, in host memory");
    if (what.compute != COMPUTE_32F && what.compute != COMPUTE_32F_PEDANTIC && what.compute != COMPUTE_32F_FAST_TF32)
        return refuse(not_supported, "compute type " + std::to_string(what.compute));
    if (p.a.type != p.b.type || p.c.type != p.d.type || (p.d.type != Type::f32 && p.d.type != p.a.type))
        return refuse(not_supported, std::string("types ") + name_of(p.a.type) + " x " + name_of(p.b.type) + " + " +
                                         name_of(p.c.type) + " = " + name_of(p.d.type));
    p.tf32 = what.compute == COMPUTE_32F_FAST_TF32 && p.a.type == Type::f32;
    if (what.epilogue != EPILOGUE_NONE && (what.epilogue & ~(uint32_t)EPILOGUE_RELU_BIAS))
        return refuse(not_supported, "epilogue " + std::to_string(what.epilogue));
    p.relu = what.epilogue & EPILOGUE_RELU;
    p.bias = what.epilogue & EPILOGUE_BIAS ? what.bias : nullptr;
    p.bias_stride = (size_t)what.bias_stride;
    Type bias = p.d.type;
    if ((what.epilogue & EPILOGUE_BIAS) && what.bias_type != -1 && (!type_of(what.bias_type, bias) || bias != p.d.type))
        return refuse(not_supported, "a bias has D's type");
    p.workspace_used = p.a.columns > LONG_SUM ? WORKSPACE : 0;
    return success;
}

template <class T>
Status set(T& field, const void* from, size_t bytes) {
    if (!from || bytes != sizeof(T))
        return refuse(invalid_value,
                      "an attribute of " + std::to_string(bytes) + " bytes has " + std::to_string(sizeof(T)));
    memcpy(&field, from, bytes);
    return success;
}

}  // namespace

API size_t cublasLtGetVersion() { return (size_t)standin_version("BLASLT", 130000); }

API const char* cublasLtGetStatusString(Status status) {
    switch (status) {
        case success: return "CUBLAS_STATUS_SUCCESS";
        case not_initialized: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case invalid_value: return "CUBLAS_STATUS_INVALID_VALUE";
        case execution_failed: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case not_supported: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "CUBLAS_STATUS unknown";
}

API Status cublasLtCreate(Handle** handle) {
    *handle = new Handle();
    return success;
}

API Status cublasLtDestroy(Handle* handle) {
    delete handle;
    return success;
}

API Status cublasLtMatmulDescCreate(Description** made, int32_t compute, int32_t scale) {
    *made = new Description();
    (*made)->compute = compute;
    (*made)->scale = scale;
    return success;
}

API Status cublasLtMatmulDescDestroy(Description* description) {
    delete description;
    return success;
}

API Status cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
        case 0: return set(d->compute, from, bytes);
        case 1: return set(d->scale, from, bytes);
        case 2: return set(d->pointer_mode, from, bytes);
        case 3: return set(d->transposed_a, from, bytes);
        case 4: return set(d->transposed_b, from, bytes);
        case 5: return set(d->transposed_c, from, bytes);
        case 7: return set(d->epilogue, from, bytes);
        case 8: return set(d->bias, from, bytes);
        case 10: return set(d->bias_stride, from, bytes);
        case 26: return set(d->bias_type, from, bytes);
    }
    return refuse(not_supported,
                  "attribute " + std::to_string(attribute) + " of a description is not known to the stand-in");
}

API Status cublasLtMatrixLayoutCreate(Layout** made, uint32_t type, uint64_t rows, uint64_t columns, int64_t leading) {
    *made = new Layout();
    (*made)->type = type;
    (*made)->rows = rows;
    (*made)->columns = columns;
    (*made)->leading = leading;
    return success;
}

API Status cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return success;
}

API Status cublasLtMatrixLayoutSetAttribute(Layout* l, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
        case 0: return set(l->type, from, bytes);
        case 1: return set(l->order, from, bytes);
        case 2: return set(l->rows, from, bytes);
        case 3: return set(l->columns, from, bytes);
        case 4: return set(l->leading, from, bytes);
        case 5: return set(l->batch, from, bytes);
        case 6: return set(l->stride, from, bytes);
    }
    return refuse(not_supported,
                  "attribute " + std::to_string(attribute) + " of a layout is not known to the stand-in");
}

API Status cublasLtMatmulPreferenceCreate(Preference** made) {
    *made = new Preference();
    return success;
}

API Status cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return success;
}

API Status cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* from, size_t bytes) {
    constexpr int MAX_WORKSPACE_BYTES = 1;
    if (attribute == MAX_WORKSPACE_BYTES) return set(p->workspace, from, bytes);
    // Others (alignments, masks) narrow a choice that is none here.
    return from && attribute >= 0 && attribute <= 12 ? success : invalid_value;
}

API Status cublasLtMatmulAlgoGetHeuristic(Handle* handle, Description* what, Layout* a, Layout* b, Layout* c, Layout* d,
                                          Preference* preference, int wanted, Heuristic* results, int* count) {
    if (!handle) return not_initialized;
    if (!what || !a || !b || !c || !d || !preference || !results || !count || wanted < 1) return invalid_value;
    *count = 0;
    Product product{};
    if (Status wrong = plan(*what, *a, *b, *c, *d, product)) return wrong;
    if (product.workspace_used > preference->workspace) product.workspace_used = 0;
    for (int i = 0; i < std::min(wanted, 2); i++) {
        results[i] = Heuristic{};
        // The second choice does without a workspace.
        results[i].workspace = i == 0 ? product.workspace_used : 0;
        results[i].algorithm.data[0] = ALGORITHM;
        results[i].algorithm.data[1] = (uint64_t)i;
        results[i].algorithm.data[2] = results[i].workspace;
        results[i].waves = 1.0f;
        ++*count;
    }
    return success;
}

API Status cublasLtMatmul(Handle* handle, Description* what, const float* alpha, const void* a, Layout* la,
                          const void* b, Layout* lb, const float* beta, const void* c, Layout* lc, void* d, Layout* ld,
                          const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    if (!handle) return not_initialized;
    if (!what || !alpha || !beta || !la || !lb || !lc || !ld) return invalid_value;
    Product product{};
    if (Status wrong = plan(*what, *la, *lb, *lc, *ld, product)) return wrong;
    if (algorithm && algorithm->data[0] != ALGORITHM)
        return refuse(invalid_value, "the algorithm is not one that the heuristics gave");
    product.workspace_used = algorithm ? algorithm->data[2] : 0;
    if (product.workspace_used > workspace_bytes)
        return refuse(invalid_value, "the algorithm needs " + std::to_string(product.workspace_used) +
                                         " bytes of workspace and gets " + std::to_string(workspace_bytes));
    if ((what->epilogue & EPILOGUE_BIAS) && !product.bias)
        return refuse(invalid_value, "an epilogue with a bias, and no pointer to it");
    product.from_a = a, product.from_b = b, product.from_c = c, product.to = d;
    product.alpha = *alpha, product.beta = *beta;
    product.workspace = workspace;
    if (!product.addresses_hold() ||
        !phalanx_standin_check(workspace, workspace_bytes, "cublasLtMatmul: the workspace"))
        return invalid_value;
    if (phalanx_standin_load(product.name(what->epilogue).c_str())) return execution_failed;
    return standin::enqueue(stream, [product] { return product.run(); }) == 0 ? success : execution_failed;
}
