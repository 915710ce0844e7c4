// Tests of the stand-in for cuBLASLt.
#include "selftest.h"

extern "C" {
int cublasLtCreate(Handle*);
int cublasLtMatmulDescCreate(Handle*, int, int);
int cublasLtMatmulDescSetAttribute(Handle, int, const void*, size_t);
int cublasLtMatrixLayoutCreate(Handle*, int, uint64_t, uint64_t, int64_t);
int cublasLtMatrixLayoutSetAttribute(Handle, int, const void*, size_t);
int cublasLtMatmulPreferenceCreate(Handle*);
int cublasLtMatmulPreferenceSetAttribute(Handle, int, const void*, size_t);
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
int cublasLtMatmulAlgoGetHeuristic(Handle, Handle, Handle, Handle, Handle, Handle, Handle, int, Heuristic*, int*);
int cublasLtMatmul(Handle, Handle, const void*, const void*, Handle, const void*, Handle, const void*, const void*,
                   Handle, void*, Handle, const void*, void*, size_t, Handle);
}

namespace {

/// Column by column: D[m, n] = relu(0.5 A' B + C + bias), in a batch of two.
struct Multiplication {
    size_t m = 5, n = 6, k = 600, batch = 2;
    int leading_d = 8;
    Type type = Type::bf16;

    int run(const Fixture& f, std::vector<float>& result, std::vector<float>& expected) const {
        const std::vector<float> a = numbers(batch * m * k, 1), b = numbers(batch * k * n, 2), bias = numbers(m, 3);
        const size_t stride_d = (size_t)leading_d * n;
        const std::vector<float> c = numbers(batch * stride_d, 4);
        const Device da = f.upload(type, a), db = f.upload(type, b), dc = f.upload(Type::f32, c),
                     dbias = f.upload(Type::f32, bias);
        const int number = type == Type::f32 ? 0 : type == Type::bf16 ? 14 : 2;
        Handle lt, what, la, lb, ld, preference;
        REQUIRE(cublasLtCreate(&lt) == 0 && cublasLtMatmulDescCreate(&what, 68, 0) == 0);
        const int transposed = 1, epilogue = 6, count = (int)batch;
        REQUIRE(cublasLtMatmulDescSetAttribute(what, 3, &transposed, 4) == 0 &&
                cublasLtMatmulDescSetAttribute(what, 7, &epilogue, 4) == 0);
        REQUIRE(cublasLtMatmulDescSetAttribute(what, 8, &dbias, 8) == 0);
        REQUIRE(cublasLtMatrixLayoutCreate(&la, number, k, m, (int64_t)k) == 0 &&
                cublasLtMatrixLayoutCreate(&lb, number, k, n, (int64_t)k) == 0);
        REQUIRE(cublasLtMatrixLayoutCreate(&ld, 0, m, n, leading_d) == 0);
        const int64_t strides[] = {(int64_t)(m * k), (int64_t)(k * n), (int64_t)stride_d};
        const Handle layouts[] = {la, lb, ld};
        for (int i = 0; i < 3; i++)
            REQUIRE(cublasLtMatrixLayoutSetAttribute(layouts[i], 5, &count, 4) == 0 &&
                    cublasLtMatrixLayoutSetAttribute(layouts[i], 6, &strides[i], 8) == 0);
        const size_t limit = 1 << 20;
        REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == 0 &&
                cublasLtMatmulPreferenceSetAttribute(preference, 1, &limit, 8) == 0);
        Heuristic found[3];
        int given = 0;
        const int refused = cublasLtMatmulAlgoGetHeuristic(lt, what, la, lb, ld, ld, preference, 3, found, &given);
        if (refused) return refused;
        REQUIRE(given == 2 && found[0].workspace > 0);
        const float alpha = 0.5f, beta = 1.0f;
        const Device workspace = f.buffer(limit);
        const int failed = cublasLtMatmul(lt, what, &alpha, (void*)da, la, (void*)db, lb, &beta, (void*)dc, ld,
                                          (void*)dc, ld, found[0].algorithm, (void*)workspace, limit, f.stream);
        if (failed) return failed;
        result = f.download<float>(dc, batch * stride_d);
        expected = c;
        for (size_t i = 0; i < batch; i++)
            for (size_t col = 0; col < n; col++)
                for (size_t row = 0; row < m; row++) {
                    double sum = 0;
                    for (size_t x = 0; x < k; x++)
                        sum += (double)a[i * m * k + row * k + x] * b[i * k * n + col * k + x];
                    float& at = expected[i * stride_d + col * (size_t)leading_d + row];
                    at = fmaxf(0.0f, (float)(0.5 * sum) + at + bias[row]);
                }
        return 0;
    }
};

void products_with_epilogue(const Fixture& f) {
    for (Type type : {Type::f32, Type::bf16, Type::f16}) {
        Multiplication product;
        product.type = type;
        std::vector<float> result, expected;
        REQUIRE(product.run(f, result, expected) == 0 && result == expected);
    }
}

void leading_dimension_too_small_is_found(const Fixture& f) {
    Multiplication product;
    product.leading_d = 4;
    std::vector<float> result, expected;
    REQUIRE(product.run(f, result, expected) == 7);
}

void halves_round_to_nearest_even(const Fixture&) {
    const struct {
        Type type;
        float value, kept;
    } cases[] = {
        {Type::bf16, 1.00390625f, 1.0f},
        {Type::bf16, 1.01171875f, 1.015625f},
        {Type::bf16, 3.4e38f, INFINITY},
        {Type::f16, 65519.0f, 65504.0f},
        {Type::f16, 65520.0f, INFINITY},
        {Type::f16, 1.00048828125f, 1.0f},
        {Type::f16, 6.103e-5f, 6.1035156e-5f},
        {Type::f16, 2.0e-8f, 0.0f},
        {Type::f16, -5.9604645e-8f, -5.9604645e-8f},
        {Type::f16, 8.940697e-8f, 1.1920929e-7f},
    };
    for (const auto& c : cases) {
        uint16_t half = 0;
        store(c.type, &half, 0, c.value);
        REQUIRE(load(c.type, &half, 0) == c.kept);
    }
    for (unsigned bits = 0; bits < 65536; bits++)
        for (Type type : {Type::bf16, Type::f16}) {
            const uint16_t half = (uint16_t)bits;
            const float value = load(type, &half, 0);
            uint16_t back = 0;
            store(type, &back, 0, value);
            REQUIRE(back == half || value != value);
        }
}

}  // namespace

const std::vector<Entry> blas_tests = {
    TEST(halves_round_to_nearest_even),
    TEST(products_with_epilogue),
    TEST(leading_dimension_too_small_is_found),
};
