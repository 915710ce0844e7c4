// The state of a launch that runs on this thread of the system: see engine.cpp.
#pragma once
#include <setjmp.h>
#include <stdint.h>

#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../kernel_abi.h"
#include "driver.h"
#include "fiber.h"

class Engine {
public:
    static Engine& mine();
    Engine();
    Result run(const Launch& launch, const ModuleState& module, Order order);
    /// "kernel f, block (0, 0, 0), thread (1, 0, 0)"
    std::string where() const;
    bool owns_stack_guard(uintptr_t at) const {
        for (const auto& s : stacks)
            if (s->guards(at)) return true;
        return false;
    }

private:
    friend class FaultGuard;

    enum class State : uint8_t { fresh, ready, at_barrier, in_warp, ended };
    struct Thread {
        State state = State::fresh;
        PhalanxWarp what = PhalanxWarp::sync;
        unsigned mask = 0, source = 0;
        uint64_t value = 0, answer = 0;
        Stack* stack = nullptr;
        Flow flow;
    };
    /// Lanes that have not ended, and those that wait in an operation of the warp.
    struct Warp {
        unsigned alive = 0, waiting = 0;
    };
    struct Aligned {
        void operator()(unsigned char* p) const { ::operator delete[](p, std::align_val_t(1024)); }
    };

    static void start_threads();
    void run_block();
    void resume(unsigned thread);
    void enter(unsigned thread);
    void end_thread();
    void wait(State state);
    int block_barrier(PhalanxVote vote, int predicate);
    uint64_t warp_exchange(PhalanxWarp what, unsigned mask, uint64_t value, unsigned source);
    void settle_lane(unsigned warp, unsigned lane);
    void settle_warp(unsigned warp);
    void finish_exchange(Thread* lanes, unsigned needed, PhalanxWarp what);
    void report_divergence();
    void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
    Stack* take_stack();
    unsigned nth(unsigned i) const { return order == Order::ascending ? i : count - 1 - i; }

    static const PhalanxHooks hooks;

    const Launch* launch = nullptr;
    const ModuleState* module = nullptr;
    PhalanxPlace* place = nullptr;
    Order order = Order::ascending;
    std::unique_ptr<unsigned char[], Aligned> dynamic_shared;

    std::vector<std::unique_ptr<Stack>> stacks;
    std::vector<Stack*> free_stacks;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Flow scheduler;
    /// The stack that a thread of the kernel runs on; none while the scheduler runs.
    Stack* current_stack = nullptr;
    unsigned current = 0, count = 0, started = 0, ended = 0, at_barrier = 0, votes = 0;
    PhalanxVote barrier_vote = PhalanxVote::none;
    bool resumed = false, failed = false, faulted = false;
};

/// While it lives, faults (SIGSEGV …) on this thread of the system end the launch: faults.cpp.
class FaultGuard {
public:
    explicit FaultGuard(Engine& engine);
    ~FaultGuard();
    FaultGuard(const FaultGuard&) = delete;
    sigjmp_buf& back() const;
    static void on_fault(int signal, void* information, void* context);
};
