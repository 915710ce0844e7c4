// Streams are queues. Usually work runs as soon as it is enqueued, on the calling thread. With
// PHALANX_STANDIN_STREAMS=1 a queue is only run when somebody waits for it, as late as possible: then an operation that
// should have waited for another stream and does not finds that stream's work undone, each time.
#include "streams.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

std::mutex stream_mutex;

namespace {

using Lock = std::unique_lock<std::mutex>;

std::condition_variable& progress() {
    static auto* changed = new std::condition_variable();
    return *changed;
}
std::map<Stream*, std::shared_ptr<Stream>>& streams() {
    static auto* table = new std::map<Stream*, std::shared_ptr<Stream>>();
    return *table;
}
std::map<Context*, std::shared_ptr<Stream>>& own_streams() {
    static auto* table = new std::map<Context*, std::shared_ptr<Stream>>();
    return *table;
}

/// After these the device is lost to the process, as with the real driver.
bool lasting(int result) { return result == illegal_address || result == launch_failed; }

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

bool lazy_streams() {
    static const bool lazy = environment_flag("PHALANX_STANDIN_STREAMS");
    return lazy;
}

std::shared_ptr<Stream> stream_of(Stream* handle, Context* context) {
    const Lock lock(stream_mutex);
    if (!handle) {
        auto& own = own_streams()[context];
        if (!own) {
            own = std::make_shared<Stream>();
            own->context = context;
        }
        return own;
    }
    const auto found = streams().find(handle);
    if (found != streams().end()) return found->second;
    report("a call names a stream that does not exist, or was destroyed");
    return nullptr;
}

Result run_until(const std::shared_ptr<Stream>& stream, uint64_t place, bool waiting) {
    constexpr auto REST = std::chrono::microseconds(50);
    Lock lock(stream_mutex);
    while (stream->completed < place) {
        if (stream->busy) {
            progress().wait(lock);
            continue;
        }
        // Only whoever set `busy` takes operations out; others append, which leaves this one in its place.
        Operation& next = stream->queue.front();
        stream->busy = true;
        lock.unlock();
        int result = stream->context->failure;
        // The rest is taken below, with this stream free for others' questions.
        if (next.after && result == success) result = run_until(next.after->stream, next.after->place, false);
        if (next.work && result == success) result = next.work();
        lock.lock();
        stream->busy = false;
        progress().notify_all();
        if (result == not_ready) {
            if (!waiting) return not_ready;
            lock.unlock();
            std::this_thread::sleep_for(REST);
            lock.lock();
            continue;
        }
        int none = success;
        if (lasting(result)) stream->context->failure.compare_exchange_strong(none, result);
        stream->completed++;
        {
            // What the operation holds (a module) may be released at its end, which must not happen under the lock.
            const Operation done = std::move(next);
            stream->queue.pop_front();
            lock.unlock();
        }
        if (result != success && !lasting(result)) return (Result)result;
        lock.lock();
    }
    return (Result)stream->context->failure.load();
}

Result enqueue_on(const std::shared_ptr<Stream>& stream, Operation operation) {
    Lock lock(stream_mutex);
    if (stream->capture) {
        if (stream->capture->invalidated) return capture_invalidated;
        stream->capture->add(stream.get(), operation.work);
        return success;
    }
    stream->queue.push_back(std::move(operation));
    const uint64_t place = ++stream->enqueued;
    lock.unlock();
    if (lazy_streams()) return success;
    const Result result = run_until(stream, place, false);
    return result == not_ready ? success : result;
}

Result enqueue(Stream* handle, Work work) {
    WITH_CONTEXT(context);
    const auto stream = stream_of(handle, context);
    if (!stream) return invalid_handle;
    if (stream->context != context) {
        report("work is given to a stream of another context than the current one");
        return invalid_handle;
    }
    return enqueue_on(stream, {std::move(work), nullptr});
}

Result finish(Stream* handle, bool waiting) {
    WITH_CONTEXT(context);
    const auto stream = stream_of(handle, context);
    if (!stream) return invalid_handle;
    uint64_t place;
    {
        const Lock lock(stream_mutex);
        if (stream->capture) return refuse_capture(*stream, "waiting for a stream");
        place = stream->enqueued;
    }
    return run_until(stream, place, waiting);
}

Result finish_all(Context* context) {
    std::vector<std::pair<std::shared_ptr<Stream>, uint64_t>> all;
    {
        const Lock lock(stream_mutex);
        for (const auto& [handle, stream] : streams())
            if (stream->context == context) all.emplace_back(stream, stream->enqueued);
        if (own_streams().count(context)) all.emplace_back(own_streams()[context], own_streams()[context]->enqueued);
    }
    for (const auto& [stream, place] : all)
        if (Result failed = run_until(stream, place)) return failed;
    return success;
}

API int phalanx_standin_enqueue(void* stream, int (*run)(void*), void* argument, void (*release)(void*)) {
    struct Owner {
        void* argument;
        void (*release)(void*);
        ~Owner() { release(argument); }
    };
    auto owner = std::make_shared<Owner>();
    owner->argument = argument;
    owner->release = release;
    return enqueue((Stream*)stream, [run, owner] { return run(owner->argument); });
}

API Result cuStreamCreateWithPriority(Stream** handle, unsigned flags, int priority) {
    WITH_CONTEXT(context);
    if (!handle || flags > 1) return invalid_value;
    auto stream = std::make_shared<Stream>();
    stream->context = context;
    stream->flags = flags;
    stream->priority = priority;
    *handle = stream.get();
    const Lock lock(stream_mutex);
    streams()[stream.get()] = stream;
    return success;
}

API Result cuStreamCreate(Stream** handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

/// What was enqueued still runs, as with the real driver.
API Result cuStreamDestroy_v2(Stream* handle) {
    if (!handle) return invalid_handle;
    const Result result = finish(handle);
    const Lock lock(stream_mutex);
    streams().erase(handle);
    return result;
}

API Result cuStreamSynchronize(Stream* handle) { return finish(handle); }

/// A query is something that somebody waits with, so it runs what the stream holds.
API Result cuStreamQuery(Stream* handle) { return finish(handle, false); }

API Result cuCtxSynchronize() {
    WITH_CONTEXT(context);
    return finish_all(context);
}

API Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    WITH_CONTEXT(context);
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return success;
}

// Events.

namespace {

constexpr unsigned WITHOUT_TIMING = 2;

std::map<Event*, std::unique_ptr<Event>>& events() {
    static auto* table = new std::map<Event*, std::unique_ptr<Event>>();
    return *table;
}

Result finish_event(Event* handle, const char* call, bool waiting) {
    WITH_CONTEXT(context);
    std::shared_ptr<Record> record;
    {
        const Lock lock(stream_mutex);
        Event* event = event_of(handle);
        if (!event) return invalid_handle;
        if (event->capture) {
            report("%s: the event was recorded in a capture", call);
            event->capture->invalidated = true;
            return captured_event;
        }
        record = event->record;
    }
    // An event that was never recorded counts as reached.
    return record ? run_until(record->stream, record->place, waiting) : success;
}

}  // namespace

Event* event_of(Event* handle) {
    if (events().count(handle)) return handle;
    report("a call names an event that does not exist, or was destroyed");
    return nullptr;
}

API Result cuEventCreate(Event** handle, unsigned flags) {
    WITH_CONTEXT(context);
    if (!handle || flags > 7) return invalid_value;
    auto event = std::make_unique<Event>();
    event->context = context;
    event->flags = flags;
    *handle = event.get();
    const Lock lock(stream_mutex);
    events()[event.get()] = std::move(event);
    return success;
}

API Result cuEventDestroy_v2(Event* handle) {
    const Lock lock(stream_mutex);
    if (!event_of(handle)) return invalid_handle;
    events().erase(handle);
    return success;
}

API Result cuEventRecord(Event* handle, Stream* stream_handle) {
    WITH_CONTEXT(context);
    const auto stream = stream_of(stream_handle, context);
    if (!stream) return invalid_handle;
    auto record = std::make_shared<Record>();
    {
        const Lock lock(stream_mutex);
        Event* event = event_of(handle);
        if (!event || event->context != stream->context) return invalid_handle;
        if (stream->capture) {
            const auto& frontier = stream->capture->frontier(stream.get());
            event->capture = stream->capture;
            event->nodes = {frontier.begin(), frontier.end()};
            event->record = nullptr;
            return success;
        }
        event->capture = nullptr;
        event->record = record;
        record->stream = stream;
        record->place = stream->enqueued + 1;
    }
    return enqueue_on(stream, {[record] {
                                   const Lock lock(stream_mutex);
                                   record->reached = true;
                                   record->seconds = now();
                                   return (int)success;
                               },
                               nullptr});
}

API Result cuStreamWaitEvent(Stream* stream_handle, Event* handle, unsigned) {
    WITH_CONTEXT(context);
    const auto stream = stream_of(stream_handle, context);
    if (!stream) return invalid_handle;
    std::shared_ptr<Record> record;
    {
        const Lock lock(stream_mutex);
        Event* event = event_of(handle);
        if (!event) return invalid_handle;
        if (event->capture) {
            if (event->capture->ended) {
                report("cuStreamWaitEvent: the event was recorded in a capture that has ended");
                return captured_event;
            }
            if (stream->capture && stream->capture != event->capture) {
                report("cuStreamWaitEvent: the event belongs to another capture than the stream");
                stream->capture->invalidated = event->capture->invalidated = true;
                return capture_merge;
            }
            // The stream takes part in the capture from here on.
            stream->capture = event->capture;
            auto& frontier = stream->capture->frontier(stream.get());
            for (size_t node : event->nodes)
                if (std::find(frontier.begin(), frontier.end(), node) == frontier.end()) frontier.push_back(node);
            return success;
        }
        record = event->record;
        if (!record) return success;
        if (stream->capture) {
            report("cuStreamWaitEvent: a capture waits for an event that was recorded outside it");
            stream->capture->invalidated = true;
            return capture_isolation;
        }
    }
    return enqueue_on(stream, {nullptr, record});
}

API Result cuEventSynchronize(Event* handle) { return finish_event(handle, "cuEventSynchronize", true); }
API Result cuEventQuery(Event* handle) { return finish_event(handle, "cuEventQuery", false); }

API Result cuEventElapsedTime_v2(float* milliseconds, Event* first, Event* second) {
    WITH_CONTEXT(context);
    const Lock lock(stream_mutex);
    if (!milliseconds || !event_of(first) || !event_of(second)) return invalid_handle;
    if (!first->record || !second->record || ((first->flags | second->flags) & WITHOUT_TIMING)) {
        report("cuEventElapsedTime: an event was not recorded, or was made without timing");
        return invalid_handle;
    }
    if (!first->record->reached || !second->record->reached) return not_ready;
    *milliseconds = (float)((second->record->seconds - first->record->seconds) * 1e3);
    return success;
}

API Result cuEventElapsedTime(float* milliseconds, Event* first, Event* second) {
    return cuEventElapsedTime_v2(milliseconds, first, second);
}
