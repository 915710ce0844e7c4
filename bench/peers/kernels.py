"""PyTorch's side of `cargo run --release -p phalanx-host --example kernels`: the same shapes, one line each.

    python bench/peers/kernels.py [threads] [part of a name] [target/release/examples/kernels]

Prints `name  milliseconds  GFLOP/s` (medians). Absolute figures drift on shared machines: given the program, it is
run on each shape right before PyTorch, and its lines are printed with the ratio of its speed to that of PyTorch's
better layout.
"""

import subprocess
import sys
import time

import torch
import torch.nn.functional as F

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 1
ONLY = sys.argv[2] if len(sys.argv) > 2 else ""
OURS = sys.argv[3] if len(sys.argv) > 3 else None

# name, m, n, k, layout: C[m,n] = A[m,k] B[k,n]; "nt" means that B is stored as [n,k], "tn" A as [k,m].
GEMM = [
    ("gemm 512", 512, 512, 512, "nn"),
    ("gemm 1024", 1024, 1024, 1024, "nn"),
    ("gemm 2048", 2048, 2048, 2048, "nn"),
    ("mlp forward 1", 128, 512, 784, "nt"),
    ("mlp weight gradient 1", 512, 784, 128, "tn"),
    ("mlp input gradient 1", 128, 784, 512, "nn"),
    ("mlp forward 2", 128, 10, 512, "nt"),
    ("mlp weight gradient 2", 10, 512, 128, "tn"),
    ("mlp input gradient 2", 128, 512, 10, "nn"),
    ("lenet forward fc1", 128, 120, 400, "nt"),
    ("lenet weight gradient fc1", 120, 400, 128, "tn"),
    ("vector 784-512", 1, 512, 784, "nt"),
]

# name, batch, height and width, in, out, kernel, stride, padding, groups
CONV = [
    ("lenet conv1", 128, 28, 1, 6, 5, 1, 2, 1),
    ("lenet conv2", 128, 14, 6, 16, 5, 1, 0, 1),
    ("3x3 64-64 56", 8, 56, 64, 64, 3, 1, 1, 1),
    ("3x3 128-128 28", 8, 28, 128, 128, 3, 1, 1, 1),
    ("3x3 256-256 14", 8, 14, 256, 256, 3, 1, 1, 1),
    ("3x3 512-512 7", 8, 7, 512, 512, 3, 1, 1, 1),
    ("3x3 128-32 28", 8, 28, 128, 32, 3, 1, 1, 1),
    ("3x3 128-32 7", 8, 7, 128, 32, 3, 1, 1, 1),
    ("3x3/2 128-256 28", 8, 28, 128, 256, 3, 2, 1, 1),
    ("3x3/2 128-128 56", 8, 56, 128, 128, 3, 2, 1, 1),
    ("3x3/2 3-32 224", 4, 224, 3, 32, 3, 2, 1, 1),
    ("1x1 256-64 56", 8, 56, 256, 64, 1, 1, 0, 1),
    ("1x1 64-256 56", 8, 56, 64, 256, 1, 1, 0, 1),
    ("1x1 1024-256 14", 8, 14, 1024, 256, 1, 1, 0, 1),
    ("1x1 2048-512 7", 8, 7, 2048, 512, 1, 1, 0, 1),
    ("1x1 512-128 14", 8, 14, 512, 128, 1, 1, 0, 1),
    ("1x1/2 256-512 56", 8, 56, 256, 512, 1, 2, 0, 1),
    ("5x5 64-192 27", 8, 27, 64, 192, 5, 1, 2, 1),
    ("7x7/2 3-64 224", 4, 224, 3, 64, 7, 2, 3, 1),
    ("11x11/4 3-64 224", 8, 224, 3, 64, 11, 4, 2, 1),
    ("3x3 depthwise 144 56", 8, 56, 144, 144, 3, 1, 1, 144),
    ("3x3/2 depthwise 144 56", 8, 56, 144, 144, 3, 2, 1, 144),
    ("3x3 depthwise 960 7", 8, 7, 960, 960, 3, 1, 1, 960),
    ("5x5 depthwise 120 28", 8, 28, 120, 120, 5, 1, 2, 120),
    ("3x3 32 groups 128-128 56", 4, 56, 128, 128, 3, 1, 1, 32),
    ("5x5 2 groups 96-256 27", 8, 27, 96, 256, 5, 1, 2, 2),
]


def seconds(run, flops):
    """The median of enough runs, after a warm-up."""
    run()
    run()
    times = []
    begin = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < 0.4 and len(times) < 2000):
        t = time.perf_counter()
        run()
        times.append(time.perf_counter() - t)
    return sorted(times)[len(times) // 2]


def ours(name):
    """Our GFLOP/s on the shapes that have `name` in theirs, by line."""
    if OURS is None:
        return {}
    command = [OURS, str(THREADS), "auto", name]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line[:44].strip(): float(line.split()[-3]) for line in lines if line.endswith(tuple("0123456789"))}


def line(name, flops, run):
    """Times `run`, prints its line and gives its GFLOP/s."""
    s = seconds(run, flops)
    print(f"{name:<44}{s * 1e3:>10.4f} ms{flops / s / 1e9:>9.1f} GFLOP/s", flush=True)
    return flops / s / 1e9


def compare(name, theirs, mine):
    if name in mine:
        ratio = mine[name] / theirs
        print(f"{name:<44}{'ours':>13}{mine[name]:>9.1f} GFLOP/s{ratio:>7.2f} x", flush=True)


def main():
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, m, n, k, layout in GEMM:
            if ONLY not in name:
                continue
            a = torch.randn(k, m).t() if layout == "tn" else torch.randn(m, k)
            b = torch.randn(n, k).t() if layout == "nt" else torch.randn(k, n)
            c = torch.empty(m, n)
            mine = ours(name)
            compare(name, line(name, 2 * m * n * k, lambda: torch.mm(a, b, out=c)), mine)
        for name, batch, size, cin, cout, kernel, stride, padding, groups in CONV:
            if ONLY not in name:
                continue
            x = torch.randn(batch, cin, size, size)
            w = torch.randn(cout, cin // groups, kernel, kernel)
            bias = torch.randn(cout)
            mine, best = ours(name), {}
            # Neither layout is the faster one for all shapes and passes.
            for memory in (torch.contiguous_format, torch.channels_last):
                x, w = x.contiguous(memory_format=memory), w.contiguous(memory_format=memory)
                y = F.conv2d(x, w, bias, stride, padding, 1, groups)
                dy = torch.randn_like(y)
                flops = 2 * y.numel() * cin * kernel * kernel // groups
                tag = "" if memory is torch.channels_last else " (nchw)"

                def backward(mask):
                    return torch.ops.aten.convolution_backward(
                        dy, x, w, [cout], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, mask
                    )

                for what, run in (
                    ("forward", lambda: F.conv2d(x, w, bias, stride, padding, 1, groups)),
                    ("weight gradient", lambda: backward([False, True, False])),
                    ("input gradient", lambda: backward([True, False, False])),
                ):
                    speed = line(f"{name} {what}{tag}", flops, run)
                    best[f"{name} {what}"] = max(best.get(f"{name} {what}", 0), speed)
            for what, speed in best.items():
                compare(what, speed, mine)


if __name__ == "__main__":
    main()
