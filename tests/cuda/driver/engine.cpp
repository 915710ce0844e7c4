// Runs a kernel's blocks, one after the other, on the calling thread of the system.
//
// Threads of a block are started in order on one stack, as a plain loop. A thread that has to wait (at a barrier, in a
// warp operation) leaves its stack behind, and the loop goes on on another one; once all have started, those that can
// go on are continued in order, round after round. So a kernel without barriers never switches stacks. When nobody can
// go on, the barrier is divergent.
#include "engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".globl phalanx_switch\n"
    ".hidden phalanx_switch\n"
    ".type phalanx_switch,@function\n"
    "phalanx_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    subq $8, %rsp\n"
    "    stmxcsr (%rsp)\n"
    "    fnstcw 4(%rsp)\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    ldmxcsr (%rsp)\n"
    "    fldcw 4(%rsp)\n"
    "    addq $8, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size phalanx_switch,.-phalanx_switch\n");
#endif

namespace {

/// Behind the dynamic shared memory that a launch asked for, this many bytes hold a pattern.
constexpr size_t SHARED_RED_ZONE = 1024;
constexpr unsigned char SHARED_RED = 0xc5, SHARED_POISON = 0xff;

const char* name_of(PhalanxWarp what) {
    switch (what) {
        case PhalanxWarp::sync: return "__syncwarp";
        case PhalanxWarp::shuffle: return "a shuffle";
        case PhalanxWarp::ballot: return "a vote";
        case PhalanxWarp::match: return "__match_any_sync";
        default: return "__reduce_sync";
    }
}

uint64_t combine(PhalanxWarp what, uint64_t a, uint64_t b) {
    switch (what) {
        case PhalanxWarp::add: return a + b;
        case PhalanxWarp::min: return (uint32_t)a < (uint32_t)b ? a : b;
        case PhalanxWarp::max: return (uint32_t)a < (uint32_t)b ? b : a;
        case PhalanxWarp::min_signed: return (int64_t)a < (int64_t)b ? a : b;
        case PhalanxWarp::max_signed: return (int64_t)a < (int64_t)b ? b : a;
        case PhalanxWarp::bit_and: return a & b;
        case PhalanxWarp::bit_or: return a | b;
        case PhalanxWarp::bit_xor: return a ^ b;
        default: return a;
    }
}

}  // namespace

Engine& Engine::mine() {
    static thread_local Engine engine;
    return engine;
}

const PhalanxHooks Engine::hooks = {
    [](PhalanxVote vote, int predicate) { return mine().block_barrier(vote, predicate); },
    [](PhalanxWarp what, unsigned mask, uint64_t value, unsigned source) {
        return mine().warp_exchange(what, mask, value, source);
    },
    [] { return mine().warps[mine().current / 32].alive; },
    [](const char* why) { mine().fail("%s", why); },
};

Engine::Engine() {
    dynamic_shared.reset(new (std::align_val_t(1024)) unsigned char[SHARED_MEMORY_OPT_IN + SHARED_RED_ZONE]);
}

Result Engine::run(const Launch& what, const ModuleState& in, Order direction) {
    launch = &what;
    module = &in;
    order = direction;
    place = in.place;
    *in.hooks = &hooks;
    failed = resumed = false;
    current_stack = nullptr;
    count = what.block[0] * what.block[1] * what.block[2];
    // All threads of a block end, so the next block needs no fresh ones.
    threads.assign(count, Thread{});
    warps.resize((count + 31) / 32);
    place->block_size = {what.block[0], what.block[1], what.block[2]};
    place->grid_size = {what.grid[0], what.grid[1], what.grid[2]};
    place->dynamic_shared = dynamic_shared.get();
    memset(dynamic_shared.get() + what.dynamic_shared, SHARED_RED, SHARED_RED_ZONE);

    const FaultGuard guard(*this);
    // A fault in a kernel comes back here from the signal handler, with `failed` set. Nothing with a destructor lives
    // on the stacks that are dropped then.
    if (sigsetjmp(guard.back(), 0) == 0) {
        const uint64_t blocks = (uint64_t)what.grid[0] * what.grid[1] * what.grid[2];
        for (uint64_t i = 0; i < blocks && !failed; i++) {
            const uint64_t b = order == Order::ascending ? i : blocks - 1 - i;
            place->block = {(unsigned)(b % what.grid[0]), (unsigned)(b / what.grid[0] % what.grid[1]),
                            (unsigned)(b / what.grid[0] / what.grid[1])};
            run_block();
        }
    }
    if (failed) {
        // The waiting threads' stacks are free again.
        for (Thread& t : threads)
            if (t.stack) free_stacks.push_back(t.stack);
        if (current_stack) free_stacks.push_back(current_stack);
        current_stack = nullptr;
        for (Thread& t : threads) t.stack = nullptr;
        return faulted ? illegal_address : launch_failed;
    }
    return success;
}

void Engine::run_block() {
    for (const SharedVariable& v : module->shared) memset(v.at, SHARED_POISON, v.bytes);
    memset(dynamic_shared.get(), SHARED_POISON, launch->dynamic_shared);
    for (unsigned w = 0; w < warps.size(); w++) {
        const unsigned lanes = count - 32 * w;
        warps[w].alive = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        warps[w].waiting = 0;
    }
    started = ended = at_barrier = votes = 0;

    while (started < count && !failed) {
        current_stack = take_stack();
        if (!current_stack) return;
        Flow fresh;
        prepare(fresh, *current_stack, start_threads);
        switch_flow(scheduler, fresh);
        if (current_stack) free_stacks.push_back(current_stack);
        current_stack = nullptr;
    }
    while (ended < count && !failed) {
        bool moved = false;
        for (unsigned i = 0; i < count && !failed; i++) {
            const unsigned t = nth(i);
            if (threads[t].state != State::ready) continue;
            moved = true;
            resume(t);
        }
        if (!moved && !failed) report_divergence();
    }
    if (failed) return;
    const unsigned char* zone = dynamic_shared.get() + launch->dynamic_shared;
    if (zone[0] == SHARED_RED && memcmp(zone, zone + 1, SHARED_RED_ZONE - 1) == 0) return;
    size_t wrong = 0;
    while (zone[wrong] == SHARED_RED) wrong++;
    fail("a thread of this block wrote %zu bytes behind the end of %u bytes of dynamic shared memory", wrong,
         launch->dynamic_shared);
}

Stack* Engine::take_stack() {
    if (free_stacks.empty()) {
        stacks.push_back(std::make_unique<Stack>(stacks.size()));
        if (!stacks.back()->usable()) {
            stacks.pop_back();
            fail("no memory for the stacks of %u threads", count);
            return nullptr;
        }
        return stacks.back().get();
    }
    Stack* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
}

/// The loop on a fresh stack: it starts one thread after the other until one of them waits; that one's continuation
/// goes on with the loop, so it ends only when all have started.
void Engine::start_threads() {
    Engine& e = mine();
    while (e.started < e.count && !e.failed) {
        e.enter(e.nth(e.started++));
        e.launch->run(e.launch->parameters);
        e.end_thread();
        // The thread had been continued after a wait: this stack is no more the one that starts threads.
        if (e.resumed) break;
    }
    Flow never;
    switch_flow(never, e.scheduler);
    __builtin_unreachable();
}

void Engine::enter(unsigned thread) {
    current = thread;
    const unsigned bx = launch->block[0], by = launch->block[1];
    place->thread = bx == count ? uint3{thread, 0, 0} : uint3{thread % bx, thread / bx % by, thread / bx / by};
}

void Engine::resume(unsigned t) {
    Thread& thread = threads[t];
    enter(t);
    resumed = true;
    current_stack = thread.stack;
    thread.stack = nullptr;
    switch_flow(scheduler, thread.flow);
    // The thread either waits again, and keeps its stack, or ended.
    if (current_stack) free_stacks.push_back(current_stack);
    current_stack = nullptr;
    resumed = false;
}

void Engine::end_thread() {
    threads[current].state = State::ended;
    ended++;
    Warp& warp = warps[current / 32];
    warp.alive &= ~(1u << (current % 32));
    // Votes and __syncwarp go on without a lane that has ended; a shuffle that names it has no value to read.
    if (warp.waiting) settle_warp(current / 32);
}

/// Leaves the stack until the scheduler continues this thread.
void Engine::wait(State state) {
    const unsigned thread = current;
    threads[thread].state = state;
    threads[thread].stack = current_stack;
    current_stack = nullptr;
    switch_flow(threads[thread].flow, scheduler);
}

int Engine::block_barrier(PhalanxVote vote, int predicate) {
    Thread& thread = threads[current];
    if (at_barrier > 0 && vote != barrier_vote)
        fail("the threads of the block wait at different kinds of __syncthreads");
    barrier_vote = vote;
    votes += predicate != 0;
    if (++at_barrier < count) {
        wait(State::at_barrier);
        return thread.answer;
    }
    const unsigned sum = votes;
    const int answer = vote == PhalanxVote::count ? (int)sum : vote == PhalanxVote::all ? sum == count : sum > 0;
    at_barrier = votes = 0;
    for (Thread& t : threads) {
        t.answer = (uint64_t)answer;
        if (t.state == State::at_barrier) t.state = State::ready;
    }
    // The last thread waits for its turn as well, so that after a barrier all go on in order.
    wait(State::ready);
    return answer;
}

uint64_t Engine::warp_exchange(PhalanxWarp what, unsigned mask, uint64_t value, unsigned source) {
    Thread& thread = threads[current];
    const unsigned lane = current % 32;
    if (!(mask >> lane & 1))
        fail("lane %u calls %s with the mask 0x%08x, which does not name it", lane, name_of(what), mask);
    thread.what = what;
    thread.mask = mask;
    thread.value = value;
    thread.source = source;
    thread.state = State::in_warp;
    warps[current / 32].waiting |= 1u << lane;
    settle_lane(current / 32, lane);
    wait(thread.state);
    return thread.answer;
}

/// Completes every operation of the warp whose lanes have all arrived.
void Engine::settle_warp(unsigned w) {
    for (unsigned lane = 0; lane < 32; lane++)
        if (warps[w].waiting >> lane & 1) settle_lane(w, lane);
}

/// Completes the operation that a lane waits in, if all its lanes have arrived.
void Engine::settle_lane(unsigned w, unsigned lane) {
    Thread* lanes = &threads[32 * w];
    const PhalanxWarp what = lanes[lane].what;
    const unsigned mask = lanes[lane].mask, gone = mask & ~warps[w].alive, needed = mask & warps[w].alive;
    if (gone && what == PhalanxWarp::shuffle)
        fail("lane %u calls a shuffle with the mask 0x%08x, which names lane %d that has ended or does not exist", lane,
             mask, __builtin_ctz(gone));
    if ((warps[w].waiting & needed) != needed) return;
    for (unsigned l = 0; l < 32; l++)
        if ((needed >> l & 1) && (lanes[l].what != what || lanes[l].mask != mask)) return;
    warps[w].waiting &= ~needed;
    finish_exchange(lanes, needed, what);
}

void Engine::finish_exchange(Thread* lanes, unsigned needed, PhalanxWarp what) {
    uint64_t whole = 0;
    bool begun = false;
    for (unsigned l = 0; l < 32; l++) {
        if (!(needed >> l & 1)) continue;
        const uint64_t value = lanes[l].value;
        if (what == PhalanxWarp::ballot)
            whole |= (value != 0 ? 1ull : 0ull) << l;
        else
            whole = begun ? combine(what, whole, value) : value;
        begun = true;
    }
    for (unsigned l = 0; l < 32; l++) {
        if (!(needed >> l & 1)) continue;
        Thread& lane = lanes[l];
        lane.answer = whole;
        if (what == PhalanxWarp::shuffle) {
            if (lane.source > 31 || !(needed >> lane.source & 1)) {
                fail("lane %u shuffles from lane %u, which its mask 0x%08x does not name", l, lane.source, lane.mask);
                return;
            }
            lane.answer = lanes[lane.source].value;
        }
        if (what == PhalanxWarp::match) {
            lane.answer = 0;
            for (unsigned m = 0; m < 32; m++)
                if (needed >> m & 1 && lanes[m].value == lane.value) lane.answer |= 1ull << m;
        }
        lane.state = State::ready;
    }
}

void Engine::report_divergence() {
    unsigned barrier = 0, warp = 0, example = 0;
    for (unsigned t = 0; t < count; t++) {
        if (threads[t].state == State::at_barrier) barrier++;
        if (threads[t].state == State::in_warp) warp++;
        if (threads[t].state != State::ended) example = t;
    }
    current = example;
    if (barrier > 0)
        fail(
            "divergent barrier: %u of %u threads wait at __syncthreads, %u have ended, %u wait in operations of their "
            "warp",
            barrier, count, ended, warp);
    else
        fail(
            "divergent warp: %u of %u threads wait in operations of their warp (this one in %s with mask 0x%08x), %u "
            "have ended",
            warp, count, name_of(threads[example].what), threads[example].mask, ended);
}

std::string Engine::where() const {
    char text[256];
    const uint3 b = place->block;
    const unsigned bx = launch->block[0], by = launch->block[1];
    snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", launch->kernel, b.x, b.y, b.z,
             current % bx, current / bx % by, current / bx / by);
    return text;
}

/// Reports and ends the launch. Called by a thread of the kernel it does not return; called by the scheduler it does.
void Engine::fail(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!failed) report("%s: %s", where().c_str(), text);
    failed = true;
    if (current_stack) {
        Flow never;
        switch_flow(never, scheduler);
    }
}

Result run_launch(const Launch& launch, const ModuleState& module, Order order) {
    return Engine::mine().run(launch, module, order);
}
