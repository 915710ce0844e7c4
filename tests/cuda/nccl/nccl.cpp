// The stand-in for NCCL: ranks are threads of a process or processes of a machine, one device each.
//
//   PHALANX_STANDIN_NCCL_FAIL=N        the N-th call on a communicator fails: it has an asynchronous error and hangs
//   PHALANX_STANDIN_NCCL_FAIL=N@RANK   on this rank only
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include <set>

#include "../standin.h"
#include "communicator.h"
#include "hub.h"
#include "order.h"
#include "reduce.h"

extern "C" int cuCtxGetDevice(int*);
extern "C" int cuDeviceGetUuid_v2(char*, int);
extern "C" int cuStreamIsCapturing(void*, int*);

namespace {

struct UniqueId {
    char bytes[128];
};

/// The beginning of ncclConfig_t; only this is looked at.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};
constexpr unsigned MAGIC = 0xcafebeef;

struct Handle {
    std::shared_ptr<Communicator> communicator;
};

/// Calls between ncclGroupStart and ncclGroupEnd, on this thread.
struct Group {
    int depth = 0;
    struct Bundle {
        std::shared_ptr<Communicator> communicator;
        void* stream;
        std::vector<Part> parts;
        uint64_t collectives = 0;
    };
    std::vector<Bundle> bundles;
    std::vector<std::shared_ptr<Communicator>> joining;
};
thread_local Group group;
thread_local std::string last_error;

std::mutex mutex;
std::set<Handle*>& handles() {
    static auto* live = new std::set<Handle*>();
    return *live;
}

Result refuse(Result result, const std::string& why) {
    last_error = why;
    standin::report("NCCL: " + why);
    return result;
}

std::shared_ptr<Communicator> communicator_of(Handle* handle) {
    const std::lock_guard<std::mutex> guard(mutex);
    if (handles().count(handle)) return handle->communicator;
    refuse(invalid_argument, "a communicator that does not exist, or was destroyed");
    return nullptr;
}

bool addresses_hold(const std::vector<Part>& parts) {
    for (const Part& p : parts) {
        if (!phalanx_standin_check(p.from, p.from_bytes, name_of(p.request.kind)) ||
            !phalanx_standin_check(p.to, p.to_bytes, name_of(p.request.kind)))
            return false;
    }
    return true;
}

bool is_pair(const Part& part) { return part.request.kind == Kind::send || part.request.kind == Kind::receive; }

/// Notes the order of calls that begin together. What is captured runs at a later time, if ever, and has none yet.
void note_order(const std::vector<Group::Bundle>& bundles) {
    std::vector<Calls> together;
    for (const auto& bundle : bundles) {
        int capturing = 0;
        if (cuStreamIsCapturing(bundle.stream, &capturing) != 0 || capturing) continue;
        Calls calls{bundle.communicator.get(), {}};
        for (const Part& part : bundle.parts)
            if (!is_pair(part)) calls.collectives.push_back(part.request);
        together.push_back(std::move(calls));
    }
    order_note(together);
}

/// Appends a group's calls on one communicator to its stream, as one piece of work.
Result launch(Group::Bundle bundle) {
    /// On its way until it was done once, or is thrown away.
    struct Work {
        Group::Bundle bundle;
        bool posted = false, first = true;
        std::atomic<int>* under_way = nullptr;
        void settle() {
            if (under_way) --*under_way;
            under_way = nullptr;
        }
        ~Work() { settle(); }
    };
    auto work = std::make_shared<Work>();
    if ((work->under_way = phalanx_standin_collectives())) ++*work->under_way;
    work->bundle = std::move(bundle);
    const int failed = standin::enqueue(work->bundle.stream, [work] {
        constexpr int NOT_READY = 600, ILLEGAL_ADDRESS = 700;
        auto& parts = work->bundle.parts;
        Communicator& c = *work->bundle.communicator;
        if (!work->posted) {
            if (!addresses_hold(parts)) return ILLEGAL_ADDRESS;
            c.begin_work();
            for (Part& part : parts) {
                // A graph's later launches are collectives of their own.
                if (!work->first && !is_pair(part)) part.request.collective = c.next_collective();
                c.post(part);
            }
            work->posted = true;
        }
        if (!c.finish(parts)) return NOT_READY;
        work->posted = work->first = false;
        work->settle();
        c.end_work();
        return 0;
    });
    return failed ? refuse((Result)1, "the work could not be given to its stream") : success;
}

/// Takes one call: alone it is a group of itself.
Result submit(Handle* handle, Part part, void* stream) {
    const auto communicator = communicator_of(handle);
    if (!communicator) return invalid_argument;
    const Result state = communicator->state();
    if (state == in_progress)
        return refuse(invalid_usage, std::string(name_of(part.request.kind)) + " before all ranks have joined");
    if (state != success) return state;
    if (!bytes_of_type(part.request.type))
        return refuse(invalid_argument, "element type " + std::to_string(part.request.type));
    if (!is_operation(part.request.operation))
        return refuse(invalid_argument, "operation " + std::to_string(part.request.operation));
    const int peer = part.request.peer;
    if (peer < 0 || peer >= communicator->ranks)
        return refuse(invalid_argument, "rank " + std::to_string(peer) + " of " + std::to_string(communicator->ranks));
    if (!addresses_hold({part})) return invalid_argument;
    communicator->count_call();
    const bool pair = is_pair(part);
    if (!pair) part.request.collective = communicator->next_collective();

    Group::Bundle* bundle = nullptr;
    for (auto& b : group.bundles)
        if (b.communicator == communicator) bundle = &b;
    if (group.depth == 0) {
        const Group::Bundle alone{communicator, stream, {part}, 1};
        note_order({alone});
        return launch(alone);
    }
    if (!bundle) {
        group.bundles.push_back({communicator, stream, {}, 0});
        bundle = &group.bundles.back();
    }
    if (bundle->stream != stream)
        return refuse(invalid_usage,
                      "a group uses one communicator on several streams, which the stand-in does not know");
    part.request.place = pair ? 0 : bundle->collectives++;
    bundle->parts.push_back(part);
    return success;
}

Part part_of(Kind kind, const void* from, size_t from_count, void* to, size_t to_count, size_t count, int type,
             int operation, int peer) {
    Part part{};
    part.request.kind = kind;
    part.request.type = type;
    part.request.operation = operation;
    part.request.peer = peer;
    part.request.count = count;
    part.from = from, part.from_bytes = from_count * bytes_of_type(type);
    part.to = to, part.to_bytes = to_count * bytes_of_type(type);
    return part;
}

/// Whether two ranges share bytes, other than as the same place in the larger one that in-place calls allow.
Result check_overlap(const char* call, const void* small, size_t bytes, const void* large, size_t large_bytes,
                     size_t in_place_at) {
    const auto s = (uintptr_t)small, l = (uintptr_t)large;
    if (s == l + in_place_at || s + bytes <= l || l + large_bytes <= s || bytes == 0) return success;
    return refuse(invalid_argument, std::string(call) + ": source and target overlap, and not as an in-place call");
}

}  // namespace

API Result ncclGetVersion(int* version) {
    if (!version) return invalid_argument;
    *version = (int)standin_version("NCCL", 22800);
    return success;
}

API const char* ncclGetErrorString(Result result) {
    switch (result) {
        case success: return "no error";
        case system_error: return "unhandled system error";
        case internal_error: return "internal error";
        case invalid_argument: return "invalid argument";
        case invalid_usage: return "invalid usage";
        case remote_error: return "remote process exited or there was a network error";
        case in_progress: return "NCCL operation in progress";
    }
    return "unknown result code";
}

API const char* ncclGetLastError(Handle*) { return last_error.c_str(); }

API Result ncclGetUniqueId(UniqueId* id) {
    if (!id) return invalid_argument;
    memset(id, 0, sizeof *id);
    unsigned char random[16];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return system_error;
    std::string name = "phalanx-standin-nccl-";
    for (unsigned char byte : random) {
        char hex[3];
        snprintf(hex, sizeof hex, "%02x", byte);
        name += hex;
    }
    name.copy(id->bytes, sizeof id->bytes - 1);
    return start_hub(name) ? success : refuse(system_error, "ncclGetUniqueId: no socket");
}

API Result ncclCommInitRankConfig(Handle** handle, int ranks, UniqueId id, int rank, const Config* config) {
    if (!handle || ranks < 1 || rank < 0 || rank >= ranks)
        return refuse(invalid_argument,
                      "ncclCommInitRank: rank " + std::to_string(rank) + " of " + std::to_string(ranks));
    if (config && config->magic != MAGIC)
        return refuse(invalid_argument, "ncclCommInitRankConfig: the configuration was not initialized");
    int device = -1;
    char uuid[16];
    if (cuCtxGetDevice(&device) != 0 || cuDeviceGetUuid_v2(uuid, device) != 0)
        return refuse(invalid_usage, "ncclCommInitRank: no current context");
    id.bytes[sizeof id.bytes - 1] = 0;
    // The last byte of the stand-in's identifiers is the device's number, whatever the process calls it.
    auto communicator = std::make_shared<Communicator>(id.bytes, ranks, rank, (unsigned char)uuid[15]);
    *handle = new Handle{communicator};
    {
        const std::lock_guard<std::mutex> guard(mutex);
        handles().insert(*handle);
    }
    if (config && config->blocking == 0) return in_progress;
    if (group.depth > 0) {
        group.joining.push_back(communicator);
        return success;
    }
    return communicator->wait_for_all();
}

API Result ncclCommInitRank(Handle** handle, int ranks, UniqueId id, int rank) {
    return ncclCommInitRankConfig(handle, ranks, id, rank, nullptr);
}

namespace {

Result remove(Handle* handle) {
    {
        const std::lock_guard<std::mutex> guard(mutex);
        handles().erase(handle);
    }
    delete handle;
    return success;
}

}  // namespace

API Result ncclCommFinalize(Handle* handle) { return communicator_of(handle) ? success : invalid_argument; }

API Result ncclCommDestroy(Handle* handle) {
    const auto communicator = communicator_of(handle);
    if (!communicator) return invalid_argument;
    if (!communicator->leave())
        return refuse(invalid_usage, "ncclCommDestroy while work is not done: ncclCommAbort ends that");
    return remove(handle);
}

API Result ncclCommAbort(Handle* handle) {
    const auto communicator = communicator_of(handle);
    if (!communicator) return invalid_argument;
    communicator->abort();
    return remove(handle);
}

API Result ncclCommGetAsyncError(Handle* handle, Result* error) {
    const auto communicator = communicator_of(handle);
    if (!communicator || !error) return invalid_argument;
    *error = communicator->state();
    return success;
}

API Result ncclCommCount(Handle* handle, int* count) {
    const auto communicator = communicator_of(handle);
    if (!communicator || !count) return invalid_argument;
    *count = communicator->ranks;
    return success;
}

API Result ncclCommUserRank(Handle* handle, int* rank) {
    const auto communicator = communicator_of(handle);
    if (!communicator || !rank) return invalid_argument;
    *rank = communicator->rank;
    return success;
}

API Result ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Handle* handle,
                         void* stream) {
    const size_t bytes = count * bytes_of_type(type);
    if (Result wrong = check_overlap("ncclAllReduce", from, bytes, to, bytes, 0)) return wrong;
    return submit(handle, part_of(Kind::all_reduce, from, count, to, count, count, type, operation, 0), stream);
}

API Result ncclReduceScatter(const void* from, void* to, size_t count, int type, int operation, Handle* handle,
                             void* stream) {
    const auto c = communicator_of(handle);
    if (!c) return invalid_argument;
    const size_t bytes = count * bytes_of_type(type), ranks = (size_t)c->ranks;
    if (Result wrong = check_overlap("ncclReduceScatter", to, bytes, from, ranks * bytes, (size_t)c->rank * bytes))
        return wrong;
    return submit(handle, part_of(Kind::reduce_scatter, from, ranks * count, to, count, count, type, operation, 0),
                  stream);
}

API Result ncclAllGather(const void* from, void* to, size_t count, int type, Handle* handle, void* stream) {
    const auto c = communicator_of(handle);
    if (!c) return invalid_argument;
    const size_t bytes = count * bytes_of_type(type), ranks = (size_t)c->ranks;
    if (Result wrong = check_overlap("ncclAllGather", from, bytes, to, ranks * bytes, (size_t)c->rank * bytes))
        return wrong;
    return submit(handle, part_of(Kind::all_gather, from, count, to, ranks * count, count, type, 0, 0), stream);
}

API Result ncclBroadcast(const void* from, void* to, size_t count, int type, int root, Handle* handle, void* stream) {
    const auto c = communicator_of(handle);
    if (!c) return invalid_argument;
    const size_t bytes = count * bytes_of_type(type);
    // Only the root's source is read.
    const size_t sent = c->rank == root ? count : 0;
    if (Result wrong = check_overlap("ncclBroadcast", from, sent ? bytes : 0, to, bytes, 0)) return wrong;
    return submit(handle, part_of(Kind::broadcast, from, sent, to, count, count, type, 0, root), stream);
}

API Result ncclSend(const void* from, size_t count, int type, int peer, Handle* handle, void* stream) {
    return submit(handle, part_of(Kind::send, from, count, nullptr, 0, count, type, 0, peer), stream);
}

API Result ncclRecv(void* to, size_t count, int type, int peer, Handle* handle, void* stream) {
    return submit(handle, part_of(Kind::receive, nullptr, 0, to, count, count, type, 0, peer), stream);
}

API Result ncclGroupStart() {
    group.depth++;
    return success;
}

API Result ncclGroupEnd() {
    if (group.depth == 0) return refuse(invalid_usage, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth > 0) return success;
    const Group ended = std::move(group);
    group = Group{};
    for (const auto& communicator : ended.joining)
        if (Result failed = communicator->wait_for_all()) return failed;
    note_order(ended.bundles);
    for (const auto& bundle : ended.bundles)
        if (Result failed = launch(bundle)) return failed;
    return success;
}
