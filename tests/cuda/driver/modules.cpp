// Modules and launches. A module is a shared object of the stand-in NVRTC; each load is an instance of its own.
//
// With PHALANX_STANDIN_RACES=1 every launch is run twice, with threads and blocks in opposite orders, from the same
// memory: a result that differs depends on an order that CUDA does not promise.
#include <dlfcn.h>
#include <elf.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "../kernel_abi.h"
#include "driver.h"

namespace {

struct Function;

struct Module {
    int file = -1;
    void* handle = nullptr;
    const PhalanxModule* table = nullptr;
    ModuleState state;
    Context* context = nullptr;
    /// Nothing of it may still be queued then: CUDA does not promise to wait.
    std::atomic<bool> unloaded{false};
    /// Static variables are a block's shared memory and the running thread's place, so one launch runs at a time.
    std::mutex execution;
    std::map<std::string, std::unique_ptr<Function>> functions;

    Module() = default;
    Module(const Module&) = delete;
    ~Module() {
        if (handle) dlclose(handle);
        if (file >= 0) close(file);
    }
};

struct Function {
    std::weak_ptr<Module> module;
    const PhalanxKernel* kernel = nullptr;
    size_t static_shared = 0;
    int dynamic_limit = SHARED_MEMORY;
    /// Whether its code is on the device. As with CUDA_MODULE_LOADING=LAZY, the default, it comes there at the first launch.
    std::atomic<bool> loaded{false};
};

std::mutex mutex;
using Guard = std::lock_guard<std::mutex>;

std::map<Module*, std::shared_ptr<Module>>& modules() {
    static auto* table = new std::map<Module*, std::shared_ptr<Module>>();
    return *table;
}
std::map<Function*, Module*>& functions() {
    static auto* table = new std::map<Function*, Module*>();
    return *table;
}

bool is_elf(const unsigned char* image) {
    return image && memcmp(image, ELFMAG, SELFMAG) == 0 && image[EI_CLASS] == ELFCLASS64;
}

/// cuModuleLoadData is not told an image's length; the table of sections ends it, as in what linkers write.
size_t length_of(const unsigned char* image) {
    const auto* header = (const Elf64_Ehdr*)image;
    return header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
}

/// Variables that are local to functions and static: what `__shared__` has become. Their names tell the function.
struct Local {
    std::string name;
    size_t offset, bytes;
};
std::vector<Local> shared_variables(const unsigned char* image) {
    const auto* header = (const Elf64_Ehdr*)image;
    const auto* sections = (const Elf64_Shdr*)(image + header->e_shoff);
    std::vector<Local> found;
    for (int s = 0; s < header->e_shnum; s++) {
        if (sections[s].sh_type != SHT_SYMTAB) continue;
        const char* names = (const char*)image + sections[sections[s].sh_link].sh_offset;
        const auto* symbols = (const Elf64_Sym*)(image + sections[s].sh_offset);
        for (size_t i = 0; i < sections[s].sh_size / sizeof(Elf64_Sym); i++) {
            const Elf64_Sym& symbol = symbols[i];
            if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || symbol.st_shndx == SHN_UNDEF ||
                symbol.st_shndx >= header->e_shnum)
                continue;
            const bool writable = sections[symbol.st_shndx].sh_flags & SHF_WRITE;
            const char* name = names + symbol.st_name;
            if (writable && strncmp(name, "_ZZ", 3) == 0) found.push_back({name, symbol.st_value, symbol.st_size});
        }
    }
    return found;
}

/// Opens an image as an object of its own; dlopen knows files, so it gets one in memory. The file stays open as long as
/// the module lives: dlopen compares names first, and the number must not name another module meanwhile.
bool open_image(const unsigned char* image, Module& module) {
    module.file = memfd_create("phalanx-module", MFD_CLOEXEC);
    const size_t length = length_of(image);
    for (size_t done = 0; done < length;) {
        const ssize_t n = write(module.file, image + done, length - done);
        if (n <= 0) {
            report("cuModuleLoadData: no memory for an image of %zu bytes", length);
            return false;
        }
        done += (size_t)n;
    }
    module.handle = dlopen(("/proc/self/fd/" + std::to_string(module.file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!module.handle) report("cuModuleLoadData: %s", dlerror());
    return module.handle != nullptr;
}

/// Whether memory holds what it did then.
bool same(const Snapshot& then, std::string& where) {
    for (size_t i = 0; i < then.regions.size(); i++) {
        const auto* now = (const unsigned char*)then.regions[i].start;
        if (memcmp(then.bytes[i].data(), now, then.bytes[i].size()) == 0) continue;
        size_t at = 0;
        while (then.bytes[i][at] == now[at]) at++;
        where = describe_address(then.regions[i].start + at);
        return false;
    }
    return true;
}

Result run_checked(const Launch& launch, Module& module) {
    static const bool races = environment_flag("PHALANX_STANDIN_RACES");
    if (module.unloaded) {
        report("kernel %s: its module was unloaded before it ran", launch.kernel);
        return launch_failed;
    }
    const Guard one_launch(module.execution);
    if (!races) {
        const Result result = run_launch(launch, module.state, Order::ascending);
        if (result != success) return result;
    } else {
        // Kept, as memory that is new each time would be most of the work.
        thread_local Snapshot before, other;
        take_snapshot(module.context, before);
        Result result = run_launch(launch, module.state, Order::descending);
        if (result != success) return result;
        take_snapshot(module.context, other);
        restore_snapshot(before);
        result = run_launch(launch, module.state, Order::ascending);
        if (result != success) return result;
        std::string where;
        if (!same(other, where)) {
            report(
                "kernel %s: the result depends on the order of threads or blocks, first at %s: a barrier is missing, "
                "or two threads "
                "write the same place",
                launch.kernel, where.c_str());
            return launch_failed;
        }
    }
    return check_red_zones(module.context, (std::string("kernel ") + launch.kernel).c_str()) ? success
                                                                                             : illegal_address;
}

/// The parameters of a launch, copied: the caller's may be gone when it runs.
struct Parameters {
    std::unique_ptr<unsigned char[]> bytes;
    std::vector<void*> pointers;

    Parameters(const PhalanxKernel& kernel, void** from) {
        size_t total = 0;
        std::vector<size_t> offsets;
        for (unsigned i = 0; i < kernel.parameter_count; i++) {
            const PhalanxParameter& p = kernel.parameters[i];
            total = (total + p.alignment - 1) / p.alignment * p.alignment;
            offsets.push_back(total);
            total += p.bytes;
        }
        bytes.reset(new unsigned char[total + 1]);
        for (unsigned i = 0; i < kernel.parameter_count; i++) {
            pointers.push_back(bytes.get() + offsets[i]);
            memcpy(pointers[i], from[i], kernel.parameters[i].bytes);
        }
    }
};

/// Finds a function and keeps its module alive.
Function* function_of(Function* handle, std::shared_ptr<Module>& module) {
    const Guard guard(mutex);
    const auto found = functions().find(handle);
    if (found == functions().end()) {
        report("a call names a function that does not exist, or whose module was unloaded");
        return nullptr;
    }
    module = modules()[found->second];
    return handle;
}

Result check_shape(const Function& f, const unsigned grid[3], const unsigned block[3], unsigned dynamic_shared) {
    const char* name = f.kernel->name;
    const uint64_t threads = (uint64_t)block[0] * block[1] * block[2];
    if (grid[0] == 0 || grid[0] > 0x7fffffffu || grid[1] == 0 || grid[1] > 65535 || grid[2] == 0 || grid[2] > 65535) {
        report("kernel %s: a grid of %u x %u x %u blocks is not possible", name, grid[0], grid[1], grid[2]);
        return invalid_value;
    }
    if (threads == 0 || threads > THREADS_PER_BLOCK || block[2] > 64) {
        report("kernel %s: a block of %u x %u x %u threads is not possible", name, block[0], block[1], block[2]);
        return invalid_value;
    }
    if (f.kernel->thread_limit && threads > f.kernel->thread_limit) {
        report("kernel %s: blocks of %zu threads, but __launch_bounds__ promises at most %u", name, (size_t)threads,
               f.kernel->thread_limit);
        return launch_out_of_resources;
    }
    if (dynamic_shared > (unsigned)f.dynamic_limit || dynamic_shared + f.static_shared > (size_t)SHARED_MEMORY_OPT_IN ||
        (f.dynamic_limit <= SHARED_MEMORY && dynamic_shared + f.static_shared > (size_t)SHARED_MEMORY)) {
        report(
            "kernel %s: %u bytes of dynamic and %zu of static shared memory are more than its limit "
            "(cuFuncSetAttribute)",
            name, dynamic_shared, f.static_shared);
        return invalid_value;
    }
    return success;
}

}  // namespace

API Result cuModuleLoadData(Module** loaded, const unsigned char* image) {
    WITH_CONTEXT(context);
    if (!loaded || !is_elf(image)) return invalid_image;
    if (forbidden_by_capture("cuModuleLoadData")) return capture_unsupported;
    auto module = std::make_shared<Module>();
    module->context = context;
    if (!open_image(image, *module)) return invalid_image;
    module->table = (const PhalanxModule*)dlsym(module->handle, "phalanx_module");
    if (!module->table || module->table->version != PHALANX_MODULE_VERSION) {
        report("cuModuleLoadData: the image is not one that the stand-in NVRTC made");
        return invalid_image;
    }
    Dl_info info{};
    dladdr(module->table, &info);
    module->state.place = module->table->place;
    module->state.hooks = module->table->hooks;
    const std::vector<Local> locals = shared_variables(image);
    for (const Local& l : locals) module->state.shared.push_back({(unsigned char*)info.dli_fbase + l.offset, l.bytes});
    for (unsigned i = 0; i < module->table->kernel_count; i++) {
        const PhalanxKernel& kernel = module->table->kernels[i];
        // A kernel without extern "C" has another name on a device.
        if (!dlsym(module->handle, kernel.name)) {
            report("kernel %s is not declared extern \"C\"", kernel.name);
            return invalid_image;
        }
        auto function = std::make_unique<Function>();
        function->module = module;
        function->kernel = &kernel;
        // Variables of functions that a kernel calls are not known to be the kernel's, so this is a lower bound.
        const std::string mine = "_ZZ" + std::to_string(strlen(kernel.name)) + kernel.name + "E";
        for (const Local& l : locals)
            if (l.name.compare(0, mine.size(), mine) == 0) function->static_shared += l.bytes;
        if (function->static_shared > (size_t)SHARED_MEMORY) {
            report("kernel %s has %zu bytes of static shared memory; %d are possible", kernel.name,
                   function->static_shared, SHARED_MEMORY);
            return invalid_image;
        }
        module->functions[kernel.name] = std::move(function);
    }
    *loaded = module.get();
    const Guard guard(mutex);
    for (const auto& [name, function] : module->functions) functions()[function.get()] = module.get();
    modules()[module.get()] = module;
    return success;
}

API Result cuModuleUnload(Module* handle) {
    WITH_CONTEXT(context);
    const Guard guard(mutex);
    const auto found = modules().find(handle);
    if (found == modules().end()) return invalid_handle;
    found->second->unloaded = true;
    for (const auto& [name, function] : found->second->functions) functions().erase(function.get());
    modules().erase(found);
    return success;
}

API Result cuModuleGetFunction(Function** function, Module* handle, const char* name) {
    WITH_CONTEXT(context);
    const Guard guard(mutex);
    const auto module = modules().find(handle);
    if (module == modules().end() || !function || !name) return invalid_handle;
    const auto found = module->second->functions.find(name);
    if (found == module->second->functions.end()) return not_found;
    *function = found->second.get();
    return success;
}

API Result cuModuleGetFunctionCount(unsigned* count, Module* handle) {
    WITH_CONTEXT(context);
    const Guard guard(mutex);
    const auto module = modules().find(handle);
    if (module == modules().end() || !count) return invalid_handle;
    *count = (unsigned)module->second->functions.size();
    return success;
}

API Result cuModuleEnumerateFunctions(Function** functions, unsigned most, Module* handle) {
    WITH_CONTEXT(context);
    const Guard guard(mutex);
    const auto module = modules().find(handle);
    if (module == modules().end() || !functions) return invalid_handle;
    unsigned at = 0;
    for (const auto& [name, function] : module->second->functions)
        if (at < most) functions[at++] = function.get();
    return success;
}

API Result cuFuncLoad(Function* handle) {
    WITH_CONTEXT(context);
    std::shared_ptr<Module> module;
    Function* f = function_of(handle, module);
    if (!f) return invalid_handle;
    f->loaded = true;
    return success;
}

namespace {

/// Numbers of CU_FUNC_ATTRIBUTE_….
enum FunctionAttribute : int {
    max_threads_per_block = 0,
    shared_size = 1,
    const_size = 2,
    local_size = 3,
    registers = 4,
    ptx_version = 5,
    binary_version = 6,
    max_dynamic_shared_size = 8,
    preferred_carveout = 9,
};

}  // namespace

API Result cuFuncGetAttribute(int* value, FunctionAttribute attribute, Function* handle) {
    WITH_CONTEXT(context);
    std::shared_ptr<Module> module;
    const Function* f = function_of(handle, module);
    if (!f || !value) return invalid_handle;
    switch (attribute) {
        case max_threads_per_block:
            *value = f->kernel->thread_limit ? (int)f->kernel->thread_limit : THREADS_PER_BLOCK;
            break;
        case shared_size: *value = (int)f->static_shared; break;
        case const_size:
        case local_size: *value = 0; break;
        case registers: *value = 32; break;
        case ptx_version:
        case binary_version: *value = 90; break;
        case max_dynamic_shared_size: *value = f->dynamic_limit; break;
        case preferred_carveout: *value = -1; break;
        default: return invalid_value;
    }
    return success;
}

API Result cuFuncSetAttribute(Function* handle, FunctionAttribute attribute, int value) {
    WITH_CONTEXT(context);
    std::shared_ptr<Module> module;
    Function* f = function_of(handle, module);
    if (!f) return invalid_handle;
    if (attribute == preferred_carveout) return success;
    if (attribute != max_dynamic_shared_size || value < 0 || value + f->static_shared > (size_t)SHARED_MEMORY_OPT_IN)
        return invalid_value;
    f->dynamic_limit = value;
    return success;
}

API Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* handle, int threads,
                                                       size_t dynamic_shared) {
    WITH_CONTEXT(context);
    std::shared_ptr<Module> module;
    const Function* f = function_of(handle, module);
    if (!f || !blocks || threads <= 0) return invalid_value;
    const size_t shared = f->static_shared + dynamic_shared;
    const int by_threads = THREADS_PER_MULTIPROCESSOR / ((threads + 31) / 32 * 32);
    const int by_memory = shared ? (int)(SHARED_MEMORY_OF_MULTIPROCESSOR / (shared + 1024)) : 32;
    *blocks = by_threads < by_memory ? by_threads : by_memory;
    return success;
}

namespace {

bool may_load(Context& context, const char* code) {
    if (context.collectives == 0) return true;
    report("%s is used for the first time while collectives are on their way", code);
    return false;
}

}  // namespace

API int phalanx_standin_load(const char* code) {
    static std::mutex known_mutex;
    static std::set<std::pair<Context*, std::string>> known;
    WITH_CONTEXT(context);
    const std::lock_guard<std::mutex> guard(known_mutex);
    return known.emplace(context, code).second && !may_load(*context, code) ? 1 : 0;
}

API std::atomic<int>* phalanx_standin_collectives() {
    Context* context = nullptr;
    return current_context(context) ? nullptr : &context->collectives;
}

API Result cuLaunchKernel(Function* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned dynamic_shared, Stream* stream,
                          void** parameters, void** extra) {
    WITH_CONTEXT(context);
    std::shared_ptr<Module> module;
    Function* f = function_of(handle, module);
    if (!f) return invalid_handle;
    if (module->context != context) {
        report("kernel %s belongs to another context than the current one", f->kernel->name);
        return invalid_handle;
    }
    if (extra || (!parameters && f->kernel->parameter_count > 0)) {
        report("kernel %s: parameters must be given as kernelParams", f->kernel->name);
        return invalid_value;
    }
    Launch launch{f->kernel->name, f->kernel->run, nullptr, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z},
                  dynamic_shared};
    if (Result wrong = check_shape(*f, launch.grid, launch.block, dynamic_shared)) return wrong;
    // Code comes to the device when nothing runs there.
    if (!f->loaded) {
        if (!may_load(*context, f->kernel->name)) return launch_failed;
        if (Result failed = finish_all(context)) return failed;
    }
    f->loaded = true;
    const auto copied = std::make_shared<Parameters>(*f->kernel, parameters);
    return enqueue(stream, [launch, copied, module] {
        Launch now = launch;
        now.parameters = copied->pointers.data();
        return (int)run_checked(now, *module);
    });
}
