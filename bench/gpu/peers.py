#!/usr/bin/env python3
"""PyTorch's side of bench/gpu/run: answers requests, a JSON object a line, until its input ends.

usage: peers.py [--device cuda|cpu]

The first line that it prints names PyTorch's version. Requests, each answered by one line, with `why` where it failed:

  {"do": "steps", "network": NAME, "batch": B, "way": W, "steps": N}   training steps in bf16
  {"do": "gemm", "shape": [M, N, K], "precision": P}                   C = A B
  {"do": "mnist", "folder": DIR, "target": ERROR, "epochs": N}         LeNet-5 on IDX files until that error

Networks are torchvision's by name, and `mlp` (784-512-10) and `lenet5` as ours build them. bf16 is autocast with f32
parameters, images channels last, SGD with momentum and weight decay (its fused version), cross-entropy, random images and labels
that stay on the device; `cudnn.benchmark` is on. Ways: eager; captured (the whole step as one CUDA graph); compiled
(`torch.compile`, whose compilation is not timed). A figure is the median of the timed steps, by events.
"""

import argparse
import gzip
import json
import math
import pathlib
import sys
import time

import torch
from torch import nn

ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
DEVICE = ap.parse_args().device
CUDA = DEVICE == "cuda"


def lenet5():
    layers = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


def network(name):
    """The model, the shape of an image and the number of classes."""
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)), (1, 28, 28), 10
    if name == "lenet5":
        return lenet5(), (1, 28, 28), 10
    import torchvision

    return torchvision.models.get_model(name), (3, 224, 224), 1000


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def timed(step, count, each=1):
    """Milliseconds of each of `count` times `each` steps: the median."""
    for _ in range(5):
        step()
    if not CUDA:
        began = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - began) * 1e3 / count
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for e in events[1:]:
        for _ in range(each):
            step()
        e.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))[count // 2] / each


def steps(network_name, batch, way, count):
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    model, shape, classes = network(network_name)
    model = model.to(DEVICE, memory_format=torch.channels_last).train()
    x = torch.randn(batch, *shape, device=DEVICE).to(memory_format=torch.channels_last)
    label = torch.randint(0, classes, (batch,), device=DEVICE)
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def loss_of(x, label):
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=way == "eager"):
            return nn.functional.cross_entropy(model(x), label)

    forward = torch.compile(loss_of) if way == "compiled" else loss_of

    def step():
        sgd.zero_grad(set_to_none=True)
        forward(x, label).backward()
        sgd.step()

    if not CUDA:
        return {"samples_per_second": batch / timed(step, count) * 1e3}
    torch.cuda.reset_peak_memory_stats()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        if way == "captured":
            for _ in range(5):
                step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                step()
            ms = timed(graph.replay, count)
        else:
            ms = timed(step, count)
    return {"samples_per_second": batch / ms * 1e3, "step_ms_p50": ms, "peak_device_bytes": torch.cuda.max_memory_allocated()}


def gemm(shape, precision):
    m, n, k = shape
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = torch.randn(m, k, device=DEVICE, dtype=dtype), torch.randn(k, n, device=DEVICE, dtype=dtype)
    c = torch.empty(m, n, device=DEVICE, dtype=dtype)
    run = lambda: torch.mm(a, b, out=c)
    # Some milliseconds a round, so that events and launches do not count.
    once = timed(run, 3)
    ms = timed(run, 10, each=max(1, min(200, int(5 / max(once, 1e-3)))))
    return {"tflops": 2 * m * n * k / ms / 1e9, "ms": ms}


def idx(path):
    packed = path.with_name(path.name + ".gz")
    raw = bytearray(path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes()))
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(raw, dtype=torch.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def mnist(folder, target, epochs):
    """The recipe of configs/mnist-lenet5.toml, all of the set on the device; the time is that from the first read."""
    began = time.perf_counter()
    torch.manual_seed(1)
    folder, batch = pathlib.Path(folder), 128
    of = lambda name: idx(folder / name).to(DEVICE)
    x, y = of("train-images-idx3-ubyte").float()[:, None] / 255, of("train-labels-idx1-ubyte").long()
    xt, yt = of("t10k-images-idx3-ubyte").float()[:, None] / 255, of("t10k-labels-idx1-ubyte").long()
    mean, deviation = x.mean(), x.std()
    x, xt = (x - mean) / deviation, (xt - mean) / deviation
    net = lenet5().to(DEVICE)
    sgd = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    each = len(x) // batch
    rate = lambda s: (s + 1) / each if s < each else 0.5 * (1 + math.cos(math.pi * (s - each) / (each * max(epochs - 1, 1))))
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, rate)
    errors = []
    for _ in range(epochs):
        net.train()
        order = torch.randperm(len(x), device=DEVICE)
        for s in range(each):
            at = order[s * batch : (s + 1) * batch]
            dy, dx = (int(v) for v in torch.randint(-2, 3, (2,)))
            images = torch.roll(x[at], (dy, dx), (2, 3))
            sgd.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = nn.functional.cross_entropy(net(images), y[at])
            loss.backward()
            sgd.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            wrong = sum(int((net(a).argmax(1) != b).sum()) for a, b in zip(xt.split(1000), yt.split(1000)))
        errors.append(wrong / len(xt))
        if errors[-1] <= target:
            break
    synchronize()
    return {"reached": errors[-1] <= target, "seconds": time.perf_counter() - began, "epochs": len(errors), "errors": errors}


def answer(request):
    match request["do"]:
        case "steps":
            return steps(request["network"], request["batch"], request["way"], request["steps"])
        case "gemm":
            return gemm(request["shape"], request["precision"])
        case "mnist":
            return mnist(request["folder"], request["target"], request["epochs"])
    raise ValueError(f"there is no request {request['do']}")


print(json.dumps({"torch": torch.__version__, "device": DEVICE}), flush=True)
for line in sys.stdin:
    began = time.time()
    try:
        row = answer(json.loads(line))
    except Exception as e:  # what PyTorch cannot do is a result too
        row = {"why": repr(e)[:300]}
    print(json.dumps(row | {"wall_s": time.time() - began}), flush=True)
    if CUDA:
        torch.cuda.empty_cache()
