// NCCL's kernels wait for their peers on the device: a rank that calls on A and then on B can hang with one that calls on
// B and then on A. So each collective tells its hub, when it is called and not when its stream comes to it (which may be
// never), how many collectives were called on the device's other communicators before. The hub compares these numbers.
#include "order.h"

#include <map>
#include <mutex>

namespace {

std::mutex mutex;

/// The process's communicators, and what was last called on each. Never destroyed: threads may outlive main.
std::map<Communicator*, Called>& live() {
    static auto* all = new std::map<Communicator*, Called>();
    return *all;
}

/// After an error some ranks call on and others do not.
bool counts(Communicator& c) {
    const Result state = c.state();
    return state == success || state == in_progress;
}

}  // namespace

void order_begins(Communicator& communicator) {
    const std::lock_guard<std::mutex> guard(mutex);
    live()[&communicator] = called_on(communicator.name);
}

void order_ends(Communicator& communicator) {
    const std::lock_guard<std::mutex> guard(mutex);
    live().erase(&communicator);
}

void order_note(const std::vector<Calls>& together) {
    std::vector<std::vector<Called>> before;
    {
        const std::lock_guard<std::mutex> guard(mutex);
        // Within a group there is no order, so all of it is as at its beginning.
        for (const Calls& calls : together) {
            before.push_back({called_on(calls.communicator->name)});
            for (const auto& [other, called] : live())
                if (other != calls.communicator && other->device == calls.communicator->device && counts(*other))
                    before.back().push_back(called);
        }
        for (const Calls& calls : together) {
            const auto found = live().find(calls.communicator);
            if (found == live().end() || calls.collectives.empty()) continue;
            found->second.count += calls.collectives.size();
            found->second.last = calls.collectives.back();
        }
    }
    for (size_t i = 0; i < together.size(); i++) {
        if (before[i].size() == 1) continue;
        for (const Request& collective : together[i].collectives) {
            before[i][0].last = collective;
            together[i].communicator->announce(before[i]);
        }
    }
}
