// Stacks that calls can be left on and continued: what threads of a kernel run on.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

/// Where a flow of control stands while another one runs.
struct Flow {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

/// 128 KB that a thread of a kernel may use, with a page without access below them.
class Stack {
public:
    static constexpr size_t BYTES = (size_t)128 << 10;

    /// Stacks of different numbers begin at different places of a page: else all would compete for the same lines of
    /// the caches, as every thread of a block uses the same part of its stack.
    explicit Stack(size_t number) : shift(number % 61 * 64) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        mapping = (unsigned char*)mmap(nullptr, BYTES + page, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapping != MAP_FAILED) mprotect(mapping, page, PROT_NONE);
        mapped = BYTES + page;
    }
    ~Stack() {
        if (mapping != MAP_FAILED) munmap(mapping, mapped);
    }
    Stack(const Stack&) = delete;
    bool usable() const { return mapping != MAP_FAILED; }
    unsigned char* top() const { return mapping + mapped - shift; }
    bool guards(uintptr_t at) const { return at >= (uintptr_t)mapping && at < (uintptr_t)bottom(); }

    unsigned char* bottom() const { return mapping + mapped - BYTES; }

private:
    const size_t shift;
    unsigned char* mapping;
    size_t mapped;
};

#if defined(__x86_64__)

/// Saves what the ABI wants kept on the stack in use, and continues `to`. ucontext's swap does the same with two system
/// calls more for the signal mask, which costs a kernel with shuffles a factor of ten.
extern "C" void phalanx_switch(void** from, void* to);

inline void switch_flow(Flow& from, Flow& to) { phalanx_switch(&from.stack_pointer, to.stack_pointer); }

/// Makes `flow` begin with `start` on `stack`; `start` must not return.
inline void prepare(Flow& flow, Stack& stack, void (*start)()) {
    // A function begins with its return address (here of nobody) on top, eight bytes past a multiple of sixteen. Below
    // lie where to continue, six registers and the floating-point control words, as phalanx_switch leaves them.
    void** at = (void**)stack.top();
    *--at = nullptr;
    *--at = (void*)start;
    for (int i = 0; i < 6; i++) *--at = nullptr;
    *--at = nullptr;
    uint32_t sse;
    uint16_t x87;
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(sse), "=m"(x87));
    *(uint32_t*)at = sse;
    *((uint16_t*)at + 2) = x87;
    flow.stack_pointer = at;
}

#else

inline void switch_flow(Flow& from, Flow& to) { swapcontext(&from.context, &to.context); }

inline void prepare(Flow& flow, Stack& stack, void (*start)()) {
    getcontext(&flow.context);
    flow.context.uc_stack.ss_sp = stack.bottom();
    flow.context.uc_stack.ss_size = (size_t)(stack.top() - stack.bottom());
    flow.context.uc_link = nullptr;
    makecontext(&flow.context, start, 0);
}

#endif
