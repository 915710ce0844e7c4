// What ranks and their hub say to each other, over a socket of one machine.
#pragma once
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <string>
#include <vector>

/// Values of ncclResult_t.
enum Result : int {
    success = 0,
    system_error = 2,
    internal_error = 3,
    invalid_argument = 4,
    invalid_usage = 5,
    remote_error = 6,
    in_progress = 7,
};

enum class Kind : int32_t { join, all_reduce, reduce_scatter, all_gather, broadcast, send, receive, leave, order };

inline const char* name_of(Kind kind) {
    switch (kind) {
        case Kind::join: return "ncclCommInitRank";
        case Kind::all_reduce: return "ncclAllReduce";
        case Kind::reduce_scatter: return "ncclReduceScatter";
        case Kind::all_gather: return "ncclAllGather";
        case Kind::broadcast: return "ncclBroadcast";
        case Kind::send: return "ncclSend";
        case Kind::receive: return "ncclRecv";
        case Kind::leave: return "ncclCommDestroy";
        case Kind::order: break;
    }
    return "?";
}

/// From a rank; `bytes` of payload follow.
struct Request {
    Kind kind;
    /// Element type and operation in NCCL's numbers; the rank in a `join`'s type, of how many in its operation.
    int32_t type, operation;
    /// The root of a broadcast, the other end of a send or receive, the device of a `join`.
    int32_t peer;
    uint64_t count, bytes;
    /// Names the answer.
    uint64_t call;
    /// The number among the communicator's collectives, which are matched by it, and the place in their group.
    uint64_t collective, place;
};

/// What an `order` is made of: the call itself on its communicator, then what was called before it on each other one of
/// the rank's device.
struct Called {
    char communicator[sizeof(sockaddr_un::sun_path)];
    uint64_t count;
    Request last;
};

inline Called called_on(const std::string& communicator) {
    Called called{};
    communicator.copy(called.communicator, sizeof called.communicator - 1);
    return called;
}

/// To a rank; `bytes` of payload follow.
struct Answer {
    uint64_t call;
    int32_t status;
    uint64_t bytes;
};

/// The call of an answer that is about the communicator as a whole.
constexpr uint64_t NO_CALL = ~0ull;

inline bool send_all(int socket, const void* from, size_t bytes) {
    const char* at = (const char*)from;
    while (bytes > 0) {
        const ssize_t n = send(socket, at, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

inline bool receive_all(int socket, void* to, size_t bytes) {
    char* at = (char*)to;
    while (bytes > 0) {
        const ssize_t n = recv(socket, at, bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

/// An address of Linux's abstract kind: it is no file, and goes away with its socket.
inline socklen_t abstract_address(const std::string& name, sockaddr_un& address) {
    address = sockaddr_un{};
    address.sun_family = AF_UNIX;
    name.copy(address.sun_path + 1, sizeof address.sun_path - 1);
    return (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}
