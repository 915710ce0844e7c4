// One rank's side of a communicator: see communicator.cpp.
#pragma once
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "wire.h"

/// One call of a group, and where its data lies.
struct Part {
    Request request;
    const void* from;
    size_t from_bytes;
    void* to;
    size_t to_bytes;
};

class Communicator {
public:
    /// Connects in a thread of its own; `wait_for_all` tells when all ranks are there.
    Communicator(const std::string& hub, int ranks, int rank, int device);
    /// Waits for nothing: what is not done stays undone.
    ~Communicator();
    Communicator(const Communicator&) = delete;

    Result wait_for_all();
    /// Success, in_progress while ranks are missing, or the first error.
    Result state();
    /// Ends all waits; work that was given counts as done, with any result.
    void abort();
    /// Tells the others that this rank leaves in order. False when work is not done.
    bool leave();
    void fail(Result error);

    /// Numbers of the next collective. They are taken when a call is made, not when it runs.
    uint64_t next_collective();
    /// Counts calls, for the fault that the environment asks for.
    void count_call();
    /// Work that was posted and not finished.
    void begin_work() { change_work(1); }
    void end_work() { change_work(-1); }

    /// Tells the hub of a call, ahead of its data.
    void announce(const std::vector<Called>& order);
    /// Sends a part's data.
    void post(Part& part);
    /// Whether all parts are answered, and then copies the answers. Once aborted everything is done.
    bool finish(const std::vector<Part>& parts);

    /// The hub's, so it is the same on all ranks.
    const std::string name;
    const int ranks, rank, device;

private:
    void run();
    void change_work(int by);

    std::mutex mutex;
    std::condition_variable changed;
    int socket = -1;
    std::mutex writing;
    Result status = in_progress;
    bool aborted = false, leaving = false;
    int work = 0;
    uint64_t calls = 0, collectives = 0, made = 0;
    std::map<uint64_t, std::vector<unsigned char>> answers;
    std::thread reader;
};
