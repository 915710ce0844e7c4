// A kernel that touches memory without access, divides by zero or traps ends its launch with an error, not the process.
#include <signal.h>
#include <string.h>
#include <ucontext.h>

#include <mutex>

#include "engine.h"

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
struct sigaction before[NSIG];

thread_local Engine* running = nullptr;
thread_local sigjmp_buf jump;

/// Kernels use the stacks of their threads up, so the handler needs one of its own. Rust's threads have one; others get
/// this.
struct SignalStack {
    SignalStack() {
        stack_t old{};
        sigaltstack(nullptr, &old);
        if (!(old.ss_flags & SS_DISABLE)) return;
        bytes.resize(64 << 10);
        stack_t own{};
        own.ss_sp = bytes.data();
        own.ss_size = bytes.size();
        sigaltstack(&own, nullptr);
    }
    ~SignalStack() {
        if (bytes.empty()) return;
        stack_t none{};
        none.ss_flags = SS_DISABLE;
        sigaltstack(&none, nullptr);
    }
    std::vector<unsigned char> bytes;
};

void handler(int signal, siginfo_t* information, void* context) { FaultGuard::on_fault(signal, information, context); }

void install() {
    struct sigaction action{};
    action.sa_sigaction = handler;
    // The handler leaves by a jump, so the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int signal : SIGNALS) sigaction(signal, &action, &before[signal]);
}

std::string reason(int signal, const siginfo_t& information, const ucontext_t& context, const Engine& engine) {
    const Address at = (Address)information.si_addr;
    if (signal == SIGFPE) return "an integer is divided by zero";
    if (signal == SIGILL || signal == SIGTRAP)
        return "an index outside an array, or a pointer that is misaligned for its type";
    // A misaligned vector access, or an address that is none, comes without an address.
    if (information.si_code == SI_KERNEL) return "a misaligned access, or a wild pointer";
    if (engine.owns_stack_guard(at))
        return "a thread uses more than " + std::to_string(Stack::BYTES >> 10) + " KB of stack";
    const char* what = "touches ";
#if defined(__x86_64__)
    what = context.uc_mcontext.gregs[REG_ERR] & 2 ? "writes " : "reads ";
#endif
    return what + describe_address(at);
}

}  // namespace

FaultGuard::FaultGuard(Engine& engine) {
    static std::once_flag once;
    std::call_once(once, install);
    static thread_local SignalStack stack;
    running = &engine;
    engine.faulted = false;
}

FaultGuard::~FaultGuard() { running = nullptr; }

sigjmp_buf& FaultGuard::back() const { return jump; }

void FaultGuard::on_fault(int signal, void* information, void* context) {
    Engine* engine = running;
    if (!engine || !engine->current_stack) {
        // Not a kernel's: whoever was there before decides (Rust's test for an overflow of the stack), else the
        // default.
        const struct sigaction& old = before[signal];
        if (old.sa_flags & SA_SIGINFO)
            old.sa_sigaction(signal, (siginfo_t*)information, context);
        else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN)
            old.sa_handler(signal);
        else
            sigaction(signal, &old, nullptr);
        return;
    }
    const std::string why = reason(signal, *(siginfo_t*)information, *(ucontext_t*)context, *engine);
    if (!engine->failed) report("%s: %s", engine->where().c_str(), why.c_str());
    engine->failed = engine->faulted = true;
    siglongjmp(jump, 1);
}
