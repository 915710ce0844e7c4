// Tests of the stand-in for NCCL. The script gives these several devices.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "selftest.h"

struct UniqueId {
    char bytes[128];
};
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
    char rest[256];
};

extern "C" {
int ncclGetUniqueId(UniqueId*);
int ncclCommInitRank(Handle*, int, UniqueId, int);
int ncclCommInitRankConfig(Handle*, int, UniqueId, int, const Config*);
int ncclCommDestroy(Handle);
int ncclCommAbort(Handle);
int ncclCommGetAsyncError(Handle, int*);
int ncclAllReduce(const void*, void*, size_t, int, int, Handle, Handle);
int ncclReduceScatter(const void*, void*, size_t, int, int, Handle, Handle);
int ncclAllGather(const void*, void*, size_t, int, Handle, Handle);
int ncclBroadcast(const void*, void*, size_t, int, int, Handle, Handle);
int ncclSend(const void*, size_t, int, int, Handle, Handle);
int ncclRecv(void*, size_t, int, int, Handle, Handle);
int ncclGroupStart();
int ncclGroupEnd();
int cuStreamQuery(Handle);
}

namespace {

enum : int { FLOAT32 = 7, SUM = 0, MAXIMUM = 2, IN_PROGRESS = 7, NOT_READY = 600 };

struct Rank : Fixture {
    int rank, ranks;
    Handle communicator = nullptr;
    Rank(int rank, int ranks, const UniqueId& id) : Fixture(rank), rank(rank), ranks(ranks) {
        REQUIRE(ncclCommInitRank(&communicator, ranks, id, rank) == 0);
    }
    Device values(size_t count) const {
        std::vector<float> v(count);
        for (size_t i = 0; i < count; i++) v[i] = (float)(100 * rank + (int)i);
        return upload(v);
    }
    /// Waits until the communicator has an error.
    int error() const {
        int result = 0;
        for (int i = 0; i < 5000 && result == 0; i++) {
            REQUIRE(ncclCommGetAsyncError(communicator, &result) == 0);
            usleep(1000);
        }
        return result;
    }
};

/// Runs a function on a thread for each rank.
void with_ranks(int ranks, const std::function<void(const Rank&)>& run) {
    UniqueId id;
    REQUIRE(ncclGetUniqueId(&id) == 0);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; rank++)
        threads.emplace_back([=, &run] {
            const Rank me(rank, ranks, id);
            run(me);
        });
    for (auto& thread : threads) thread.join();
}

void nccl_collectives(const Fixture&) {
    with_ranks(3, [](const Rank& r) {
        const Device x = r.values(6), y = r.buffer(6 * 4), part = r.buffer(2 * 4), all = r.buffer(18 * 4);
        REQUIRE(ncclAllReduce((void*)x, (void*)y, 6, FLOAT32, SUM, r.communicator, r.stream) == 0);
        REQUIRE(ncclReduceScatter((void*)x, (void*)part, 2, FLOAT32, MAXIMUM, r.communicator, r.stream) == 0);
        REQUIRE(ncclAllGather((void*)x, (void*)all, 6, FLOAT32, r.communicator, r.stream) == 0);
        const auto sums = r.download<float>(y, 6), maxima = r.download<float>(part, 2),
                   gathered = r.download<float>(all, 18);
        for (int i = 0; i < 6; i++) REQUIRE(sums[(size_t)i] == (float)(300 + 3 * i));
        for (int i = 0; i < 2; i++) REQUIRE(maxima[(size_t)i] == (float)(200 + 2 * r.rank + i));
        for (int i = 0; i < 18; i++) REQUIRE(gathered[(size_t)i] == (float)(100 * (i / 6) + i % 6));
        // In place, from one rank to all.
        REQUIRE(ncclBroadcast((void*)x, (void*)x, 6, FLOAT32, 1, r.communicator, r.stream) == 0);
        REQUIRE(r.download<float>(x, 6)[5] == 105.0f);
        REQUIRE(ncclCommDestroy(r.communicator) == 0);
    });
}

void nccl_ring_of_grouped_sends(const Fixture&) {
    with_ranks(3, [](const Rank& r) {
        const Device x = r.values(4), y = r.buffer(16);
        REQUIRE(ncclGroupStart() == 0);
        REQUIRE(ncclSend((void*)x, 4, FLOAT32, (r.rank + 1) % 3, r.communicator, r.stream) == 0);
        REQUIRE(ncclRecv((void*)y, 4, FLOAT32, (r.rank + 2) % 3, r.communicator, r.stream) == 0);
        REQUIRE(ncclGroupEnd() == 0);
        REQUIRE(r.download<float>(y, 4)[1] == (float)(100 * ((r.rank + 2) % 3) + 1));
        REQUIRE(ncclCommDestroy(r.communicator) == 0);
    });
}

/// A captured collective is one of its own at each launch.
void nccl_in_a_graph(const Fixture&) {
    with_ranks(2, [](const Rank& r) {
        const Device x = r.upload(std::vector<float>(4, 1.0f));
        Handle graph = nullptr, executable = nullptr;
        REQUIRE(cuStreamBeginCapture_v2(r.stream, 2) == 0);
        REQUIRE(ncclAllReduce((void*)x, (void*)x, 4, FLOAT32, SUM, r.communicator, r.stream) == 0);
        REQUIRE(cuStreamEndCapture(r.stream, &graph) == 0 && cuGraphInstantiateWithFlags(&executable, graph, 0) == 0);
        for (int i = 0; i < 3; i++) REQUIRE(cuGraphLaunch(executable, r.stream) == 0);
        REQUIRE(r.download<float>(x, 4)[3] == 8.0f);
        REQUIRE(ncclCommDestroy(r.communicator) == 0);
    });
}

void nccl_between_processes(const Fixture&) {
    UniqueId id;
    REQUIRE(ncclGetUniqueId(&id) == 0);
    int pipes[2];
    REQUIRE(pipe(pipes) == 0);
    // The other process starts afresh: a fork of one with threads could not use them.
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipes[0], 0);
        execl("/proc/self/exe", "selftest", "nccl_second_process", nullptr);
        _exit(1);
    }
    REQUIRE(write(pipes[1], &id, sizeof id) == (ssize_t)sizeof id);
    const Rank r(0, 2, id);
    const Device x = r.values(5);
    REQUIRE(ncclAllReduce((void*)x, (void*)x, 5, FLOAT32, SUM, r.communicator, r.stream) == 0);
    REQUIRE(r.download<float>(x, 5)[4] == 108.0f);
    // It ends without leaving: the rest learns that.
    REQUIRE(r.error() == 6 && ncclCommAbort(r.communicator) == 0);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
}

void nccl_second_process(const Fixture&) {
    UniqueId id;
    // Run by itself there is nothing to join.
    if (isatty(0) || read(0, &id, sizeof id) != (ssize_t)sizeof id) return;
    const Rank r(1, 2, id);
    const Device x = r.values(5);
    REQUIRE(ncclAllReduce((void*)x, (void*)x, 5, FLOAT32, SUM, r.communicator, r.stream) == 0);
    REQUIRE(r.download<float>(x, 5)[4] == 108.0f);
    _exit(0);
}

void nccl_mismatch_is_found(const Fixture&) {
    with_ranks(2, [](const Rank& r) {
        const Device x = r.values(6);
        REQUIRE(ncclAllReduce((void*)x, (void*)x, r.rank == 0 ? 6 : 5, FLOAT32, SUM, r.communicator, r.stream) == 0);
        REQUIRE(r.error() == 5);
        // The work hangs until the communicator is aborted, and then counts as done.
        REQUIRE(cuStreamQuery(r.stream) == NOT_READY && ncclCommAbort(r.communicator) == 0 &&
                cuStreamSynchronize(r.stream) == 0);
    });
}

void nccl_two_ranks_on_a_device_are_found(const Fixture& f) {
    UniqueId id;
    REQUIRE(ncclGetUniqueId(&id) == 0 && f.context);
    Config config{sizeof(Config), 0xcafebeef, 22800, 0, {}};
    Handle first = nullptr, second = nullptr;
    REQUIRE(ncclCommInitRankConfig(&first, 2, id, 0, &config) == IN_PROGRESS &&
            ncclCommInitRank(&second, 2, id, 1) == 5);
}

/// A peer that never comes: the call returns, the stream is not done, and abort ends it.
void nccl_missing_peer_can_be_aborted(const Fixture&) {
    with_ranks(2, [](const Rank& r) {
        const Device x = r.values(6);
        if (r.rank == 1) {
            REQUIRE(ncclAllReduce((void*)x, (void*)x, 6, FLOAT32, SUM, r.communicator, r.stream) == 0);
            usleep(20000);
            REQUIRE(cuStreamQuery(r.stream) == NOT_READY && ncclCommAbort(r.communicator) == 0);
            REQUIRE(cuStreamQuery(r.stream) == 0);
        }
    });
    UniqueId id;
    REQUIRE(ncclGetUniqueId(&id) == 0);
    Config config{sizeof(Config), 0xcafebeef, 22800, 0, {}};
    Handle lonely = nullptr;
    int state = 0;
    REQUIRE(ncclCommInitRankConfig(&lonely, 2, id, 0, &config) == IN_PROGRESS);
    REQUIRE(ncclCommGetAsyncError(lonely, &state) == 0 && state == IN_PROGRESS && ncclCommAbort(lonely) == 0);
}

void nccl_planned_fault_comes(const Fixture&) {
    setenv("PHALANX_STANDIN_NCCL_FAIL", "2@1", 1);
    with_ranks(2, [](const Rank& r) {
        const Device x = r.values(6);
        REQUIRE(ncclAllReduce((void*)x, (void*)x, 6, FLOAT32, SUM, r.communicator, r.stream) == 0);
        REQUIRE(cuStreamSynchronize(r.stream) == 0);
        REQUIRE(ncclAllReduce((void*)x, (void*)x, 6, FLOAT32, SUM, r.communicator, r.stream) == 0);
        int state = 0;
        REQUIRE(ncclCommGetAsyncError(r.communicator, &state) == 0 && state == (r.rank == 1 ? 2 : 0));
        REQUIRE(cuStreamQuery(r.stream) == NOT_READY && ncclCommAbort(r.communicator) == 0);
    });
}

}  // namespace

const std::vector<Entry> nccl_tests = {
    TEST(nccl_collectives),
    TEST(nccl_ring_of_grouped_sends),
    TEST(nccl_in_a_graph),
    TEST(nccl_between_processes),
    TEST(nccl_second_process),
    TEST(nccl_mismatch_is_found),
    TEST(nccl_two_ranks_on_a_device_are_found),
    TEST(nccl_missing_peer_can_be_aborted),
    TEST(nccl_planned_fault_comes),
};
