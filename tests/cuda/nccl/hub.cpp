// All ranks of a communicator, threads or processes, connect to its hub, in the process that made the unique id. A rank
// sends each call with its data; when the calls of all ranks are there and agree, the hub sends the results. What does
// not agree is reported and becomes an error of the communicator on every rank.
#include "hub.h"

#include <string.h>

#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "../standin.h"
#include "reduce.h"
#include "wire.h"

namespace {

using Bytes = std::vector<unsigned char>;

struct Arrival {
    Request request;
    Bytes data;
};

class Hub : public std::enable_shared_from_this<Hub> {
public:
    explicit Hub(int listener) : listener(listener) {}

    /// Takes ranks until all are there (`join` then shuts the listener); each has a thread that reads what it says.
    void listen_for_ranks() {
        for (;;) {
            const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
            if (socket < 0) break;
            std::thread([self = shared_from_this(), socket] { self->serve(socket); }).detach();
        }
        close(listener);
    }

private:
    struct Rank {
        int socket = -1, device = -1;
        bool left = false;
    };

    struct Order {
        int rank;
        std::vector<Called> called;
    };

    void serve(int socket) {
        int rank = -1;
        for (;;) {
            Arrival arrival;
            if (!receive_all(socket, &arrival.request, sizeof arrival.request)) break;
            arrival.data.resize(arrival.request.bytes);
            if (!receive_all(socket, arrival.data.data(), arrival.data.size())) break;
            const std::lock_guard<std::mutex> guard(mutex);
            if (arrival.request.kind == Kind::join) {
                if (!join(socket, arrival.request)) break;
                rank = arrival.request.type;
            } else if (rank >= 0) {
                take(rank, std::move(arrival));
            }
        }
        const std::lock_guard<std::mutex> guard(mutex);
        if (rank >= 0) {
            if (!ranks[(size_t)rank].left) tell_all(remote_error);
            ranks[(size_t)rank].socket = -1;
        }
        close(socket);
    }

    void answer(int rank, uint64_t call, Result status, const void* data, size_t bytes) {
        const int socket = ranks[(size_t)rank].socket;
        const Answer header{call, status, bytes};
        // Whoever does not listen any more is seen by the thread that reads from it.
        if (socket >= 0 && send_all(socket, &header, sizeof header)) send_all(socket, data, bytes);
    }

    void tell_all(Result status) {
        failed |= status != success;
        for (size_t r = 0; r < ranks.size(); r++) answer((int)r, NO_CALL, status, nullptr, 0);
    }

    bool join(int socket, const Request& r) {
        const int rank = r.type, of = r.operation;
        std::string wrong;
        if (size != 0 && size != of)
            wrong = "ranks name different sizes, " + std::to_string(size) + " and " + std::to_string(of);
        else if (of < 1 || rank < 0 || rank >= of)
            wrong = "rank " + std::to_string(rank) + " of " + std::to_string(of);
        else if (!ranks.empty() && ranks[(size_t)rank].socket >= 0)
            wrong = "two ranks are number " + std::to_string(rank);
        for (size_t other = 0; other < ranks.size() && wrong.empty(); other++)
            if (ranks[other].socket >= 0 && ranks[other].device == r.peer)
                wrong = "ranks " + std::to_string(other) + " and " + std::to_string(rank) + " use one device, number " +
                        std::to_string(r.peer);
        if (!wrong.empty()) {
            standin::report("ncclCommInitRank: " + wrong);
            const Answer header{NO_CALL, invalid_usage, 0};
            send_all(socket, &header, sizeof header);
            tell_all(invalid_usage);
            return false;
        }
        size = of;
        ranks.resize((size_t)size);
        ranks[(size_t)rank].socket = socket;
        ranks[(size_t)rank].device = r.peer;
        if (++joined == size) {
            shutdown(listener, SHUT_RDWR);
            tell_all(success);
        }
        return true;
    }

    void take(int rank, Arrival arrival) {
        const Request& r = arrival.request;
        switch (r.kind) {
            case Kind::leave: ranks[(size_t)rank].left = true; break;
            case Kind::order: compare_order(rank, arrival); break;
            case Kind::send:
            case Kind::receive: pass_on(rank, std::move(arrival)); break;
            default: {
                auto& all = collectives[r.collective];
                all.resize((size_t)size);
                auto& mine = all[(size_t)rank];
                const uint64_t number = r.collective;
                mine = std::make_unique<Arrival>(std::move(arrival));
                for (const auto& a : all)
                    if (!a) return;
                finish(all);
                collectives.erase(number);
                // A rank's calls are announced before they come, so nobody asks for it any more.
                orders.erase(number);
            }
        }
    }

    static std::string spelled(const Request& r) {
        return std::string(name_of(r.kind)) + " of " + std::to_string(r.count) + " " + name_of_type(r.type) +
               (r.kind == Kind::broadcast ? " from " + std::to_string(r.peer) : "") +
               (r.kind == Kind::all_reduce || r.kind == Kind::reduce_scatter
                    ? ", operation " + std::to_string(r.operation)
                    : "") +
               (r.place > 0 ? ", number " + std::to_string(r.place) + " of its group" : "");
    }

    /// Compares what ranks called before a collective, on the communicators that two of them know.
    void compare_order(int rank, const Arrival& arrival) {
        Order mine{rank, std::vector<Called>(arrival.data.size() / sizeof(Called))};
        memcpy(mine.called.data(), arrival.data.data(), mine.called.size() * sizeof(Called));
        auto& all = orders[arrival.request.collective];
        for (const Order& theirs : all)
            // The first error counts: what comes after may come of it.
            if (!failed && !ordered(theirs, mine)) return tell_all(invalid_usage);
        all.push_back(std::move(mine));
    }

    static bool ordered(const Order& a, const Order& b) {
        for (size_t i = 1; i < a.called.size(); i++)
            for (size_t j = 1; j < b.called.size(); j++) {
                const Called &x = a.called[i], &y = b.called[j];
                if (strcmp(x.communicator, y.communicator) != 0 || x.count == y.count) continue;
                const bool later = x.count > y.count;
                const Order &early = later ? b : a, &late = later ? a : b;
                const Called& between = later ? x : y;
                standin::report("communicators in different orders: rank " + std::to_string(early.rank) + " calls " +
                                spelled(early.called[0]) + " before " + spelled(between) + ", rank " +
                                std::to_string(late.rank) + " after it; in one group their order is free");
                return false;
            }
        return true;
    }

    static std::string spelled(const Called& c) {
        // The end of the name is random, and enough of it.
        const std::string name = c.communicator;
        return spelled(c.last) + " on communicator " + name.substr(name.size() < 8 ? 0 : name.size() - 8);
    }

    bool agree(const std::vector<std::unique_ptr<Arrival>>& all) {
        const Request& a = all[0]->request;
        for (size_t r = 1; r < all.size(); r++) {
            const Request& b = all[r]->request;
            if (a.kind == b.kind && a.type == b.type && a.operation == b.operation && a.peer == b.peer &&
                a.count == b.count && a.place == b.place)
                continue;
            standin::report("collectives do not match: rank 0 calls " + spelled(a) + ", rank " + std::to_string(r) +
                            " calls " + spelled(b));
            return false;
        }
        return true;
    }

    void finish(const std::vector<std::unique_ptr<Arrival>>& all) {
        if (!agree(all)) return tell_all(invalid_usage);
        const Request& r = all[0]->request;
        Bytes result;
        if (r.kind == Kind::broadcast) {
            result = all[(size_t)r.peer]->data;
        } else if (r.kind == Kind::all_gather) {
            for (const auto& a : all) result.insert(result.end(), a->data.begin(), a->data.end());
        } else {
            result = all[0]->data;
            const size_t count = result.size() / bytes_of_type(r.type);
            for (size_t other = 1; other < all.size(); other++)
                reduce(r.type, r.operation, result.data(), all[other]->data.data(), count);
            constexpr int AVERAGE = 4;
            if (r.operation == AVERAGE) divide(r.type, result.data(), count, size);
        }
        const bool scattered = r.kind == Kind::reduce_scatter;
        const size_t part = scattered ? result.size() / all.size() : result.size();
        for (size_t rank = 0; rank < all.size(); rank++)
            answer((int)rank, all[rank]->request.call, success, result.data() + (scattered ? rank * part : 0), part);
    }

    /// A send ends when its receive is there, and the other way round: what hangs with NCCL hangs here.
    void pass_on(int rank, Arrival arrival) {
        const Request r = arrival.request;
        const bool sends = r.kind == Kind::send;
        const auto path = sends ? std::make_pair(rank, r.peer) : std::make_pair(r.peer, rank);
        auto& mine = sends ? sent[path] : wanted[path];
        auto& theirs = sends ? wanted[path] : sent[path];
        mine.push_back(std::move(arrival));
        if (theirs.empty()) return;
        const Arrival s = std::move(sent[path].front()), w = std::move(wanted[path].front());
        sent[path].erase(sent[path].begin());
        wanted[path].erase(wanted[path].begin());
        if (s.request.type != w.request.type || s.request.count != w.request.count) {
            standin::report("rank " + std::to_string(path.first) + " calls " + spelled(s.request) + ", rank " +
                            std::to_string(path.second) + " calls " + spelled(w.request));
            return tell_all(invalid_usage);
        }
        answer(path.first, s.request.call, success, nullptr, 0);
        answer(path.second, w.request.call, success, s.data.data(), s.data.size());
    }

    const int listener;
    std::mutex mutex;
    int size = 0, joined = 0;
    bool failed = false;
    std::vector<Rank> ranks;
    std::map<uint64_t, std::vector<std::unique_ptr<Arrival>>> collectives;
    std::map<uint64_t, std::vector<Order>> orders;
    std::map<std::pair<int, int>, std::vector<Arrival>> sent, wanted;
};

}  // namespace

bool start_hub(const std::string& name) {
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address;
    const socklen_t length = abstract_address(name, address);
    if (listener < 0 || bind(listener, (sockaddr*)&address, length) != 0 || listen(listener, 64) != 0) return false;
    std::thread([hub = std::make_shared<Hub>(listener)] { hub->listen_for_ranks(); }).detach();
    return true;
}
