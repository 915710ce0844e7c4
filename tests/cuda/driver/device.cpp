// Devices, contexts and errors, and what the environment says:
//
//   PHALANX_STANDIN_DEVICES          number of devices (1)
//   CUDA_VISIBLE_DEVICES             which of them the process sees, by number
//   PHALANX_STANDIN_MEMORY           bytes of each, with K, M or G behind it (4G)
//   PHALANX_STANDIN_DRIVER_VERSION   what cuDriverGetVersion answers (13000)
//   PHALANX_STANDIN_COMPUTE          the devices' compute capability (9.0)
//   PHALANX_STANDIN_STREAMS=1        streams run as late as possible (streams.cpp)
//   PHALANX_STANDIN_RACES=1          kernels run twice, in different orders (modules.cpp)
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

namespace {

std::atomic<bool> initialized{false};
thread_local Context* current = nullptr;

struct Uuid {
    char bytes[16];
};

/// The two numbers of a compute capability, which the environment may say.
constexpr int COMPUTE_MAJOR = 75, COMPUTE_MINOR = 76;

/// Numbers of other CU_DEVICE_ATTRIBUTE_…, and the answers.
struct Attribute {
    int number, value;
};
constexpr Attribute ATTRIBUTES[] = {
    {1, THREADS_PER_BLOCK},                 // threads of a block
    {2, 1024},                              // a block's width
    {3, 1024},                              // height
    {4, 64},                                // depth
    {5, 0x7fffffff},                        // a grid's width
    {6, 65535},                             // height
    {7, 65535},                             // depth
    {8, SHARED_MEMORY},                     // shared memory of a block
    {9, 65536},                             // constant memory
    {10, 32},                               // lanes of a warp
    {12, 65536},                            // registers of a block
    {13, 1000000},                          // kHz
    {16, MULTIPROCESSORS},                  // multiprocessors
    {36, 1000000},                          // kHz of the memory
    {37, 1024},                             // bits of the memory's bus
    {38, 4 << 20},                          // bytes of L2
    {39, THREADS_PER_MULTIPROCESSOR},       // threads of a multiprocessor
    {40, 2},                                // copy engines
    {41, 1},                                // unified addresses
    {78, 1},                                // priorities of streams
    {81, SHARED_MEMORY_OF_MULTIPROCESSOR},  // shared memory of a multiprocessor
    {82, 65536},                            // its registers
    {83, 0},                                // managed memory
    {95, 0},                                // cooperative launches: blocks run one after the other
    {97, SHARED_MEMORY_OPT_IN},             // shared memory of a block that asks for it
    {106, 32},                              // blocks of a multiprocessor
    {111, 0},                               // reserved shared memory of a block
    {115, 0},                               // memory pools
};

}  // namespace

std::string environment(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

bool environment_flag(const char* name) { return environment(name, "0") != "0"; }

void report(const char* format, ...) {
    // One write, so that lines of several threads stay whole.
    char text[1024] = "cuda stand-in: ";
    size_t length = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    const int more = vsnprintf(text + length, sizeof text - length - 1, format, arguments);
    va_end(arguments);
    if (more > 0) length = strlen(text);
    text[length] = '\n';
    fwrite(text, 1, length + 1, stderr);
    fflush(stderr);
}

API void phalanx_standin_report(const char* text) { report("%s", text); }

namespace {

/// Numbers of the devices that the process sees, in its order; as with the real driver a wrong number ends the list.
const std::vector<int>& visible_devices() {
    static const std::vector<int> visible = [] {
        std::vector<int> numbers;
        const int count = atoi(environment("PHALANX_STANDIN_DEVICES", "1").c_str());
        const char* named = getenv("CUDA_VISIBLE_DEVICES");
        for (int i = 0; !named && i < count; i++) numbers.push_back(i);
        for (const char* at = named; at && *at;) {
            char* end = nullptr;
            const long number = strtol(at, &end, 10);
            if (end == at || number < 0 || number >= count) break;
            numbers.push_back((int)number);
            at = *end == ',' ? end + 1 : end;
        }
        return numbers;
    }();
    return visible;
}

}  // namespace

int device_count() { return (int)visible_devices().size(); }

size_t device_memory() {
    static const size_t bytes = [] {
        const std::string text = environment("PHALANX_STANDIN_MEMORY", "4G");
        char* unit = nullptr;
        const size_t number = strtoull(text.c_str(), &unit, 10);
        return number << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : *unit == 'G' ? 30 : 0);
    }();
    return bytes;
}

Context* primary_context(int device) {
    static Context contexts[64];
    contexts[device].device = device;
    return &contexts[device];
}

Result current_context(Context*& context) {
    context = current;
    if (!initialized) return not_initialized;
    if (!current) {
        report("a call without a current context: cuCtxSetCurrent is missing on this thread");
        return invalid_context;
    }
    return (Result)current->failure.load();
}

const char* error_name(int result) {
    switch (result) {
        case success: return "CUDA_SUCCESS";
        case invalid_value: return "CUDA_ERROR_INVALID_VALUE";
        case out_of_memory: return "CUDA_ERROR_OUT_OF_MEMORY";
        case not_initialized: return "CUDA_ERROR_NOT_INITIALIZED";
        case no_device: return "CUDA_ERROR_NO_DEVICE";
        case invalid_device: return "CUDA_ERROR_INVALID_DEVICE";
        case invalid_image: return "CUDA_ERROR_INVALID_IMAGE";
        case invalid_context: return "CUDA_ERROR_INVALID_CONTEXT";
        case invalid_handle: return "CUDA_ERROR_INVALID_HANDLE";
        case not_found: return "CUDA_ERROR_NOT_FOUND";
        case not_ready: return "CUDA_ERROR_NOT_READY";
        case illegal_address: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case launch_out_of_resources: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
        case launch_failed: return "CUDA_ERROR_LAUNCH_FAILED";
        case not_supported: return "CUDA_ERROR_NOT_SUPPORTED";
        case capture_unsupported: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        case capture_invalidated: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
        case capture_merge: return "CUDA_ERROR_STREAM_CAPTURE_MERGE";
        case capture_unmatched: return "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED";
        case capture_unjoined: return "CUDA_ERROR_STREAM_CAPTURE_UNJOINED";
        case capture_isolation: return "CUDA_ERROR_STREAM_CAPTURE_ISOLATION";
        case captured_event: return "CUDA_ERROR_CAPTURED_EVENT";
        case capture_wrong_thread: return "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD";
        case unknown: return "CUDA_ERROR_UNKNOWN";
    }
    return nullptr;
}

API Result cuGetErrorName(int result, const char** name) {
    *name = error_name(result);
    return *name ? success : invalid_value;
}

API Result cuGetErrorString(int result, const char** text) { return cuGetErrorName(result, text); }

API Result cuInit(unsigned flags) {
    if (flags != 0) return invalid_value;
    if (device_count() <= 0) return no_device;
    initialized = true;
    return success;
}

API Result cuDriverGetVersion(int* version) {
    *version = atoi(environment("PHALANX_STANDIN_DRIVER_VERSION", "13000").c_str());
    return success;
}

API Result cuDeviceGetCount(int* count) {
    if (!initialized) return not_initialized;
    *count = device_count();
    return success;
}

namespace {

Result check_device(int device) {
    if (!initialized) return not_initialized;
    return device >= 0 && device < device_count() && device < 64 ? success : invalid_device;
}

}  // namespace

API Result cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return check_device(ordinal);
}

API Result cuDeviceGetName(char* name, int length, int device) {
    snprintf(name, (size_t)length, "CUDA stand-in");
    return check_device(device);
}

API Result cuDeviceGetUuid_v2(Uuid* uuid, int device) {
    if (Result wrong = check_device(device)) return wrong;
    memcpy(uuid->bytes, "phalanx standin", 16);
    uuid->bytes[15] = (char)visible_devices()[(size_t)device];
    return success;
}

API Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = device_memory();
    return check_device(device);
}

API Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (Result wrong = check_device(device)) return wrong;
    if (attribute == COMPUTE_MAJOR || attribute == COMPUTE_MINOR) {
        int of[2] = {};
        sscanf(environment("PHALANX_STANDIN_COMPUTE", "9.0").c_str(), "%d.%d", &of[0], &of[1]);
        *value = of[attribute - COMPUTE_MAJOR];
        return success;
    }
    for (const Attribute& a : ATTRIBUTES) {
        if (a.number != attribute) continue;
        *value = a.value;
        return success;
    }
    report("cuDeviceGetAttribute: attribute %d has no value here yet (driver/device.cpp)", attribute);
    return invalid_value;
}

API Result cuDevicePrimaryCtxRetain(Context** context, int device) {
    if (Result wrong = check_device(device)) return wrong;
    *context = primary_context(device);
    return success;
}

API Result cuDevicePrimaryCtxRelease_v2(int device) { return check_device(device); }

API Result cuCtxSetCurrent(Context* context) {
    if (!initialized) return not_initialized;
    current = context;
    return success;
}

API Result cuCtxGetCurrent(Context** context) {
    if (!initialized) return not_initialized;
    *context = current;
    return success;
}

API Result cuCtxGetDevice(int* device) {
    WITH_CONTEXT(context);
    *device = context->device;
    return success;
}
