"""The PyTorch side of bench/peers/run.py: a worker that measures on request.

usage: torch_step.py [--rank R --world W --store FILE]

One request a line on standard input, one answer a line on standard output, both JSON; the end of the
input ends the worker. It stays alive between requests so that neither the import nor the warm-up is
measured, and blocks on its input meanwhile, so that it costs the other side nothing. With `--world`
it is one rank of a gloo group; then every rank must get the same requests.

    {"what": "step", "model": "mlp"|"lenet5"|torchvision's, "batch": N, "variant": {...}, "steps": N}
    {"what": "gemm", "m": M, "n": N, "k": K, "repeats": N}
    {"what": "allreduce", "bytes": N, "repeats": N}
    {"what": "variants", "model": NAME}
    {"what": "memory"}

A step is forward, cross-entropy, backward and SGD (momentum 0.9, weight decay 1e-4) in float32, on one
thread, with the batch in memory. A variant names what PyTorch lets its user choose: the memory format,
the implementation of the optimizer, oneDNN on or off, a static graph in DDP. The caller tries them all
and keeps the fastest. "memory" answers with the most memory that this process had at once.
"""

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

CLASSES = 10


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, CLASSES))


def lenet5():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


MODELS = {"mlp": mlp, "lenet5": lenet5}


def made(model):
    """A network, the shape of its images and the number of its classes."""
    if model in MODELS:
        return MODELS[model](), (1, 28, 28), CLASSES
    # Only here, as nothing else needs it.
    import torchvision

    options = {"init_weights": False} if model == "googlenet" else {}
    return getattr(torchvision.models, model)(weights=None, **options), (3, 224, 224), 1000


def variants(model):
    """What a user of PyTorch can choose for this model without changing the result."""
    formats = [False] if model == "mlp" else [False, True]
    optimizers = ["foreach", "fused", "loop"]
    graphs = [False, True] if dist.is_initialized() else [False]
    keys = ("channels_last", "optimizer", "onednn", "static_graph")
    return [dict(zip(keys, v)) for v in itertools.product(formats, optimizers, (True, False), graphs)]


class Step:
    """A network with its optimizer and a batch, ready to be stepped."""

    def __init__(self, model, batch, variant):
        torch.manual_seed(0)
        self.onednn = variant["onednn"]
        self.net, sizes, classes = made(model)
        self.images = torch.randn(batch, *sizes)
        self.labels = torch.randint(0, classes, (batch,))
        if variant["channels_last"]:
            self.net = self.net.to(memory_format=torch.channels_last)
            self.images = self.images.to(memory_format=torch.channels_last)
        if dist.is_initialized():
            # Gradients live in the buckets, which saves DDP a copy.
            self.net = nn.parallel.DistributedDataParallel(
                self.net,
                gradient_as_bucket_view=True,
                static_graph=variant["static_graph"],
                bucket_cap_mb=variant.get("bucket_mb", 25),
            )
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=0.01,
            momentum=0.9,
            weight_decay=1e-4,
            foreach=variant["optimizer"] == "foreach",
            fused=variant["optimizer"] == "fused",
        )

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        out = self.net(self.images)
        # GoogLeNet hands on the logits of its auxiliary heads.
        heads = [out] if torch.is_tensor(out) else [out.logits, out.aux_logits1, out.aux_logits2]
        losses = [F.cross_entropy(y, self.labels) for y in heads]
        (losses[0] + 0.3 * sum(losses[1:])).backward()
        self.optimizer.step()


READY = {}


def step(request):
    key = json.dumps([request["model"], request["batch"], request["variant"]])
    if key not in READY:
        READY[key] = Step(request["model"], request["batch"], request["variant"])
    ready = READY[key]
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    with torch.backends.mkldnn.flags(enabled=ready.onednn):
        for _ in range(request.get("warm", 5)):
            ready.step()
        times = timed(ready.step, request["steps"])
    return {
        "samples_per_second": ranks * request["batch"] * len(times) / sum(times),
        "step_ms_p50": 1e3 * statistics.median(times),
    }


def gemm(request):
    m, n, k = request["m"], request["n"], request["k"]
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    run = lambda: torch.mm(a, b, out=out)
    run()
    seconds = statistics.median(timed(run, request["repeats"]))
    return {"gflops": 2e-9 * m * n * k / seconds, "seconds_p50": seconds}


def allreduce(request):
    size, ranks = request["bytes"], dist.get_world_size()
    # Zeros stay zeros: summed again and again, nothing else stays finite.
    data = torch.zeros(size // 4)
    run = lambda: dist.all_reduce(data)
    run()
    seconds = statistics.median(timed(run, request["repeats"]))
    return {"seconds_p50": seconds, "bus_bandwidth_gb_s": 2 * (ranks - 1) / ranks * size * 1e-9 / seconds}


def memory(request):
    import torchvision  # noqa: F401  What it takes belongs to no network.

    # In kilobytes on Linux.
    return {"peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def timed(run, repeats):
    """The seconds that each of `repeats` runs takes."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description="PyTorch worker of run.py; see the top of this file.")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--store", help="a file that does not exist yet, where the ranks meet")
    args = parser.parse_args()
    # Said once a process by the switch of oneDNN; about graphics cards.
    warnings.filterwarnings("ignore", message=".*TF32 acceleration.*")
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    if args.world > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.store}", rank=args.rank, world_size=args.world)
    answer = {
        "variants": lambda request: variants(request["model"]),
        "step": step,
        "gemm": gemm,
        "allreduce": allreduce,
        "memory": memory,
    }
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer[request["what"]](request)), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
