// Device and pinned memory. A device pointer is an address of the process. Each buffer lies in a mapping of its own:
//
//   | no access | … red zone | data | slack | no access |
//
// The data begins at a multiple of 512 bytes and ends as near to the page without access as that allows. The red zone
// and the slack hold a pattern, which is checked after every kernel and when the buffer is freed. A freed buffer's
// addresses stay without access for a while, so that late uses are found.
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>

#include "driver.h"

namespace {

constexpr size_t ALIGNMENT = 512, RED_ZONE = 512;
/// 0xff… is a NaN in every floating type, so what was never written is seen in results.
constexpr int POISON = 0xff, RED = 0xc5;
/// A buffer larger than this is poisoned in its first and last 16 MB only: touching all of it would take real memory.
constexpr size_t POISONED_WHOLLY = (size_t)256 << 20, POISONED_ENDS = (size_t)16 << 20;
/// How many freed buffers stay without access.
constexpr size_t QUARANTINE = 1024;

struct Block {
    Region region;
    unsigned char* mapping;
    size_t mapped;
    /// The end of the data's last 512 bytes, where access ends.
    Address limit() const { return region.start + (region.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }
};

std::recursive_mutex mutex;
using Guard = std::lock_guard<std::recursive_mutex>;

std::map<Address, Block>& live() {
    static auto* blocks = new std::map<Address, Block>();
    return *blocks;
}
std::deque<Block>& freed() {
    static auto* blocks = new std::deque<Block>();
    return *blocks;
}
std::map<Context*, size_t>& used() {
    static auto* bytes = new std::map<Context*, size_t>();
    return *bytes;
}

size_t page_size() {
    static const size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    return bytes;
}

Result map_block(Context* context, size_t bytes, bool host, Address& start) {
    const size_t page = page_size(), data = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t inner = (data + RED_ZONE + page - 1) / page * page, mapped = inner + 2 * page;
    void* mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return out_of_memory;
    unsigned char* first = (unsigned char*)mapping;
    if (mprotect(first + page, inner, PROT_READ | PROT_WRITE) != 0) {
        munmap(mapping, mapped);
        return out_of_memory;
    }
    start = (Address)(first + page + inner - data);
    Block block{{start, bytes, context, host}, first, mapped};
    unsigned char* at = (unsigned char*)start;
    memset(at - RED_ZONE, RED, RED_ZONE);
    memset(at + bytes, RED, data - bytes);
    if (!host) {
        const size_t ends = bytes <= POISONED_WHOLLY ? bytes : POISONED_ENDS;
        memset(at, POISON, ends);
        memset(at + bytes - ends, POISON, ends);
    }
    const Guard guard(mutex);
    live()[start] = block;
    return success;
}

/// The block whose mapping holds `at`, without access at its ends counted.
const Block* holder(const std::map<Address, Block>& blocks, Address at) {
    auto next = blocks.upper_bound(at);
    // The address may lie before a block's data, in its red zone.
    if (next != blocks.end() && at >= (Address)next->second.mapping) return &next->second;
    if (next == blocks.begin()) return nullptr;
    const Block& block = std::prev(next)->second;
    return at < (Address)block.mapping + block.mapped ? &block : nullptr;
}

std::string sized(const char* kind, const Block& block) {
    return std::string(kind) + (block.region.host ? "pinned block of " : "buffer of ") +
           std::to_string(block.region.bytes) + " bytes";
}

bool check_zone(const Block& block, unsigned char* at, size_t bytes, const char* who) {
    size_t wrong = 0;
    while (wrong < bytes && at[wrong] == RED) wrong++;
    if (wrong == bytes) return true;
    report("%s wrote out of bounds: %s", who, describe_address((Address)at + wrong).c_str());
    memset(at, RED, bytes);
    return false;
}

bool check_zones(const Block& block, const char* who) {
    unsigned char* at = (unsigned char*)block.region.start;
    // Both are looked at, so no short circuit.
    const bool before = check_zone(block, at - RED_ZONE, RED_ZONE, who);
    const bool behind =
        check_zone(block, at + block.region.bytes, block.limit() - (block.region.start + block.region.bytes), who);
    return before && behind;
}

Result release(Address start, bool host, const char* call) {
    const Guard guard(mutex);
    auto found = live().find(start);
    if (found == live().end() || found->second.region.host != host) {
        report("%s: %s is not the start of a live %s: %s", call, std::to_string(start).c_str(),
               host ? "pinned block" : "buffer", describe_address(start).c_str());
        return invalid_value;
    }
    const Block block = found->second;
    const bool clean = check_zones(block, call);
    if (!host) used()[block.region.context] -= block.region.bytes;
    live().erase(found);
    // A fresh mapping over the old one gives the memory back and leaves the addresses without access.
    mmap(block.mapping, block.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    freed().push_back(block);
    if (freed().size() > QUARANTINE) {
        munmap(freed().front().mapping, freed().front().mapped);
        freed().pop_front();
    }
    return clean ? success : illegal_address;
}

}  // namespace

bool find_region(Address at, Region& found) {
    const Guard guard(mutex);
    auto next = live().upper_bound(at);
    if (next == live().begin()) return false;
    const Region& region = std::prev(next)->second.region;
    if (at >= region.start + region.bytes) return false;
    found = region;
    return true;
}

std::string describe_address(Address at) {
    const Guard guard(mutex);
    if (at < page_size()) return "address " + std::to_string(at) + ", a null pointer";
    const Block* block = holder(live(), at);
    std::string kind = "a ";
    if (!block) {
        kind = "a freed ";
        for (const Block& b : freed())
            if (at >= (Address)b.mapping && at < (Address)b.mapping + b.mapped) block = &b;
    }
    if (!block) return "an address in no buffer";
    const Address start = block->region.start, end = start + block->region.bytes;
    if (at < start) return std::to_string(start - at) + " bytes before " + sized(kind.c_str(), *block);
    if (at >= end) return std::to_string(at - end) + " bytes behind the end of " + sized(kind.c_str(), *block);
    return "byte " + std::to_string(at - start) + " of " + sized(kind.c_str(), *block);
}

bool check_range(Address at, size_t bytes, const char* what, bool host_too) {
    if (bytes == 0) return true;
    Region region;
    if (find_region(at, region) && (host_too || !region.host)) {
        if (bytes <= region.start + region.bytes - at) return true;
        report("%s: %zu bytes from %s reach %zu bytes behind its end", what, bytes, describe_address(at).c_str(),
               bytes - (size_t)(region.start + region.bytes - at));
        return false;
    }
    report("%s: %zu bytes at 0x%zx lie in no live device memory: %s", what, bytes, (size_t)at,
           describe_address(at).c_str());
    return false;
}

bool check_red_zones(Context* context, const char* who) {
    const Guard guard(mutex);
    bool clean = true;
    for (const auto& [start, block] : live())
        if (block.region.context == context) clean &= check_zones(block, who);
    return clean;
}

void take_snapshot(Context* context, Snapshot& snapshot) {
    const Guard guard(mutex);
    snapshot.regions.clear();
    for (const auto& [start, block] : live()) {
        if (block.region.context != context || block.region.host) continue;
        const unsigned char* at = (const unsigned char*)start;
        const size_t i = snapshot.regions.size();
        snapshot.regions.push_back(block.region);
        if (snapshot.bytes.size() <= i) snapshot.bytes.emplace_back();
        snapshot.bytes[i].assign(at, at + block.region.bytes);
    }
}

void restore_snapshot(const Snapshot& snapshot) {
    for (size_t i = 0; i < snapshot.regions.size(); i++)
        memcpy((void*)snapshot.regions[i].start, snapshot.bytes[i].data(), snapshot.bytes[i].size());
}

extern "C" __attribute__((visibility("default"))) int phalanx_standin_check(const void* at, size_t bytes,
                                                                            const char* what) {
    return check_range((Address)at, bytes, what);
}

API Result cuMemAlloc_v2(Address* address, size_t bytes) {
    WITH_CONTEXT(context);
    if (!address || bytes == 0) return invalid_value;
    if (forbidden_by_capture("cuMemAlloc")) return capture_unsupported;
    {
        const Guard guard(mutex);
        if (bytes > device_memory() - used()[context]) return out_of_memory;
        used()[context] += bytes;
    }
    const Result result = map_block(context, bytes, false, *address);
    if (result != success) {
        const Guard guard(mutex);
        used()[context] -= bytes;
    }
    return result;
}

API Result cuMemFree_v2(Address address) {
    WITH_CONTEXT(context);
    if (address == 0) return success;
    if (forbidden_by_capture("cuMemFree")) return capture_unsupported;
    // The real call waits for the device, too.
    if (Result failed = finish_all(context)) return failed;
    return release(address, false, "cuMemFree");
}

API Result cuMemGetInfo_v2(size_t* unused, size_t* total) {
    WITH_CONTEXT(context);
    const Guard guard(mutex);
    *unused = device_memory() - used()[context];
    *total = device_memory();
    return success;
}

API Result cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    WITH_CONTEXT(context);
    if (!address || bytes == 0 || flags > 7) return invalid_value;
    Address start = 0;
    const Result result = map_block(context, bytes, true, start);
    *address = (void*)start;
    return result;
}

API Result cuMemFreeHost(void* address) {
    WITH_CONTEXT(context);
    if (Result failed = finish_all(context)) return failed;
    return release((Address)address, true, "cuMemFreeHost");
}

API Result cuMemHostGetDevicePointer_v2(Address* device, void* host, unsigned) {
    WITH_CONTEXT(context);
    Region region;
    if (!find_region((Address)host, region) || !region.host) return invalid_value;
    *device = (Address)host;
    return success;
}
