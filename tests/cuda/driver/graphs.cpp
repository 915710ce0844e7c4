// Capturing streams, and graphs. A node knows which nodes it comes after, from the order of its stream and the events
// that it waited for; nothing else orders nodes.
#include <algorithm>
#include <map>

#include "streams.h"

namespace {

using Lock = std::unique_lock<std::mutex>;

struct Graph {
    std::vector<Node> nodes;
    std::vector<size_t> last;
};

/// Captures in progress; held under stream_mutex, like the graphs.
std::set<Capture*>& captures() {
    static auto* active = new std::set<Capture*>();
    return *active;
}
std::map<Graph*, std::shared_ptr<const Graph>>& graphs() {
    static auto* table = new std::map<Graph*, std::shared_ptr<const Graph>>();
    return *table;
}
/// An executable graph is a copy of its own, with its own handle.
std::map<Graph*, std::shared_ptr<const Graph>>& executables() {
    static auto* table = new std::map<Graph*, std::shared_ptr<const Graph>>();
    return *table;
}

/// Nodes in the order in which they run: each as late as what comes after it permits, so that an order that nobody
/// asked for is not there.
std::vector<size_t> late_order(const Graph& graph) {
    std::vector<size_t> order;
    std::vector<bool> entered(graph.nodes.size(), false);
    // Depth first without recursion: a graph may be a chain of thousands of nodes. Second: the next of the node's
    // `after`.
    std::vector<std::pair<size_t, size_t>> path;
    const auto visit = [&](size_t start) {
        if (entered[start]) return;
        entered[start] = true;
        path.emplace_back(start, 0);
        while (!path.empty()) {
            auto& [node, next] = path.back();
            const auto& after = graph.nodes[node].after;
            if (next == after.size()) {
                order.push_back(node);
                path.pop_back();
                continue;
            }
            const size_t before = after[next++];
            if (!entered[before]) {
                entered[before] = true;
                path.emplace_back(before, 0);
            }
        }
    };
    for (size_t node : graph.last) visit(node);
    return order;
}

}  // namespace

std::vector<size_t>& Capture::frontier(Stream* stream) {
    for (auto& [known, nodes] : frontiers)
        if (known == stream) return nodes;
    frontiers.emplace_back(stream, std::vector<size_t>());
    return frontiers.back().second;
}

void Capture::add(Stream* stream, Work work) {
    auto& before = frontier(stream);
    nodes.push_back({std::move(work), before});
    before = {nodes.size() - 1};
}

bool is_capturing(Stream* handle) {
    Context* context = nullptr;
    if (current_context(context) != success) return false;
    const auto stream = stream_of(handle, context);
    const Lock lock(stream_mutex);
    return stream && stream->capture;
}

Result refuse_capture(Stream& stream, const char* call) {
    report("%s is not possible while the stream is captured", call);
    stream.capture->invalidated = true;
    return capture_unsupported;
}

bool forbidden_by_capture(const char* call) {
    const Lock lock(stream_mutex);
    for (Capture* capture : captures()) {
        const bool mine = capture->thread == std::this_thread::get_id();
        if (capture->mode == Capture::relaxed || (capture->mode == Capture::thread_local_mode && !mine)) continue;
        report("%s is not possible during a capture", call);
        capture->invalidated = true;
        return true;
    }
    return false;
}

API Result cuStreamBeginCapture_v2(Stream* handle, Capture::Mode mode) {
    WITH_CONTEXT(context);
    if (!handle || mode < Capture::global || mode > Capture::relaxed) return invalid_value;
    const auto stream = stream_of(handle, context);
    if (!stream) return invalid_handle;
    const Lock lock(stream_mutex);
    if (stream->capture) return invalid_value;
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream.get();
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    captures().insert(stream->capture.get());
    return success;
}

API Result cuStreamIsCapturing(Stream* handle, int* status) {
    WITH_CONTEXT(context);
    const auto stream = stream_of(handle, context);
    if (!stream) return invalid_handle;
    const Lock lock(stream_mutex);
    *status = !stream->capture ? 0 : stream->capture->invalidated ? 2 : 1;
    return success;
}

API Result cuStreamEndCapture(Stream* handle, Graph** made) {
    WITH_CONTEXT(context);
    const auto stream = stream_of(handle, context);
    if (!stream || !made) return invalid_handle;
    const Lock lock(stream_mutex);
    *made = nullptr;
    const auto capture = stream->capture;
    if (!capture) return invalid_value;
    if (capture->origin != stream.get()) {
        report("cuStreamEndCapture: the capture was begun on another stream");
        capture->invalidated = true;
        return capture_unmatched;
    }
    if (capture->mode != Capture::relaxed && capture->thread != std::this_thread::get_id()) return capture_wrong_thread;
    captures().erase(capture.get());
    capture->ended = true;
    for (auto& [joined, nodes] : capture->frontiers) joined->capture = nullptr;
    stream->capture = nullptr;
    if (capture->invalidated) return capture_invalidated;
    auto graph = std::make_shared<Graph>();
    graph->last = capture->frontier(stream.get());
    graph->nodes = std::move(capture->nodes);
    if (late_order(*graph).size() != graph->nodes.size()) {
        report(
            "cuStreamEndCapture: work of another stream is in the capture, and the first stream does not wait for it");
        return capture_unjoined;
    }
    *made = graph.get();
    graphs()[graph.get()] = graph;
    return success;
}

API Result cuGraphInstantiateWithFlags(Graph** executable, Graph* handle, unsigned long long) {
    WITH_CONTEXT(context);
    const Lock lock(stream_mutex);
    if (!executable || !graphs().count(handle)) return invalid_value;
    auto own = std::make_shared<Graph>(*graphs()[handle]);
    *executable = own.get();
    executables()[own.get()] = own;
    return success;
}

API Result cuGraphLaunch(Graph* handle, Stream* stream) {
    std::shared_ptr<const Graph> graph;
    {
        const Lock lock(stream_mutex);
        if (!executables().count(handle)) {
            report("cuGraphLaunch: the graph does not exist, or was destroyed");
            return invalid_value;
        }
        graph = executables()[handle];
    }
    // A node that is not done yet is asked again, so each launch remembers how far it got.
    struct Progress {
        std::vector<size_t> order;
        size_t next = 0;
    };
    const auto progress = std::make_shared<Progress>();
    progress->order = late_order(*graph);
    return enqueue(stream, [graph, progress] {
        for (size_t& next = progress->next; next < progress->order.size(); next++) {
            const Work& work = graph->nodes[progress->order[next]].work;
            if (int result = work ? work() : (int)success) return result;
        }
        return (int)success;
    });
}

API Result cuGraphGetNodes(Graph* handle, void** nodes, size_t* count) {
    const Lock lock(stream_mutex);
    if (!graphs().count(handle) || !count || nodes) return invalid_value;
    *count = graphs()[handle]->nodes.size();
    return success;
}

API Result cuGraphExecDestroy(Graph* handle) {
    const Lock lock(stream_mutex);
    return executables().erase(handle) ? success : invalid_value;
}

API Result cuGraphDestroy(Graph* handle) {
    const Lock lock(stream_mutex);
    return graphs().erase(handle) ? success : invalid_value;
}
