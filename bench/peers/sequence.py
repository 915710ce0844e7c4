"""PyTorch's side of `cargo run --release -p phalanx-tensor --example sequence`: the same work, one line each.

    python bench/peers/sequence.py [threads] [seconds]

Prints `name  milliseconds` (the least of each). Absolute figures drift on shared machines: run both programs in
turns and compare within one run.
"""

import sys
import time

import torch
import torch.nn.functional as F

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 1
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0


def best(name, run):
    run()
    begin, least = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    print(f"{name:<32}{least * 1e3:9.3f}", flush=True)


def both(name, f, leaves):
    with torch.no_grad():
        seed = torch.ones_like(f())
    best(f"{name} forward", f)
    best(f"{name} forward+backward", lambda: torch.autograd.grad(f(), leaves, seed))


def main():
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)

    def leaf(*shape):
        return (torch.rand(*shape) * 0.2 - 0.1).requires_grad_()

    x = leaf(64, 50, 128)
    for name, layer in (("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU), ("rnn", torch.nn.RNN)):
        layer = layer(128, 256, batch_first=True)
        both(name, lambda: layer(x)[0], [x, *layer.parameters()])
    for batch, m, k, n in (
        (4096, 8, 8, 8),
        (1024, 16, 32, 16),
        (256, 64, 64, 64),
        (16, 256, 256, 256),
        (2, 1024, 1024, 1024),
    ):
        a, b = leaf(batch, m, k), leaf(batch, k, n)
        both(f"matmul {batch}x{m}x{k}x{n}", lambda: a @ b, [a, b])
    for heads, length in ((32, 128), (8, 1024)):
        q, k, v = (leaf(1, heads, length, 64) for _ in range(3))
        both(f"attention {heads}x{length}x64", lambda: F.scaled_dot_product_attention(q, k, v), [q, k, v])
    table = leaf(20_000, 256)
    at = torch.tensor([i * i % 19_997 for i in range(3200)]).reshape(64, 50)
    both("embedding 20000x256 3200", lambda: F.embedding(at, table), [table])


if __name__ == "__main__":
    main()
