// The stand-in for cuDNN: its backend interface, for graphs of one convolution, to whose result a
// bias may be added. Descriptors keep what they were given,
// checked against the tables below, and finalizing tests whether it fits together.
//
// Three engines: 11 rounds operands of f32 to TF32 and needs a workspace; 7 sums in another order each time (its note
// says so); 0 is plain and needs nothing. With PHALANX_STANDIN_DNN_SLOW=ENGINE:MS that engine takes so much longer.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>

#include "../standin.h"
#include "convolution.h"

namespace {

/// Values of cudnnStatus_t.
enum Status : int {
    success = 0,
    bad_param = 2000,
    null_pointer = 2002,
    misaligned_pointer = 2003,
    not_finalized = 2004,
    shape_mismatch = 2008,
    wrong_type = 2010,
    wrong_descriptor = 2012,
    not_supported = 3000,
    execution_failed = 5000,
};

/// Values of cudnnBackendAttributeType_t; only of these.
enum ValueType : int {
    HANDLE = 0,
    DATA_TYPE = 1,
    INT64 = 3,
    FLOAT = 4,
    DOUBLE = 5,
    VOID_PTR = 6,
    CONVOLUTION_MODE = 7,
    HEUR_MODE = 8,
    KNOB_TYPE = 9,
    NUMERICAL_NOTE = 11,
    POINTWISE_MODE = 14,
    DESCRIPTOR = 15,
    BEHAVIOR_NOTE = 19,
    BOOLEAN = 2,
};

/// Values of cudnnBackendDescriptorType_t.
enum Kind : int {
    POINTWISE = 0,
    CONVOLUTION = 1,
    ENGINE = 2,
    ENGINE_CONFIG = 3,
    HEURISTICS = 4,
    PLAN = 5,
    KNOB_CHOICE = 7,
    FORWARD = 10,
    BACKWARD_FILTER = 11,
    BACKWARD_DATA = 12,
    POINTWISE_OPERATION = 13,
    GRAPH = 15,
    VARIANT_PACK = 16,
    TENSOR = 17,
};

/// What may be set on a descriptor of a kind.
struct Attribute {
    Kind kind;
    int number;
    ValueType type;
    bool required;
};
const Attribute ATTRIBUTES[] = {
    {TENSOR, 900, INT64, true},
    {TENSOR, 901, DATA_TYPE, true},
    {TENSOR, 902, INT64, true},
    {TENSOR, 903, INT64, true},
    {TENSOR, 906, INT64, true},
    {TENSOR, 907, BOOLEAN, false},
    {CONVOLUTION, 100, DATA_TYPE, true},
    {CONVOLUTION, 101, CONVOLUTION_MODE, true},
    {CONVOLUTION, 102, INT64, true},
    {CONVOLUTION, 103, INT64, true},
    {CONVOLUTION, 104, INT64, true},
    {CONVOLUTION, 105, INT64, true},
    {CONVOLUTION, 106, INT64, true},
    {FORWARD, 700, FLOAT, true},
    {FORWARD, 701, FLOAT, true},
    {FORWARD, 702, DESCRIPTOR, true},
    {FORWARD, 703, DESCRIPTOR, true},
    {FORWARD, 704, DESCRIPTOR, true},
    {FORWARD, 705, DESCRIPTOR, true},
    {BACKWARD_DATA, 706, FLOAT, true},
    {BACKWARD_DATA, 707, FLOAT, true},
    {BACKWARD_DATA, 708, DESCRIPTOR, true},
    {BACKWARD_DATA, 709, DESCRIPTOR, true},
    {BACKWARD_DATA, 710, DESCRIPTOR, true},
    {BACKWARD_DATA, 711, DESCRIPTOR, true},
    {BACKWARD_FILTER, 712, FLOAT, true},
    {BACKWARD_FILTER, 713, FLOAT, true},
    {BACKWARD_FILTER, 714, DESCRIPTOR, true},
    {BACKWARD_FILTER, 715, DESCRIPTOR, true},
    {BACKWARD_FILTER, 716, DESCRIPTOR, true},
    {BACKWARD_FILTER, 717, DESCRIPTOR, true},
    {POINTWISE, 0, POINTWISE_MODE, true},
    {POINTWISE, 1, DATA_TYPE, true},
    {POINTWISE_OPERATION, 750, DESCRIPTOR, true},
    {POINTWISE_OPERATION, 751, DESCRIPTOR, true},
    {POINTWISE_OPERATION, 752, DESCRIPTOR, true},
    {POINTWISE_OPERATION, 753, DESCRIPTOR, true},
    {GRAPH, 800, HANDLE, true},
    {GRAPH, 801, DESCRIPTOR, true},
    {HEURISTICS, 200, HEUR_MODE, true},
    {HEURISTICS, 201, DESCRIPTOR, true},
    {ENGINE, 1300, DESCRIPTOR, true},
    {ENGINE, 1301, INT64, true},
    {ENGINE_CONFIG, 300, DESCRIPTOR, true},
    {ENGINE_CONFIG, 302, DESCRIPTOR, false},
    {KNOB_CHOICE, 600, KNOB_TYPE, true},
    {KNOB_CHOICE, 601, INT64, true},
    {PLAN, 400, HANDLE, false},
    {PLAN, 401, DESCRIPTOR, true},
    {VARIANT_PACK, 1000, INT64, true},
    {VARIANT_PACK, 1001, VOID_PTR, true},
    {VARIANT_PACK, 1003, VOID_PTR, false},
};

struct Engine {
    int64_t index;
    std::vector<int32_t> notes;
    size_t workspace;
    /// A setting (knob) and its value, when it has one.
    int32_t knob;
    int64_t setting;
    bool fallback;
};
/// Notes: 0 tensor cores, 4 another result each time.
const Engine ENGINES[] = {
    {11, {0}, 4096 + 512, -1, 0, false},
    {7, {4}, 1 << 20, 2, 3, false},
    {0, {}, 0, -1, 0, true},
};

/// Milliseconds that an engine is asked to waste.
unsigned wasted(const Engine& engine) {
    long long index = -1;
    unsigned ms = 0;
    const char* asked = getenv("PHALANX_STANDIN_DNN_SLOW");
    return asked && sscanf(asked, "%lld:%u", &index, &ms) == 2 && index == engine.index ? ms : 0;
}

thread_local std::string last_error;

Status refuse(Status status, const std::string& why) {
    last_error = why;
    standin::report("cuDNN: " + why);
    return status;
}

size_t bytes_of_value(int type) {
    switch (type) {
        case BOOLEAN: return 1;
        case HANDLE:
        case INT64:
        case DOUBLE:
        case VOID_PTR:
        case DESCRIPTOR: return 8;
        default: return 4;
    }
}

struct Data;
using Shared = std::shared_ptr<Data>;

struct Value {
    int type;
    std::vector<unsigned char> bytes;
    std::vector<Shared> descriptors;

    template <class T>
    std::vector<T> all() const {
        std::vector<T> values(bytes.size() / sizeof(T));
        memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
        return values;
    }
    template <class T>
    T one() const {
        return all<T>().empty() ? T{} : all<T>().front();
    }
};

struct Data {
    Kind kind;
    bool finalized = false;
    std::map<int, Value> values;
    /// What finalizing made of an operation, or of what refers to one.
    std::shared_ptr<const Convolution> convolution;
    const Engine* engine = nullptr;

    template <class T>
    void set(int attribute, ValueType type, const std::vector<T>& what) {
        Value& v = values[attribute];
        v.type = type;
        const auto* bytes = reinterpret_cast<const unsigned char*>(what.data());
        v.bytes.assign(bytes, bytes + what.size() * sizeof(T));
    }
    void set(int attribute, const std::vector<Shared>& what) { values[attribute] = {DESCRIPTOR, {}, what}; }
};

/// A handle of the caller's: descriptors that refer to another keep what it holds, not the handle.
struct Descriptor {
    Shared data;
};

struct Handle {
    void* stream = nullptr;
};

Shared made(Kind kind) {
    auto data = std::make_shared<Data>();
    data->kind = kind;
    return data;
}

Status tensor_of(const Data& d, Tensor& t) {
    switch (d.values.at(901).one<int32_t>()) {
        case 0: t.type = Type::f32; break;
        case 2: t.type = Type::f16; break;
        case 9: t.type = Type::bf16; break;
        default: return refuse(not_supported, "a tensor of a type that the stand-in does not know");
    }
    t.sizes = d.values.at(902).all<int64_t>();
    t.strides = d.values.at(903).all<int64_t>();
    t.uid = d.values.at(906).one<int64_t>();
    t.alignment = d.values.at(900).one<int64_t>();
    t.nowhere = d.values.count(907) && d.values.at(907).one<char>();
    if (t.sizes.size() < 3 || t.sizes.size() != t.strides.size())
        return refuse(bad_param, "a tensor's sizes and strides do not match");
    for (size_t i = 0; i < t.sizes.size(); i++)
        if (t.sizes[i] < 1 || t.strides[i] < 1) return refuse(bad_param, "a tensor's size or stride is not positive");
    if (t.alignment < (int64_t)bytes_of(t.type) || (t.alignment & (t.alignment - 1)) != 0)
        return refuse(bad_param, "a tensor's alignment is no power of two");
    return success;
}

Status finalize_operation(Data& d) {
    // Attributes: alpha, beta, convolution, w, x, y.
    struct {
        Kind kind;
        Direction direction;
        int attributes[6];
    } const operations[] = {
        {FORWARD, Direction::forward, {700, 701, 702, 703, 704, 705}},
        {BACKWARD_DATA, Direction::data, {706, 707, 708, 709, 710, 711}},
        {BACKWARD_FILTER, Direction::weights, {712, 713, 714, 715, 716, 717}},
    };
    for (const auto& o : operations) {
        if (o.kind != d.kind) continue;
        auto c = std::make_shared<Convolution>();
        c->direction = o.direction;
        c->alpha = d.values.at(o.attributes[0]).one<float>();
        c->beta = d.values.at(o.attributes[1]).one<float>();
        const Shared parts[] = {
            d.values.at(o.attributes[2]).descriptors[0], d.values.at(o.attributes[3]).descriptors[0],
            d.values.at(o.attributes[4]).descriptors[0], d.values.at(o.attributes[5]).descriptors[0]};
        if (parts[0]->kind != CONVOLUTION || parts[1]->kind != TENSOR || parts[2]->kind != TENSOR ||
            parts[3]->kind != TENSOR)
            return refuse(wrong_descriptor, "an operation refers to descriptors of other kinds");
        c->stride = parts[0]->values.at(103).all<int64_t>();
        c->dilation = parts[0]->values.at(102).all<int64_t>();
        c->before = parts[0]->values.at(105).all<int64_t>();
        c->after = parts[0]->values.at(104).all<int64_t>();
        tensor_of(*parts[1], c->w), tensor_of(*parts[2], c->x), tensor_of(*parts[3], c->y);
        if (c->x.uid == c->w.uid || c->x.uid == c->y.uid || c->w.uid == c->y.uid)
            return refuse(bad_param, "two tensors have one name");
        const std::string wrong = c->wrong();
        if (!wrong.empty()) return refuse(shape_mismatch, wrong);
        d.convolution = c;
    }
    return success;
}

/// A convolution whose result is nowhere in memory, and the operation that adds a bias to it.
Status add_bias(Data& graph) {
    const auto& operations = graph.values[801].descriptors;
    if (operations.size() > 2) return refuse(not_supported, "a graph of more than two operations");
    const Data &first = *operations[0], &second = *operations[1];
    if (!first.convolution || second.kind != POINTWISE_OPERATION)
        return refuse(not_supported, "a graph of two operations that are no convolution and one on each element");
    const auto part = [&](int attribute) { return second.values.at(attribute).descriptors[0]; };
    if (part(750)->values.at(0).one<int32_t>() != 0) return refuse(not_supported, "an operation that is no addition");
    auto c = std::make_shared<Convolution>(*first.convolution);
    Tensor sum, bias, y;
    tensor_of(*part(751), sum), tensor_of(*part(752), bias), tensor_of(*part(753), y);
    if (!sum.nowhere || !c->y.nowhere || sum.uid != c->y.uid || c->direction != Direction::forward)
        return refuse(bad_param, "the addition is not to what the convolution gives");
    if (y.nowhere || bias.nowhere || y.sizes != c->y.sizes || y.type != c->x.type)
        return refuse(shape_mismatch, "a sum with a bias that is not as y");
    for (size_t i = 0; i < bias.sizes.size(); i++)
        if (bias.sizes.size() != y.sizes.size() || bias.sizes[i] != (i == 1 ? y.sizes[1] : 1))
            return refuse(shape_mismatch, "a bias that has not one number a channel");
    if (c->beta != 0) return refuse(not_supported, "a bias beside what y holds");
    c->y = y, c->bias = bias, c->biased = true;
    graph.convolution = c;
    return success;
}

Shared engine_config(const Engine& engine, const std::shared_ptr<const Convolution>& convolution) {
    const Shared e = made(ENGINE), config = made(ENGINE_CONFIG);
    e->engine = config->engine = &engine;
    e->convolution = config->convolution = convolution;
    e->finalized = config->finalized = true;
    e->set(1301, INT64, std::vector<int64_t>{engine.index});
    e->set(1303, NUMERICAL_NOTE, engine.notes);
    e->set(1305, BEHAVIOR_NOTE, std::vector<int32_t>{});
    config->set(300, {e});
    std::vector<Shared> knobs;
    if (engine.knob >= 0) {
        knobs.push_back(made(KNOB_CHOICE));
        knobs[0]->finalized = true;
        knobs[0]->set(600, KNOB_TYPE, std::vector<int32_t>{engine.knob});
        knobs[0]->set(601, INT64, std::vector<int64_t>{engine.setting});
    }
    config->set(302, knobs);
    return config;
}

const Shared& first(const Data& d, int attribute) { return d.values.at(attribute).descriptors[0]; }

Status finalize(Data& d) {
    for (const Attribute& a : ATTRIBUTES) {
        if (a.kind != d.kind || !a.required) continue;
        const auto found = d.values.find(a.number);
        if (found == d.values.end() || (found->second.bytes.empty() && found->second.descriptors.empty()))
            return refuse(bad_param, "attribute " + std::to_string(a.number) + " was not set");
    }
    switch (d.kind) {
        case TENSOR: {
            Tensor t;
            return tensor_of(d, t);
        }
        case CONVOLUTION: {
            const auto axes = (size_t)d.values[106].one<int64_t>();
            for (int number : {102, 103, 104, 105})
                if (d.values[number].all<int64_t>().size() != axes)
                    return refuse(bad_param, "a convolution's lists have different lengths");
            if (d.values[101].one<int32_t>() != 1) return refuse(not_supported, "only cross-correlations");
            if (d.values[100].one<int32_t>() != 0) return refuse(not_supported, "only sums in f32");
            return success;
        }
        case FORWARD:
        case BACKWARD_DATA:
        case BACKWARD_FILTER: return finalize_operation(d);
        case GRAPH:
            if (d.values[801].descriptors.size() != 1) return add_bias(d);
            d.convolution = first(d, 801)->convolution;
            if (d.convolution && d.convolution->y.nowhere) return refuse(bad_param, "a result that is nowhere");
            return d.convolution ? success : refuse(wrong_descriptor, "a graph of something that is no operation");
        case HEURISTICS: {
            d.convolution = first(d, 201)->convolution;
            const int mode = d.values[200].one<int32_t>();
            std::vector<Shared> results;
            // A bias is nothing that engines for groups know.
            const bool none = d.convolution->biased && d.convolution->x.sizes[1] != d.convolution->w.sizes[1];
            for (const Engine& e : ENGINES)
                if (e.fallback == (mode == 2) && !none) results.push_back(engine_config(e, d.convolution));
            d.set(202, results);
            return success;
        }
        case ENGINE: {
            d.convolution = first(d, 1300)->convolution;
            const int64_t index = d.values[1301].one<int64_t>();
            for (const Engine& e : ENGINES)
                if (e.index == index) d.engine = &e;
            if (!d.engine) return refuse(not_supported, "engine " + std::to_string(index) + " does not exist");
            d.set(1303, NUMERICAL_NOTE, d.engine->notes);
            return success;
        }
        case ENGINE_CONFIG:
            d.engine = first(d, 300)->engine;
            d.convolution = first(d, 300)->convolution;
            return d.engine ? success : refuse(wrong_descriptor, "a configuration of something that is no engine");
        case PLAN:
            d.engine = first(d, 401)->engine;
            d.convolution = first(d, 401)->convolution;
            if (!d.engine || !d.convolution)
                return refuse(wrong_descriptor, "a plan of something that is no configuration");
            d.set(402, INT64, std::vector<int64_t>{(int64_t)d.engine->workspace});
            return success;
        case VARIANT_PACK:
            if (d.values[1000].all<int64_t>().size() != d.values[1001].all<void*>().size())
                return refuse(bad_param, "names and pointers differ in number");
            return success;
        case POINTWISE:
        case POINTWISE_OPERATION:
        case KNOB_CHOICE: return success;
    }
    return success;
}

}  // namespace

API size_t cudnnGetVersion() { return (size_t)standin_version("DNN", 91900); }

API const char* cudnnGetErrorString(Status status) {
    switch (status) {
        case success: return "CUDNN_STATUS_SUCCESS";
        case bad_param: return "CUDNN_STATUS_BAD_PARAM";
        case null_pointer: return "CUDNN_STATUS_BAD_PARAM_NULL_POINTER";
        case misaligned_pointer: return "CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER";
        case not_finalized: return "CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED";
        case shape_mismatch: return "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH";
        case wrong_type: return "CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE";
        case wrong_descriptor: return "CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE";
        case not_supported: return "CUDNN_STATUS_NOT_SUPPORTED";
        case execution_failed: return "CUDNN_STATUS_EXECUTION_FAILED";
    }
    return "CUDNN_STATUS unknown";
}

API void cudnnGetLastErrorString(char* message, size_t bytes) {
    if (bytes) snprintf(message, bytes, "%s", last_error.c_str());
    last_error.clear();
}

API Status cudnnCreate(Handle** handle) {
    *handle = new Handle();
    return success;
}

API Status cudnnDestroy(Handle* handle) {
    delete handle;
    return success;
}

API Status cudnnSetStream(Handle* handle, void* stream) {
    if (!handle) return null_pointer;
    handle->stream = stream;
    return success;
}

API Status cudnnBackendCreateDescriptor(Kind kind, Descriptor** descriptor) {
    bool known = false;
    for (const Attribute& a : ATTRIBUTES) known |= a.kind == kind;
    if (!known)
        return refuse(not_supported, "descriptors of kind " + std::to_string(kind) + " are not known to the stand-in");
    *descriptor = new Descriptor{made(kind)};
    return success;
}

API Status cudnnBackendDestroyDescriptor(Descriptor* descriptor) {
    delete descriptor;
    return success;
}

API Status cudnnBackendSetAttribute(Descriptor* descriptor, int number, int type, int64_t count, const void* values) {
    if (!descriptor || (!values && count > 0)) return null_pointer;
    Data& d = *descriptor->data;
    if (d.finalized) return refuse(bad_param, "an attribute of a finalized descriptor is set");
    for (const Attribute& a : ATTRIBUTES) {
        if (a.kind != d.kind || a.number != number) continue;
        if (type != a.type)
            return refuse(wrong_type, "attribute " + std::to_string(number) + " has type " + std::to_string(a.type) +
                                          ", not " + std::to_string(type));
        Value value{type, {}, {}};
        if (type == DESCRIPTOR) {
            for (int64_t i = 0; i < count; i++) {
                const Shared& other = static_cast<Descriptor* const*>(values)[i]->data;
                if (!other->finalized)
                    return refuse(not_finalized,
                                  "attribute " + std::to_string(number) + " names a descriptor that is not finalized");
                value.descriptors.push_back(other);
            }
        } else {
            const auto* bytes = static_cast<const unsigned char*>(values);
            value.bytes.assign(bytes, bytes + (size_t)count * bytes_of_value(type));
        }
        d.values[number] = value;
        return success;
    }
    return refuse(not_supported, "attribute " + std::to_string(number) + " of kind " + std::to_string(d.kind) +
                                     " is not known to the stand-in");
}

/// Descriptors that are got are ones that the caller made and did not finalize. With no room only the number is told.
API Status cudnnBackendGetAttribute(Descriptor* descriptor, int number, int type, int64_t room, int64_t* count,
                                    void* values) {
    if (!descriptor) return null_pointer;
    const Data& d = *descriptor->data;
    if (!d.finalized) return refuse(not_finalized, "an attribute of a descriptor that is not finalized is asked for");
    const auto found = d.values.find(number);
    if (found == d.values.end())
        return refuse(not_supported,
                      "attribute " + std::to_string(number) + " of kind " + std::to_string(d.kind) + " has no value");
    const Value& value = found->second;
    if (type != value.type)
        return refuse(wrong_type, "attribute " + std::to_string(number) + " has type " + std::to_string(value.type) +
                                      ", not " + std::to_string(type));
    const size_t size = bytes_of_value(type);
    const size_t there = type == DESCRIPTOR ? value.descriptors.size() : value.bytes.size() / size;
    if (count) *count = (int64_t)there;
    const size_t wanted = room > 0 && (size_t)room < there ? (size_t)room : there;
    if (room == 0 || !values) return success;
    if (type != DESCRIPTOR) {
        memcpy(values, value.bytes.data(), wanted * size);
        return success;
    }
    for (size_t i = 0; i < wanted; i++) {
        Descriptor* to = static_cast<Descriptor**>(values)[i];
        if (!to || to->data->kind != value.descriptors[i]->kind)
            return refuse(wrong_descriptor, "a descriptor of another kind is given to be filled");
        to->data = value.descriptors[i];
    }
    return success;
}

API Status cudnnBackendFinalize(Descriptor* descriptor) {
    if (!descriptor) return null_pointer;
    const Status status = finalize(*descriptor->data);
    descriptor->data->finalized = status == success;
    return status;
}

API Status cudnnBackendExecute(Handle* handle, Descriptor* plan, Descriptor* pack) {
    if (!handle || !plan || !pack) return null_pointer;
    if (plan->data->kind != PLAN || pack->data->kind != VARIANT_PACK)
        return refuse(wrong_descriptor, "no plan, or no variant pack");
    if (!plan->data->finalized || !pack->data->finalized)
        return refuse(not_finalized, "a plan or a variant pack is not finalized");
    const auto convolution = plan->data->convolution;
    const Engine& engine = *plan->data->engine;
    const auto uids = pack->data->values[1000].all<int64_t>();
    const auto pointers = pack->data->values[1001].all<void*>();
    void* at[4] = {};
    const Tensor* const tensors[] = {&convolution->x, &convolution->w, &convolution->y, &convolution->bias};
    const int count = convolution->biased ? 4 : 3;
    for (int i = 0; i < count; i++) {
        for (size_t u = 0; u < uids.size(); u++)
            if (uids[u] == tensors[i]->uid) at[i] = pointers[u];
        if (!at[i]) return refuse(bad_param, "no pointer for tensor " + std::to_string(tensors[i]->uid));
        if ((uintptr_t)at[i] % (uintptr_t)tensors[i]->alignment != 0)
            return refuse(misaligned_pointer, "tensor " + std::to_string(tensors[i]->uid) + " is not aligned to " +
                                                  std::to_string(tensors[i]->alignment) + " bytes");
    }
    void* const workspace = pack->data->values.count(1003) ? pack->data->values[1003].one<void*>() : nullptr;
    const auto addresses_hold = [=, &engine] {
        return phalanx_standin_check(at[0], convolution->x.bytes(), "cuDNN: x") &&
               phalanx_standin_check(at[1], convolution->w.bytes(), "cuDNN: w") &&
               phalanx_standin_check(at[2], convolution->y.bytes(), "cuDNN: y") &&
               (count < 4 || phalanx_standin_check(at[3], convolution->bias.bytes(), "cuDNN: the bias")) &&
               phalanx_standin_check(workspace, engine.workspace, "cuDNN: the workspace");
    };
    if (!addresses_hold()) return bad_param;
    const std::string code = "cuDNN's convolution " + std::to_string(engine.index) + " " + convolution->name();
    if (phalanx_standin_load(code.c_str())) return execution_failed;
    const int failed = standin::enqueue(handle->stream, [=, &engine] {
        constexpr int ILLEGAL_ADDRESS = 700;
        if (!addresses_hold()) return ILLEGAL_ADDRESS;
        static std::atomic<unsigned> executions{0};
        Numerics how;
        for (int note : engine.notes) {
            how.tf32 |= note == 0;
            how.backwards |= note == 4 && executions++ % 2 == 1;
        }
        how.tf32 &= convolution->x.type == Type::f32;
        usleep(1000 * wasted(engine));
        // Whoever keeps something in the workspace shall notice.
        if (engine.workspace) memset(workspace, 0xff, engine.workspace);
        convolution->run(at[0], at[1], at[2], at[3], how);
        return 0;
    });
    return failed ? execution_failed : success;
}
