// Copies and fills. A copy to or from pageable memory behaves as the real driver's: the source was read at return, the
// target was written at return.
#include <string.h>

#include "driver.h"

namespace {

bool is_pinned(const void* host) {
    Region region;
    return find_region((Address)host, region) && region.host;
}

bool check_host(const void* host, size_t bytes, const char* what) {
    Region region;
    if (!find_region((Address)host, region)) return true;
    if (region.host) return check_range((Address)host, bytes, what, true);
    report("%s: a device pointer is given as host memory", what);
    return false;
}

}  // namespace

API Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Stream* stream) {
    WITH_CONTEXT(context);
    const char* call = "cuMemcpyHtoDAsync";
    if (!check_range(to, bytes, call) || !check_host(from, bytes, call)) return invalid_value;
    if (is_pinned(from)) {
        return enqueue(stream, [=] {
            if (!check_range(to, bytes, call) || !check_host(from, bytes, call)) return (int)illegal_address;
            memcpy((void*)to, from, bytes);
            return (int)success;
        });
    }
    if (is_capturing(stream)) {
        report("%s: a captured copy from pageable memory would read it at each launch", call);
        return capture_unsupported;
    }
    const auto* bytes_of = (const unsigned char*)from;
    auto staged = std::make_shared<std::vector<unsigned char>>(bytes_of, bytes_of + bytes);
    return enqueue(stream, [=] {
        if (!check_range(to, bytes, call)) return (int)illegal_address;
        memcpy((void*)to, staged->data(), bytes);
        return (int)success;
    });
}

API Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Stream* stream) {
    WITH_CONTEXT(context);
    const char* call = "cuMemcpyDtoHAsync";
    if (!check_range(from, bytes, call) || !check_host(to, bytes, call)) return invalid_value;
    const bool pinned = is_pinned(to);
    if (!pinned && is_capturing(stream)) {
        report("%s: a captured copy to pageable memory would write it at each launch", call);
        return capture_unsupported;
    }
    const Result result = enqueue(stream, [=] {
        if (!check_range(from, bytes, call) || !check_host(to, bytes, call)) return (int)illegal_address;
        memcpy(to, (const void*)from, bytes);
        return (int)success;
    });
    return result == success && !pinned ? finish(stream) : result;
}

API Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream* stream) {
    WITH_CONTEXT(context);
    const char* call = "cuMemcpyDtoDAsync";
    if (!check_range(to, bytes, call) || !check_range(from, bytes, call)) return invalid_value;
    if (bytes > 0 && to < from + bytes && from < to + bytes) {
        report("%s: source and target overlap", call);
        return invalid_value;
    }
    return enqueue(stream, [=] {
        if (!check_range(to, bytes, call) || !check_range(from, bytes, call)) return (int)illegal_address;
        memcpy((void*)to, (const void*)from, bytes);
        return (int)success;
    });
}

API Result cuMemsetD8Async(Address to, unsigned char value, size_t count, Stream* stream) {
    WITH_CONTEXT(context);
    if (!check_range(to, count, "cuMemsetD8Async")) return invalid_value;
    return enqueue(stream, [=] {
        if (!check_range(to, count, "cuMemsetD8Async")) return (int)illegal_address;
        memset((void*)to, value, count);
        return (int)success;
    });
}

API Result cuMemsetD32Async(Address to, unsigned value, size_t count, Stream* stream) {
    WITH_CONTEXT(context);
    if (to % 4 != 0 || !check_range(to, 4 * count, "cuMemsetD32Async")) return invalid_value;
    return enqueue(stream, [=] {
        if (!check_range(to, 4 * count, "cuMemsetD32Async")) return (int)illegal_address;
        for (size_t i = 0; i < count; i++) ((unsigned*)to)[i] = value;
        return (int)success;
    });
}

// The calls that wait, on the context's own stream.

API Result cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    const Result result = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
    return result == success ? finish(nullptr) : result;
}

API Result cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    const Result result = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
    return result == success ? finish(nullptr) : result;
}
