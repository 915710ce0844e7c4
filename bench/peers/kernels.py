"""PyTorch's side of `cargo run --release -p phalanx-host --example kernels`: the same shapes, one line each.

    python bench/peers/kernels.py [threads]

Prints `name  milliseconds  GFLOP/s` (medians). Absolute figures drift on shared machines: run both
programs in turns and compare within one run.
"""

import sys
import time

import torch
import torch.nn.functional as F

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 1

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

# name, batch, height and width, in, out, kernel, stride, padding
CONV = [
    ("lenet conv1", 128, 28, 1, 6, 5, 1, 2),
    ("lenet conv2", 128, 14, 6, 16, 5, 1, 0),
    ("3x3 64-64 56", 8, 56, 64, 64, 3, 1, 1),
    ("3x3 128-128 28", 8, 28, 128, 128, 3, 1, 1),
    ("3x3 256-256 14", 8, 14, 256, 256, 3, 1, 1),
    ("3x3 512-512 7", 8, 7, 512, 512, 3, 1, 1),
    ("3x3/2 128-256 28", 8, 28, 128, 256, 3, 2, 1),
    ("1x1 256-64 56", 8, 56, 256, 64, 1, 1, 0),
    ("1x1/2 256-512 56", 8, 56, 256, 512, 1, 2, 0),
    ("7x7/2 3-64 224", 4, 224, 3, 64, 7, 2, 3),
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


def line(name, flops, run):
    s = seconds(run, flops)
    print(f"{name:<36}{s * 1e3:>10.4f} ms{flops / s / 1e9:>9.1f} GFLOP/s", flush=True)


def main():
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, m, n, k, layout in GEMM:
            a = torch.randn(k, m).t() if layout == "tn" else torch.randn(m, k)
            b = torch.randn(n, k).t() if layout == "nt" else torch.randn(k, n)
            c = torch.empty(m, n)
            line(name, 2 * m * n * k, lambda: torch.mm(a, b, out=c))
        for name, batch, size, cin, cout, kernel, stride, padding in CONV:
            x = torch.randn(batch, cin, size, size)
            w = torch.randn(cout, cin, kernel, kernel)
            bias = torch.randn(cout)
            formats = [torch.channels_last] if cin * cout > 200 else [torch.contiguous_format, torch.channels_last]
            for memory in formats:
                x, w = x.contiguous(memory_format=memory), w.contiguous(memory_format=memory)
                y = F.conv2d(x, w, bias, stride, padding)
                dy = torch.randn_like(y)
                flops = 2 * y.numel() * cin * kernel * kernel
                tag = "" if memory is torch.channels_last else " (nchw)"

                def backward(mask):
                    return torch.ops.aten.convolution_backward(
                        dy, x, w, [cout], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
                    )

                line(f"{name} forward{tag}", flops, lambda: F.conv2d(x, w, bias, stride, padding))
                line(f"{name} weight gradient{tag}", flops, lambda: backward([False, True, False]))
                line(f"{name} input gradient{tag}", flops, lambda: backward([True, False, False]))


if __name__ == "__main__":
    main()
