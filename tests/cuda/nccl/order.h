// The order of calls on several communicators of one device: see order.cpp.
#pragma once
#include <vector>

#include "communicator.h"

/// From when a communicator is made until it is destroyed or aborted, its calls count.
void order_begins(Communicator& communicator);
void order_ends(Communicator& communicator);

/// Collectives that are called together: one, or those of a group.
struct Calls {
    Communicator* communicator;
    std::vector<Request> collectives;
};
void order_note(const std::vector<Calls>& together);
