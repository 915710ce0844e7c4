// Tests of the stand-ins themselves; the script `selftest` builds and runs them, each in a process of its own.
// usage: selftest NAME; without a name it lists all.
#include "selftest.h"

Handle Fixture::compile(const char* source, const char* kernel, Handle* loaded) const {
    Handle program = nullptr;
    REQUIRE(nvrtcCreateProgram(&program, source, "selftest.cu", 0, nullptr, nullptr) == 0);
    const char* options[] = {"--gpu-architecture=sm_90a", "--std=c++17", "-default-device", "--fmad=true", "-lineinfo"};
    if (nvrtcCompileProgram(program, 5, options) != 0) {
        size_t bytes = 0;
        nvrtcGetProgramLogSize(program, &bytes);
        std::vector<char> log(bytes);
        nvrtcGetProgramLog(program, log.data());
        fprintf(stderr, "%s\n", log.data());
        exit(1);
    }
    size_t bytes = 0;
    REQUIRE(nvrtcGetCUBINSize(program, &bytes) == 0 && bytes > 0);
    std::vector<char> cubin(bytes);
    REQUIRE(nvrtcGetCUBIN(program, cubin.data()) == 0 && nvrtcDestroyProgram(&program) == 0);
    Handle module = nullptr, function = nullptr;
    REQUIRE(cuModuleLoadData(&module, cubin.data()) == 0 && cuModuleGetFunction(&function, module, kernel) == 0);
    if (loaded) *loaded = module;
    return function;
}

int main(int count, char** arguments) {
    for (const auto* table : {&driver_tests, &blas_tests, &dnn_tests, &nccl_tests}) {
        for (const Entry& test : *table) {
            if (count < 2) {
                puts(test.name);
            } else if (strcmp(test.name, arguments[1]) == 0) {
                test.run(Fixture());
                return 0;
            }
        }
    }
    return count < 2 ? 0 : 2;
}
