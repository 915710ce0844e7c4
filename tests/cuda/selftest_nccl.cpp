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
int phalanx_standin_load(const char*);
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
void on_threads(int ranks, const std::function<void(int)>& run) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; rank++) threads.emplace_back([rank, &run] { run(rank); });
    for (auto& thread : threads) thread.join();
}

void with_ranks(int ranks, const std::function<void(const Rank&)>& run) {
    UniqueId id;
    REQUIRE(ncclGetUniqueId(&id) == 0);
    on_threads(ranks, [&](int rank) { run(Rank(rank, ranks, id)); });
}

/// Starts another process with one of these tests, which reads the ids. It starts afresh: a fork of one with threads could
/// not use them.
pid_t second_process(const char* test, const UniqueId* ids, size_t count) {
    int pipes[2];
    REQUIRE(pipe(pipes) == 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipes[0], 0);
        execl("/proc/self/exe", "selftest", test, nullptr);
        _exit(1);
    }
    REQUIRE(write(pipes[1], ids, count * sizeof *ids) == (ssize_t)(count * sizeof *ids));
    return child;
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
    const pid_t child = second_process("nccl_second_process", &id, 1);
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

/// Code may come to a device that is at rest, and is there from then on.
void nccl_code_that_comes_behind_a_collective_is_found(const Fixture&) {
    with_ranks(2, [](const Rank& r) {
        if (r.rank == 0) return;
        const Device x = r.values(6);
        REQUIRE(phalanx_standin_load("early") == 0);
        REQUIRE(ncclAllReduce((void*)x, (void*)x, 6, FLOAT32, SUM, r.communicator, r.stream) == 0);
        REQUIRE(phalanx_standin_load("early") == 0 && phalanx_standin_load("late") == 1);
        REQUIRE(ncclCommAbort(r.communicator) == 0 && cuStreamSynchronize(r.stream) == 0);
        REQUIRE(phalanx_standin_load("later") == 0);
    });
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

/// Two ranks with two communicators, `a` and `b`.
struct Pair : Rank {
    Handle a = communicator, b = nullptr;
    UniqueId second;
    Device x = upload(std::vector<float>(4, 1.0f)), y = upload(std::vector<float>(4, 1.0f));
    Pair(int rank, const UniqueId& first, const UniqueId& second) : Rank(rank, 2, first), second(second) {}
    void join_second() { REQUIRE(ncclCommInitRank(&b, 2, second, rank) == 0); }
    /// On a stream of its own, so one does not keep the other from running.
    int on_a() const { return ncclAllReduce((void*)x, (void*)x, 4, FLOAT32, SUM, a, stream); }
    int on_b() const { return ncclAllReduce((void*)y, (void*)y, 4, FLOAT32, SUM, b, other); }
    void finish_a() const { REQUIRE(cuStreamSynchronize(stream) == 0 && state(a) == 0); }
    void finish_b() const { REQUIRE(cuStreamSynchronize(other) == 0 && state(b) == 0); }
    static int state(Handle of) {
        int result = 0;
        REQUIRE(ncclCommGetAsyncError(of, &result) == 0);
        return result;
    }
    /// One of them gets the error at least; the other's calls may be left alone.
    void fail_and_abort() const {
        for (int i = 0; i < 5000 && state(a) == 0 && state(b) == 0; i++) usleep(1000);
        REQUIRE(state(a) == 5 || state(b) == 5);
        REQUIRE(ncclCommAbort(a) == 0 && ncclCommAbort(b) == 0);
        REQUIRE(cuStreamSynchronize(stream) == 0 && cuStreamSynchronize(other) == 0);
    }
    void destroy() const { REQUIRE(ncclCommDestroy(a) == 0 && ncclCommDestroy(b) == 0); }
};

void with_pairs(const std::function<void(Pair&)>& run) {
    UniqueId first, second;
    REQUIRE(ncclGetUniqueId(&first) == 0 && ncclGetUniqueId(&second) == 0);
    on_threads(2, [&](int rank) {
        Pair me(rank, first, second);
        run(me);
    });
}

void nccl_two_communicators_in_one_order(const Fixture&) {
    with_pairs([](Pair& p) {
        p.join_second();
        for (int i = 0; i < 3; i++) REQUIRE(p.on_a() == 0 && p.on_b() == 0 && p.on_b() == 0);
        REQUIRE(p.on_b() == 0 && p.on_a() == 0);
        p.finish_a(), p.finish_b();
        REQUIRE(p.download<float>(p.x, 4)[3] == 16.0f && p.download<float>(p.y, 4)[3] == 128.0f);
        p.destroy();
    });
}

void nccl_opposite_orders_are_found(const Fixture&) {
    with_pairs([](Pair& p) {
        p.join_second();
        REQUIRE(p.on_b() == 0 && p.on_a() == 0);
        // The error may come while calls are made.
        if (p.rank == 0)
            p.on_a(), p.on_b();
        else
            p.on_b(), p.on_a();
        p.fail_and_abort();
    });
}

/// As in a program with one stream: neither communicator has all its data then, ever.
void nccl_opposite_orders_on_one_stream_are_found(const Fixture&) {
    with_pairs([](Pair& p) {
        p.join_second();
        p.other = p.stream;
        if (p.rank == 0)
            p.on_a(), p.on_b();
        else
            p.on_b(), p.on_a();
        p.fail_and_abort();
    });
}

/// What a group holds counts as called at once, for what comes later too.
void nccl_orders_in_a_group_are_free(const Fixture&) {
    with_pairs([](Pair& p) {
        p.join_second();
        for (int i = 0; i < 2; i++) {
            REQUIRE(ncclGroupStart() == 0);
            if (p.rank == 0)
                REQUIRE(p.on_a() == 0 && p.on_a() == 0 && p.on_b() == 0);
            else
                REQUIRE(p.on_b() == 0 && p.on_a() == 0 && p.on_a() == 0);
            REQUIRE(ncclGroupEnd() == 0 && p.on_a() == 0 && p.on_b() == 0);
        }
        p.finish_a(), p.finish_b();
        p.destroy();
    });
}

void nccl_order_of_groups_is_found(const Fixture&) {
    with_pairs([](Pair& p) {
        p.join_second();
        if (p.rank == 0) p.on_a();
        REQUIRE(ncclGroupStart() == 0);
        p.on_b(), p.on_b();
        REQUIRE(ncclGroupEnd() == 0);
        if (p.rank == 1) p.on_a();
        p.fail_and_abort();
    });
}

/// Sends go where they like: only their ends wait.
void nccl_sends_have_no_order(const Fixture&) {
    with_pairs([](Pair& p) {
        p.join_second();
        const auto send = [&p] {
            const int status = p.rank == 0 ? ncclSend((void*)p.y, 4, FLOAT32, 1, p.b, p.other)
                                           : ncclRecv((void*)p.y, 4, FLOAT32, 0, p.b, p.other);
            REQUIRE(status == 0);
        };
        if (p.rank == 0) send();
        REQUIRE(p.on_a() == 0);
        if (p.rank == 1) send();
        p.finish_a(), p.finish_b();
        p.destroy();
    });
}

/// A rank compares only communicators that it has at the time of a call.
void nccl_order_with_a_later_or_ended_communicator(const Fixture&) {
    with_pairs([](Pair& p) {
        if (p.rank == 0) {
            REQUIRE(p.on_a() == 0);
            p.join_second();
        } else {
            p.join_second();
            REQUIRE(p.on_b() == 0 && p.on_a() == 0);
        }
        p.finish_a();
        // Here rank 0 has ended it, and rank 1 calls once more before the next on the other one.
        if (p.rank == 0) {
            REQUIRE(ncclCommAbort(p.b) == 0 && p.on_a() == 0);
        } else {
            REQUIRE(p.on_b() == 0 && p.on_a() == 0);
        }
        p.finish_a();
        if (p.rank == 1) REQUIRE(ncclCommAbort(p.b) == 0 && cuStreamSynchronize(p.other) == 0);
        REQUIRE(ncclCommDestroy(p.a) == 0);
    });
}

/// When a graph runs, its calls have no order that is looked at, and none with calls of the time of the capture.
void nccl_captured_calls_have_no_order(const Fixture&) {
    with_pairs([](Pair& p) {
        p.join_second();
        Handle graph = nullptr, executable = nullptr;
        if (p.rank == 0) REQUIRE(p.on_a() == 0);
        REQUIRE(cuStreamBeginCapture_v2(p.other, 2) == 0 && p.on_b() == 0);
        REQUIRE(cuStreamEndCapture(p.other, &graph) == 0 && cuGraphInstantiateWithFlags(&executable, graph, 0) == 0);
        if (p.rank == 1) REQUIRE(p.on_a() == 0);
        for (int i = 0; i < 2; i++) REQUIRE(cuGraphLaunch(executable, p.other) == 0);
        p.finish_a(), p.finish_b();
        REQUIRE(p.download<float>(p.y, 4)[0] == 4.0f);
        p.destroy();
    });
}

/// The second process is rank 1 of two communicators, in the opposite order.
void nccl_opposite_orders_of_processes_are_found(const Fixture&) {
    UniqueId ids[2];
    REQUIRE(ncclGetUniqueId(&ids[0]) == 0 && ncclGetUniqueId(&ids[1]) == 0);
    const pid_t child = second_process("nccl_second_process_of_two_communicators", ids, 2);
    Pair p(0, ids[0], ids[1]);
    p.join_second();
    p.on_a(), p.on_b();
    p.fail_and_abort();
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
}

void nccl_second_process_of_two_communicators(const Fixture&) {
    UniqueId ids[2];
    if (isatty(0) || read(0, ids, sizeof ids) != (ssize_t)sizeof ids) return;
    Pair p(1, ids[0], ids[1]);
    p.join_second();
    p.on_b(), p.on_a();
    p.fail_and_abort();
    _exit(0);
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
    TEST(nccl_code_that_comes_behind_a_collective_is_found),
    TEST(nccl_planned_fault_comes),
    TEST(nccl_two_communicators_in_one_order),
    TEST(nccl_opposite_orders_are_found),
    TEST(nccl_opposite_orders_on_one_stream_are_found),
    TEST(nccl_orders_in_a_group_are_free),
    TEST(nccl_order_of_groups_is_found),
    TEST(nccl_sends_have_no_order),
    TEST(nccl_order_with_a_later_or_ended_communicator),
    TEST(nccl_captured_calls_have_no_order),
    TEST(nccl_opposite_orders_of_processes_are_found),
    TEST(nccl_second_process_of_two_communicators),
};
