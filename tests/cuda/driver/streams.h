// Streams, events and captures as the parts of the driver that make them see them.
#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "driver.h"

struct Capture;

/// One piece of work of a stream; with `after` the stream first waits for that place of another stream.
struct Record;
struct Operation {
    Work work;
    std::shared_ptr<Record> after;
};

struct Stream {
    Context* context = nullptr;
    unsigned flags = 0;
    int priority = 0;
    std::deque<Operation> queue;
    uint64_t enqueued = 0, completed = 0;
    /// A thread runs an operation of this stream.
    bool busy = false;
    std::shared_ptr<Capture> capture;
};

/// A place in a stream: what an event names once it was recorded.
struct Record {
    std::shared_ptr<Stream> stream;
    uint64_t place = 0;
    bool reached = false;
    double seconds = 0;
};

struct Event {
    Context* context = nullptr;
    unsigned flags = 0;
    std::shared_ptr<Record> record;
    /// Instead of a place in a stream: nodes of a capture.
    std::shared_ptr<Capture> capture;
    std::set<size_t> nodes;
};

struct Node {
    Work work;
    /// Nodes that come first: the stream's own before those that it waits for.
    std::vector<size_t> after;
};

struct Capture {
    enum Mode : int { global = 0, thread_local_mode = 1, relaxed = 2 };
    Stream* origin = nullptr;
    Mode mode = global;
    std::thread::id thread;
    bool invalidated = false, ended = false;
    std::vector<Node> nodes;
    /// For each stream that takes part the nodes that its next one comes after.
    std::vector<std::pair<Stream*, std::vector<size_t>>> frontiers;

    std::vector<size_t>& frontier(Stream* stream);
    void add(Stream* stream, Work work);
};

/// Guards streams, events, captures and their tables; never held while work runs.
extern std::mutex stream_mutex;
/// The stream of a handle (0 is the context's own), or null when the handle is none.
std::shared_ptr<Stream> stream_of(Stream* handle, Context* context);
Event* event_of(Event* handle);
/// Tells that a call may not be made during a capture, and invalidates that.
Result refuse_capture(Stream& stream, const char* call);
/// Runs a stream's work up to a place. Work that goes on elsewhere (a collective) answers with not_ready until it is
/// done: then this waits, or without `waiting` answers with the same.
Result run_until(const std::shared_ptr<Stream>& stream, uint64_t place, bool waiting = true);
/// Work that is captured or queued; with eager streams it has run at return.
Result enqueue_on(const std::shared_ptr<Stream>& stream, Operation operation);
