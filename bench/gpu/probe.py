#!/usr/bin/env python3
"""What a GPU's libraries can do, before anything is built on them: cuDNN's two interfaces, NCCL, one captured step.

usage: probe.py [--batch N] [--json FILE]

Five convolutions of ResNet-50 (He et al., 2016) in bf16, channels last: forward, gradient of the input, gradient of the
weights (into bf16 and into f32), by cuDNN's legacy calls (the fastest algorithm it finds), by its backend calls (each
engine that the heuristics name, the fastest of them; and the fastest deterministic one), and by PyTorch with
`cudnn.benchmark`. Then whether `libnccl.so.2` loads and sums with one rank, and a step of five convolutions captured in a
CUDA graph. Needs a GPU and PyTorch, whose libraries it uses; prints a table, writes JSON with the versions.
"""

import argparse
import ctypes as c
import json
import subprocess

import torch

ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("--batch", type=int, default=256)
ap.add_argument("--json")
ARGS = ap.parse_args()
# (image, channels in, channels out, kernel, stride)
CONVS = [(224, 3, 64, 7, 2), (56, 64, 64, 3, 1), (56, 256, 64, 1, 1), (14, 256, 256, 3, 1), (14, 1024, 2048, 1, 2)]
LIMIT = 1 << 30
cudnn = c.CDLL("libcudnn.so.9")
BF16, F32 = 9, 0


def check(status, what):
    if status:
        cudnn.cudnnGetErrorString.restype = c.c_char_p
        raise RuntimeError(f"{what}: {cudnn.cudnnGetErrorString(status).decode()}")


def timed(run, rounds=20):
    """Milliseconds of one call, the median of `rounds` after a warm-up."""
    for _ in range(3):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for e in events[1:]:
        run()
        e.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))[rounds // 2]


HANDLE = c.c_void_p()
WORK = None


def ptr(t):
    return c.c_void_p(t.data_ptr())


class Descriptor:
    """A descriptor of the backend interface; attributes are (name, type, values)."""

    def __init__(self, kind, attributes):
        self.h = c.c_void_p()
        check(cudnn.cudnnBackendCreateDescriptor(kind, c.byref(self.h)), "create")
        for name, kind_of, values in attributes:
            what = {0: c.c_void_p, 1: c.c_int, 2: c.c_bool, 3: c.c_int64, 4: c.c_float, 5: c.c_double}
            array = ((what.get(kind_of) or (c.c_void_p if kind_of in (6, 15) else c.c_int)) * len(values))(*values)
            self.keep = getattr(self, "keep", []) + [array, values]
            check(cudnn.cudnnBackendSetAttribute(self.h, name, kind_of, c.c_int64(len(values)), array), f"set {name}")
        check(cudnn.cudnnBackendFinalize(self.h), f"finalize {kind}")

    def get(self, name, kind_of, what, n=1):
        count, array = c.c_int64(), (what * n)()
        check(cudnn.cudnnBackendGetAttribute(self.h, name, kind_of, c.c_int64(n), c.byref(count), array), f"get {name}")
        return list(array[: count.value])


def tensor_descriptor(uid, dims, dtype):
    n, ch, h, w = dims
    strides = (h * w * ch, 1, w * ch, ch)
    return Descriptor(17, [(901, 1, (dtype,)), (902, 3, dims), (903, 3, strides), (906, 3, (uid,)), (900, 3, (16,))])


def plans(which, xd, wd, yd, stride, pad, types):
    """Execution plans of a convolution, in the order that the heuristics give."""
    t = [tensor_descriptor(i + 1, d, k) for i, (d, k) in enumerate(zip((xd, wd, yd), types))]
    conv = Descriptor(1, [(100, 1, (F32,)), (101, 7, (1,)), (106, 3, (2,)), (102, 3, (1, 1)), (103, 3, (stride,) * 2),
                          (105, 3, (pad,) * 2), (104, 3, (pad,) * 2)])
    x, w, y = (d.h.value for d in t)
    kind, names = {"forward": (10, (700, 701, 702, 704, 703, 705)), "data": (12, (706, 707, 708, 710, 709, 711)),
                   "filter": (11, (712, 713, 714, 716, 715, 717))}[which]
    op = Descriptor(kind, [(names[0], 4, (1.0,)), (names[1], 4, (0.0,)), (names[2], 15, (conv.h.value,)),
                           (names[3], 15, (x,)), (names[4], 15, (w,)), (names[5], 15, (y,))])
    graph = Descriptor(15, [(800, 0, (HANDLE.value,)), (801, 15, (op.h.value,))])
    made, seen = [], set()
    for mode in (3, 2):  # A, then the fallback
        heuristics = Descriptor(4, [(201, 15, (graph.h.value,)), (200, 8, (mode,))])
        count = c.c_int64()
        cudnn.cudnnBackendGetAttribute(heuristics.h, 202, 15, c.c_int64(0), c.byref(count), None)
        configs = [c.c_void_p() for _ in range(count.value)]
        for cfg in configs:
            check(cudnn.cudnnBackendCreateDescriptor(3, c.byref(cfg)), "config")
        array = (c.c_void_p * len(configs))(*[x.value for x in configs])
        check(cudnn.cudnnBackendGetAttribute(heuristics.h, 202, 15, c.c_int64(len(configs)), c.byref(count), array), "results")
        for rank, cfg in enumerate(array[: count.value]):
            if len(made) >= 12:
                break
            try:
                plan = Descriptor(5, [(400, 0, (HANDLE.value,)), (401, 15, (cfg,))])
            except RuntimeError:
                continue
            work = plan.get(402, 3, c.c_int64)[0]
            engine = Descriptor.__new__(Descriptor)
            engine.h = c.c_void_p()
            cudnn.cudnnBackendCreateDescriptor(2, c.byref(engine.h))
            one = (c.c_void_p * 1)(engine.h.value)
            cudnn.cudnnBackendGetAttribute(c.c_void_p(cfg), 300, 15, c.c_int64(1), c.byref(count), one)
            index = engine.get(1301, 3, c.c_int64)[0]
            notes = engine.get(1303, 11, c.c_int, 10)
            behaviour = engine.get(1305, 19, c.c_int, 5)
            if work <= LIMIT:
                made.append({"plan": plan, "engine": index, "work": work, "exact": 4 not in notes, "notes": notes,
                             "behaviour": behaviour, "mode": mode, "place": rank})
    made and made[0].setdefault("keep", (t, conv, op, graph))
    return made


def execute(plan, pointers):
    pack = Descriptor(16, [(1000, 3, (1, 2, 3)), (1001, 6, tuple(p.value for p in pointers)), (1003, 6, (WORK.data_ptr(),))])
    return lambda: check(cudnn.cudnnBackendExecute(HANDLE, plan.h, pack.h), "execute")


class Perf(c.Structure):
    _fields_ = [("algo", c.c_int), ("status", c.c_int), ("time", c.c_float), ("memory", c.c_size_t),
                ("exact", c.c_int), ("math", c.c_int), ("reserved", c.c_int * 3)]


def legacy(which, xd, wd, yd, stride, pad, x, w, y, wtype):
    """The fastest algorithm of the legacy interface: (milliseconds, algorithm, whether it is deterministic)."""
    td = []
    for dims in (xd, yd):
        d = c.c_void_p()
        cudnn.cudnnCreateTensorDescriptor(c.byref(d))
        check(cudnn.cudnnSetTensor4dDescriptor(d, 1, BF16, *dims), "tensor")
        td.append(d)
    f, conv = c.c_void_p(), c.c_void_p()
    cudnn.cudnnCreateFilterDescriptor(c.byref(f))
    check(cudnn.cudnnSetFilter4dDescriptor(f, wtype, 1, *wd), "filter")
    cudnn.cudnnCreateConvolutionDescriptor(c.byref(conv))
    check(cudnn.cudnnSetConvolution2dDescriptor(conv, pad, pad, stride, stride, 1, 1, 1, F32), "convolution")
    cudnn.cudnnSetConvolutionMathType(conv, 1)
    n, perf = c.c_int(), (Perf * 8)()
    size = c.c_size_t(LIMIT)
    one, zero = c.byref(c.c_float(1)), c.byref(c.c_float(0))
    if which == "forward":
        check(cudnn.cudnnFindConvolutionForwardAlgorithmEx(HANDLE, td[0], ptr(x), f, ptr(w), conv, td[1], ptr(y), 8, c.byref(n), perf, ptr(WORK), size), "find")
        run = lambda a: cudnn.cudnnConvolutionForward(HANDLE, one, td[0], ptr(x), f, ptr(w), conv, a, ptr(WORK), size, zero, td[1], ptr(y))
    elif which == "data":
        check(cudnn.cudnnFindConvolutionBackwardDataAlgorithmEx(HANDLE, f, ptr(w), td[1], ptr(y), conv, td[0], ptr(x), 8, c.byref(n), perf, ptr(WORK), size), "find")
        run = lambda a: cudnn.cudnnConvolutionBackwardData(HANDLE, one, f, ptr(w), td[1], ptr(y), conv, a, ptr(WORK), size, zero, td[0], ptr(x))
    else:
        check(cudnn.cudnnFindConvolutionBackwardFilterAlgorithmEx(HANDLE, td[0], ptr(x), td[1], ptr(y), conv, f, ptr(w), 8, c.byref(n), perf, ptr(WORK), size), "find")
        run = lambda a: cudnn.cudnnConvolutionBackwardFilter(HANDLE, one, td[0], ptr(x), td[1], ptr(y), conv, a, ptr(WORK), size, zero, f, ptr(w))
    best = next(p for p in perf[: n.value] if p.status == 0)
    return {"ms": timed(lambda: check(run(best.algo), "legacy")), "algorithm": best.algo, "exact": best.exact == 1}


def nccl(report):
    lib = c.CDLL("libnccl.so.2")
    version = c.c_int()
    lib.ncclGetVersion(c.byref(version))
    unique, comm = (c.c_char * 128)(), c.c_void_p()

    class Id(c.Structure):
        _fields_ = [("bytes", c.c_char * 128)]

    ident = Id()
    assert lib.ncclGetUniqueId(c.byref(ident)) == 0
    lib.ncclCommInitRank.argtypes = [c.c_void_p, c.c_int, Id, c.c_int]
    assert lib.ncclCommInitRank(c.byref(comm), 1, ident, 0) == 0
    t = torch.randn(25_000_000, device="cuda")
    out = torch.empty_like(t)
    stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)
    lib.ncclAllReduce.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_void_p, c.c_void_p]
    run = lambda: lib.ncclAllReduce(ptr(t), ptr(out), t.numel(), 7, 0, comm, stream)
    ms = timed(run)
    report["nccl"] = {"version": version.value, "one_rank_100MB_ms": ms, "equal": bool(torch.equal(t, out))}


def network(report):
    """PyTorch's ResNet-50 in bf16: the figure to beat, eager and as one captured graph."""
    import torchvision
    torch.backends.cudnn.benchmark = True
    model = torchvision.models.resnet50().cuda().to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    x = torch.randn(ARGS.batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    label = torch.randint(0, 1000, (ARGS.batch,), device="cuda")

    def step():
        sgd.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = torch.nn.functional.cross_entropy(model(x), label)
        loss.backward()
        sgd.step()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        eager = timed(step, 15)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            step()
        captured = timed(graph.replay, 15)
    report["resnet50_pytorch"] = {"eager_images_s": ARGS.batch / eager * 1e3, "captured_images_s": ARGS.batch / captured * 1e3,
                                  "peak_bytes": torch.cuda.max_memory_allocated()}


def main():
    global WORK
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    WORK = torch.empty(LIMIT, dtype=torch.uint8, device="cuda")
    check(cudnn.cudnnCreate(c.byref(HANDLE)), "cudnnCreate")
    check(cudnn.cudnnSetStream(HANDLE, c.c_void_p(torch.cuda.current_stream().cuda_stream)), "stream")
    cudnn.cudnnGetVersion.restype = c.c_size_t
    smi = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True)
    report = {"device": smi.stdout.strip(), "torch": torch.__version__, "cudnn": cudnn.cudnnGetVersion(), "batch": ARGS.batch, "convolutions": []}
    big = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    copy = torch.empty_like(big)
    report["copy_tb_s"] = 2 * 4 * big.numel() / timed(lambda: copy.copy_(big), 10) / 1e9
    del big, copy
    parts = []
    for size, ci, co, k, stride in CONVS:
        pad = k // 2
        for channels in ([ci] if ci > 3 else [3, 4, 8]):
            out = (size + 2 * pad - k) // stride + 1
            xd, wd, yd = (ARGS.batch, channels, size, size), (co, channels, k, k), (ARGS.batch, co, out, out)
            like = lambda d, t=torch.bfloat16: torch.randn(d, device="cuda").to(t).contiguous(memory_format=torch.channels_last)
            x, w, y = like(xd), like(wd), like(yd)
            flops = 2 * ARGS.batch * out * out * co * channels * k * k
            for which, wtype in (("forward", BF16), ("data", BF16), ("filter", BF16), ("filter", F32)):
                row = {"conv": f"{channels}->{co} {k}x{k}/{stride} @{size}", "which": which, "weights": {BF16: "bf16", F32: "f32"}[wtype]}
                wt = like(wd, torch.float32) if wtype == F32 else w
                try:
                    row["legacy"] = legacy(which, xd, wd, yd, stride, pad, x, wt, y, wtype)
                except (RuntimeError, StopIteration) as e:
                    row["legacy"] = {"ms": None, "why": str(e)}
                tried = []
                try:
                    found = plans(which, xd, wd, yd, stride, pad, (BF16, wtype, BF16))
                except RuntimeError as e:
                    found, row["why"] = [], str(e)
                    print(e)
                for p in found:
                    try:
                        run = execute(p["plan"], (ptr(x), ptr(wt), ptr(y)))
                        tried.append({k: v for k, v in p.items() if k not in ("plan", "keep")} | {"ms": timed(run)})
                        if which == "forward" and (not parts or parts[-1][0] != row["conv"]):
                            parts.append((row["conv"], run, (x, w, y, p)))
                    except RuntimeError as e:
                        tried.append({"engine": p["engine"], "ms": None, "why": str(e)})
                good = [p for p in tried if p["ms"]]
                row["first"] = good[0] if good else None
                row["backend"] = min(good, key=lambda p: p["ms"], default=None)
                row["exact"] = min((p for p in good if p["exact"]), key=lambda p: p["ms"], default=None)
                row["tried"] = len(tried)
                mask = [which == "data", which == "filter", False]
                if which == "forward":
                    row["pytorch_ms"] = timed(lambda: torch.nn.functional.conv2d(x, w, None, stride, pad))
                else:
                    row["pytorch_ms"] = timed(lambda: torch.ops.aten.convolution_backward(y, x, w, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, mask))
                row["tflops_best"] = flops / row["backend"]["ms"] / 1e9 if row["backend"] else None
                report["convolutions"].append(row)
                ms = lambda d: f"{d['ms']:8.3f}" if d and d.get("ms") else "       -"
                print(f"{row['conv']:24} {which:8} {row['weights']:5} legacy {ms(row['legacy'])} first {ms(row['first'])} best {ms(row['backend'])} "
                      f"exact {ms(row['exact'])} of {row['tried']:2} pytorch {row['pytorch_ms']:8.3f} TFLOP/s {row['tflops_best'] or 0:6.0f}", flush=True)
    stream = torch.cuda.Stream()
    check(cudnn.cudnnSetStream(HANDLE, c.c_void_p(stream.cuda_stream)), "stream")
    try:
        with torch.cuda.stream(stream):
            run = lambda: [p[1]() for p in parts]
            plain = timed(run)
            before = [p[2][2].clone() for p in parts]
            for p in parts:
                p[2][2].zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                run()
            replay = timed(graph.replay)
            equal = all(torch.equal(a, p[2][2]) for a, p in zip(before, parts))
        report["captured"] = {"convolutions": len(parts), "plain_ms": plain, "replay_ms": replay, "equal": equal}
    except RuntimeError as e:
        report["captured"] = {"why": str(e)}
    for part in (nccl, network):
        try:
            part(report)
        except (RuntimeError, OSError, AssertionError) as e:
            report[part.__name__] = {"why": repr(e)}
    print(json.dumps({k: v for k, v in report.items() if k != "convolutions"}))
    if ARGS.json:
        with open(ARGS.json, "w") as f:
            json.dump(report, f, indent=1)
            f.write("\n")


main()
