// A thread reads the hub's answers; whoever runs a stream's work posts requests and looks for their answers, and never
// blocks for another rank.
#include "communicator.h"

#include <stdlib.h>
#include <string.h>

#include "../standin.h"
#include "order.h"

Communicator::Communicator(const std::string& hub, int ranks, int rank, int device)
    : name(hub), ranks(ranks), rank(rank), device(device), reader([this] { run(); }) {
    order_begins(*this);
}

Communicator::~Communicator() {
    abort();
    reader.join();
    if (socket >= 0) close(socket);
}

void Communicator::run() {
    const int made_socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address;
    const socklen_t length = abstract_address(name, address);
    const bool connected = connect(made_socket, (sockaddr*)&address, length) == 0;
    {
        const std::lock_guard<std::mutex> guard(mutex);
        socket = made_socket;
        if (aborted) return;
    }
    if (!connected) {
        standin::report("ncclCommInitRank: nobody listens for this unique id");
        return fail(system_error);
    }
    Request join{};
    join.kind = Kind::join;
    join.type = rank;
    join.operation = ranks;
    join.peer = device;
    send_all(socket, &join, sizeof join);
    for (;;) {
        Answer answer;
        if (!receive_all(socket, &answer, sizeof answer)) break;
        std::vector<unsigned char> data(answer.bytes);
        if (!receive_all(socket, data.data(), data.size())) break;
        const std::lock_guard<std::mutex> guard(mutex);
        if (answer.call != NO_CALL)
            answers[answer.call] = std::move(data);
        else if (status == success || status == in_progress)
            status = (Result)answer.status;
        changed.notify_all();
    }
    const std::lock_guard<std::mutex> guard(mutex);
    if (!aborted && !leaving && (status == success || status == in_progress)) status = remote_error;
    changed.notify_all();
}

Result Communicator::wait_for_all() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [this] { return status != in_progress || aborted; });
    return status;
}

Result Communicator::state() {
    const std::lock_guard<std::mutex> guard(mutex);
    return status;
}

void Communicator::fail(Result error) {
    const std::lock_guard<std::mutex> guard(mutex);
    if (status == success || status == in_progress) status = error;
    changed.notify_all();
}

void Communicator::abort() {
    order_ends(*this);
    const std::lock_guard<std::mutex> guard(mutex);
    if (aborted) return;
    aborted = true;
    // The others are not told: with NCCL, too, they only find that this rank does not come.
    if (socket >= 0 && status != in_progress) {
        const std::lock_guard<std::mutex> whole(writing);
        Request leave{};
        leave.kind = Kind::leave;
        send_all(socket, &leave, sizeof leave);
    }
    if (socket >= 0) shutdown(socket, SHUT_RDWR);
    changed.notify_all();
}

bool Communicator::leave() {
    {
        const std::lock_guard<std::mutex> guard(mutex);
        leaving = work == 0;
        if (!leaving) return false;
    }
    order_ends(*this);
    return true;
}

uint64_t Communicator::next_collective() {
    const std::lock_guard<std::mutex> guard(mutex);
    return collectives++;
}

/// PHALANX_STANDIN_NCCL_FAIL=N or N@RANK: the N-th call (of that rank) fails, asynchronously.
void Communicator::count_call() {
    const char* fault = getenv("PHALANX_STANDIN_NCCL_FAIL");
    const std::lock_guard<std::mutex> guard(mutex);
    calls++;
    if (!fault || !*fault) return;
    const char* at = strchr(fault, '@');
    if (calls != strtoull(fault, nullptr, 10) || (at && atoi(at + 1) != rank)) return;
    if (status == success) status = system_error;
}

void Communicator::change_work(int by) {
    const std::lock_guard<std::mutex> guard(mutex);
    work += by;
}

void Communicator::announce(const std::vector<Called>& order) {
    if (state() != success) return;
    Request request{};
    request.kind = Kind::order;
    request.collective = order[0].last.collective;
    request.bytes = order.size() * sizeof(Called);
    const std::lock_guard<std::mutex> guard(writing);
    if (send_all(socket, &request, sizeof request)) send_all(socket, order.data(), request.bytes);
}

void Communicator::post(Part& part) {
    {
        const std::lock_guard<std::mutex> guard(mutex);
        part.request.call = made++;
        if (aborted || status != success) return;
    }
    const std::lock_guard<std::mutex> guard(writing);
    part.request.bytes = part.from_bytes;
    if (send_all(socket, &part.request, sizeof part.request)) send_all(socket, part.from, part.from_bytes);
}

bool Communicator::finish(const std::vector<Part>& parts) {
    const std::lock_guard<std::mutex> guard(mutex);
    if (aborted) return true;
    // What was answered before an error is done all the same. Else, after one, NCCL's kernels hang until the communicator
    // is aborted, and so does this.
    for (const Part& part : parts)
        if (!answers.count(part.request.call)) return false;
    for (const Part& part : parts) {
        const auto& data = answers[part.request.call];
        if (part.to && data.size() == part.to_bytes) memcpy(part.to, data.data(), data.size());
        answers.erase(part.request.call);
    }
    return true;
}
