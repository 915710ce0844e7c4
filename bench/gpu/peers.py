#!/usr/bin/env python3
"""PyTorch's training steps on a GPU, for bench/gpu/run: a JSON line for each network and way of running it.

usage: peers.py NETWORK:BATCH... [--ways eager,captured,compiled] [--steps N] [--precision bf16|f32]

Networks are torchvision's by name, and `mlp` (784-512-10) and `lenet5` as ours build them. bf16 is autocast with f32
parameters, images channels last, SGD with momentum and weight decay (its fused version), cross-entropy, random images and labels
that stay on the device; `cudnn.benchmark` is on. Ways: eager; captured (the whole step as one CUDA graph); compiled
(`torch.compile`, whose compilation is not timed). A figure is the median of the timed steps, by events.
"""

import argparse
import json
import sys
import time

import torch
import torchvision
from torch import nn

ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("networks", nargs="+", metavar="NETWORK:BATCH")
ap.add_argument("--ways", default="eager,captured")
ap.add_argument("--steps", type=int, default=20)
ap.add_argument("--precision", default="bf16", choices=["bf16", "f32"])
ARGS = ap.parse_args()


def network(name):
    """The model, the shape of an image and the number of classes."""
    if name == "mlp":
        layers = [nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)]
        return nn.Sequential(*layers), (1, 28, 28), 10
    if name == "lenet5":
        layers = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
        return nn.Sequential(*layers), (1, 28, 28), 10
    return torchvision.models.get_model(name), (3, 224, 224), 1000


def timed(step):
    for _ in range(5):
        step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(ARGS.steps + 1)]
    events[0].record()
    for e in events[1:]:
        step()
        e.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))[ARGS.steps // 2]


def measure(name, batch, way):
    torch.manual_seed(0)
    model, shape, classes = network(name)
    model = model.cuda().to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, *shape, device="cuda").to(memory_format=torch.channels_last)
    label = torch.randint(0, classes, (batch,), device="cuda")
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def loss_of(x, label):
        with torch.autocast("cuda", torch.bfloat16, enabled=ARGS.precision == "bf16", cache_enabled=way == "eager"):
            return nn.functional.cross_entropy(model(x), label)

    forward = torch.compile(loss_of) if way == "compiled" else loss_of

    def step():
        sgd.zero_grad(set_to_none=True)
        forward(x, label).backward()
        sgd.step()

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
            ms = timed(graph.replay)
        else:
            ms = timed(step)
    return {"samples_per_second": batch / ms * 1e3, "step_ms_p50": ms, "peak_device_bytes": torch.cuda.max_memory_allocated()}


torch.backends.cudnn.benchmark = True
measured = 0
for spec in ARGS.networks:
    name, batch = spec.split(":")
    for way in ARGS.ways.split(","):
        began = time.time()
        row = {"peer": "pytorch", "network": name, "batch": int(batch), "way": way, "precision": ARGS.precision}
        try:
            row |= measure(name, int(batch), way)
            measured += 1
        except Exception as e:  # a way that a network cannot go is a result too
            row["why"] = repr(e)[:300]
        row["wall_s"] = time.time() - began
        print(json.dumps(row), flush=True)
        torch.cuda.empty_cache()
sys.exit(0 if measured else 1)
