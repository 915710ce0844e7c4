// The stand-in for NVRTC: compiles CUDA C++ for the CPU with g++; the "cubin" is a shared object that the stand-in
// driver loads.
//
//   PHALANX_STANDIN_CXX     the compiler (g++)
//   PHALANX_STANDIN_CACHE   folder of compiled objects, shared by processes (else phalanx-standin-UID in the folder for
//                           temporary files)
//
// The headers (emulation.h …) lie beside this library.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "kernel_source.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Result : int {
    success = 0,
    program_creation_failure = 2,
    invalid_input = 3,
    invalid_program = 4,
    invalid_option = 5,
    compilation = 6,
    internal_error = 11,
};

struct Program {
    std::string source, name, log, object;
};

std::string environment(const char* name, const std::string& otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

std::string own_folder() {
    Dl_info info{};
    dladdr((void*)&own_folder, &info);
    const std::string path = info.dli_fname ? info.dli_fname : ".";
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream out;
    out << in.rdbuf();
    return out.str();
}

bool write_file(const std::string& path, const std::string& bytes) {
    std::ofstream out(path, std::ios::binary);
    out << bytes;
    out.close();
    return (bool)out;
}

/// 128 bits of FNV-1a, twice from different starts: it names files of a cache, nobody attacks it.
std::string hash_of(const std::string& bytes) {
    char name[33];
    uint64_t parts[2] = {0xcbf29ce484222325ull, 0x9ae16a3b2f90404full};
    for (unsigned char c : bytes)
        for (uint64_t& h : parts) h = (h ^ c) * 0x100000001b3ull + (h >> 47);
    snprintf(name, sizeof name, "%016llx%016llx", (unsigned long long)parts[0], (unsigned long long)parts[1]);
    return name;
}

std::string quoted(const std::string& word) {
    std::string out = "'";
    for (char c : word) out += c == '\'' ? "'\\''" : std::string(1, c);
    return out + "'";
}

/// Runs a command; what it prints is added to `log`.
bool command(const std::string& line, std::string& log) {
    FILE* pipe = popen((line + " 2>&1").c_str(), "re");
    if (!pipe) return false;
    char buffer[4096];
    while (size_t n = fread(buffer, 1, sizeof buffer, pipe)) log.append(buffer, n);
    return pclose(pipe) == 0;
}

struct Options {
    std::vector<std::string> compiler;
    std::string wrong;
};

bool begins(const std::string& text, const std::string& with) { return text.compare(0, with.size(), with) == 0; }

/// NVRTC's options in g++'s words. Those that only concern a GPU's code are accepted and do nothing.
Options options_of(int count, const char* const* given) {
    static const char* const nothing[] = {"-default-device",
                                          "--device-as-default-execution-space",
                                          "-lineinfo",
                                          "--generate-line-info",
                                          "--std=",
                                          "-std=",
                                          "--fmad=",
                                          "-fmad=",
                                          "--ftz=",
                                          "-ftz=",
                                          "--prec-div=",
                                          "--prec-sqrt=",
                                          "--use_fast_math",
                                          "-use_fast_math",
                                          "--maxrregcount=",
                                          "-maxrregcount=",
                                          "--restrict",
                                          "-restrict",
                                          "--extra-device-vectorization",
                                          "-w",
                                          "--ptxas-options=",
                                          "-Xptxas",
                                          "-G"};
    Options result;
    int architecture = 750;
    for (int i = 0; i < count; i++) {
        const std::string option = given[i];
        bool known = false;
        for (const char* prefix : {"--gpu-architecture=", "-arch="}) {
            if (!begins(option, prefix)) continue;
            const size_t number = option.find_first_of("0123456789");
            known = number != std::string::npos;
            if (known) architecture = 10 * atoi(option.c_str() + number);
        }
        for (const char* prefix : {"--define-macro=", "-D"}) {
            if (!begins(option, prefix)) continue;
            known = true;
            result.compiler.push_back("-D" + option.substr(strlen(prefix)));
        }
        for (const char* prefix : nothing) known |= begins(option, prefix);
        if (!known) result.wrong = option;
    }
    result.compiler.push_back("-D__CUDA_ARCH__=" + std::to_string(architecture));
    return result;
}

/// Held while an object is made, so that processes that want the same one wait instead of compiling it again.
class Lock {
public:
    explicit Lock(const std::string& path) : file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
        if (file >= 0) flock(file, LOCK_EX);
    }
    ~Lock() {
        if (file >= 0) close(file);
    }
    Lock(const Lock&) = delete;

private:
    int file;
};

Result compile(Program& program, const Options& options) {
    const std::string folder = own_folder(), compiler = environment("PHALANX_STANDIN_CXX", "g++");
    // Wrong indices and misaligned pointers trap, which the driver reports with the kernel's name. Contraction stays
    // off so that a result does not depend on the machine that the tests run on.
    const std::string flags =
        " -std=c++17 -O1 -g1 -fPIC -w -fno-strict-aliasing -fwrapv -fno-math-errno -ffp-contract=off "
        "-fvisibility=hidden"
        " -fno-gnu-unique -fno-exceptions -fno-asynchronous-unwind-tables -fno-stack-protector -U_FORTIFY_SOURCE"
        " -fsanitize=bounds,alignment -fsanitize-undefined-trap-on-error";
    std::string words;
    for (const std::string& option : options.compiler) words += " " + quoted(option);

    std::string key = program.source + '\0' + program.name + '\0' + compiler + flags + words;
    for (const char* header : {"kernel_abi.h", "emulation.h", "emulation_types.h", "emulation_math.h"}) {
        const std::string text = read_file(folder + "/" + header);
        if (text.empty()) {
            program.log = "cuda stand-in: no " + std::string(header) + " beside the library in " + folder + "\n";
            return internal_error;
        }
        key += text;
    }
    // The translation belongs to the key, too, and lives in this library.
    Dl_info info{};
    dladdr((void*)&own_folder, &info);
    key += hash_of(read_file(info.dli_fname ? info.dli_fname : ""));

    const std::string cache = environment(
        "PHALANX_STANDIN_CACHE", environment("TMPDIR", "/tmp") + "/phalanx-standin-" + std::to_string(getuid()));
    mkdir(cache.c_str(), 0700);
    const std::string stem = cache + "/" + hash_of(key), object = stem + ".so";
    const Lock lock(stem + ".lock");
    program.object = read_file(object);
    if (!program.object.empty()) return success;

    const std::string own = stem + "." + std::to_string(getpid()), source = own + ".cu", expanded = own + ".ii",
                      made = own + ".so";
    Result result = compilation;
    // The name in messages is the program's own, as NVRTC gives it.
    const std::string named =
        "# 1 \"" + (program.name.empty() ? "default_program" : program.name) + "\"\n" + program.source;
    if (!write_file(source, named)) {
        program.log = "cuda stand-in: cannot write " + source + "; PHALANX_STANDIN_CACHE names another folder\n";
        result = internal_error;
    } else if (command(compiler + " -E -x c++ -include " + quoted(folder + "/emulation.h") + flags + words + " " +
                           quoted(source) + " -o " + quoted(expanded),
                       program.log)) {
        const Translated translated = translate_kernels(read_file(expanded));
        for (const std::string& error : translated.errors) program.log += program.name + ": error: " + error + "\n";
        write_file(expanded, translated.text);
        if (translated.errors.empty() && command(compiler + " -x c++-cpp-output -shared" + flags + " " +
                                                     quoted(expanded) + " -o " + quoted(made) + " -lm",
                                                 program.log)) {
            program.object = read_file(made);
            result = success;
            rename(made.c_str(), object.c_str());
        }
    }
    for (const std::string& file : {source, expanded, made}) unlink(file.c_str());
    return result;
}

}  // namespace

API Result nvrtcVersion(int* major, int* minor) {
    if (!major || !minor) return invalid_input;
    const int version = atoi(environment("PHALANX_STANDIN_NVRTC_VERSION", "13000").c_str());
    *major = version / 1000, *minor = version % 1000 / 10;
    return success;
}

API const char* nvrtcGetErrorString(Result result) {
    switch (result) {
        case success: return "NVRTC_SUCCESS";
        case program_creation_failure: return "NVRTC_ERROR_PROGRAM_CREATION_FAILURE";
        case invalid_input: return "NVRTC_ERROR_INVALID_INPUT";
        case invalid_program: return "NVRTC_ERROR_INVALID_PROGRAM";
        case invalid_option: return "NVRTC_ERROR_INVALID_OPTION";
        case compilation: return "NVRTC_ERROR_COMPILATION";
        case internal_error: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
    return "NVRTC_ERROR unknown";
}

API Result nvrtcCreateProgram(Program** program, const char* source, const char* name, int headers, const char* const*,
                              const char* const*) {
    if (!program || !source) return invalid_input;
    if (headers != 0) {
        fprintf(stderr, "cuda stand-in: nvrtcCreateProgram: headers are not supported\n");
        return program_creation_failure;
    }
    *program = new Program{source, name ? name : "", "", ""};
    return success;
}

API Result nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return invalid_program;
    delete *program;
    *program = nullptr;
    return success;
}

API Result nvrtcCompileProgram(Program* program, int count, const char* const* given) {
    if (!program) return invalid_program;
    program->log.clear();
    const Options options = options_of(count, given);
    if (!options.wrong.empty()) {
        program->log = "cuda stand-in: unknown option " + options.wrong + "\n";
        fputs(program->log.c_str(), stderr);
        return invalid_option;
    }
    return compile(*program, options);
}

API Result nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    if (!program) return invalid_program;
    if (!bytes) return invalid_input;
    *bytes = program->object.size();
    return success;
}

API Result nvrtcGetCUBIN(Program* program, char* to) {
    if (!program) return invalid_program;
    if (!to) return invalid_input;
    memcpy(to, program->object.data(), program->object.size());
    return success;
}

/// The size counts the zero at the end.
API Result nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    if (!program) return invalid_program;
    if (!bytes) return invalid_input;
    *bytes = program->log.size() + 1;
    return success;
}

API Result nvrtcGetProgramLog(Program* program, char* to) {
    if (!program) return invalid_program;
    if (!to) return invalid_input;
    memcpy(to, program->log.c_str(), program->log.size() + 1);
    return success;
}
