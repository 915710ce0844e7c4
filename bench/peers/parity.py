#!/usr/bin/env python3
"""Compares networks with PyTorch's: the same weights, the same batch, an error for each number.

usage: parity.py [--only NETWORK,...] [--steps N] [--python PYTHON] [--binary FILE] [--worst]
                 [--json FILE] [--update-results]

Each network has torchvision's random weights, 224x224 images (small networks: their own size) and a batch of 2. What is
compared: logits in evaluation and in training mode (dropout off; auxiliary heads too), the loss, the gradient of every
parameter, every running mean and variance after the batch, and the losses of N steps (20 unless told) of SGD; with
`resnet18`, the parameters after one step of each optimizer too, from the gradients that ours had.

The reference is PyTorch in double precision. An error is the Euclidean distance to it. Ours may be at most twice that
of PyTorch in single precision (the larger one of its two memory formats), or at most FLOOR of the reference's norm
where both are small. Some gradients are nothing but rounding errors, as those of biases before a batch norm: FLOOR
is taken of the norm that a gradient of their size has on average in this network. And a ReLU's slope jumps: where rounding
carries one number across 0, a whole tensor's error jumps, in ours or in PyTorch's. A tensor above its bound is looked at
with two more batches, and the middle one of the three counts.

`--python` (or PHALANX_PEERS_PYTHON) names a Python that has torch and torchvision; without it bench/peers/.venv is used,
which bench/peers/setup.sh makes (and which this script calls when there is none). What is measured is kept in a JSON file;
`--update-results` writes a table of all that it has into bench/RESULTS.md. The exit code is 0 only when every network
passes.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What is allowed where PyTorch's own error is smaller: some hundred roundings of single precision.
FLOOR = 1e-5
FACTOR = 2.0
BATCH = 2
# Of the batches: the first, and two more where it is not enough.
SEEDS = (1, 2, 3)
TRAINING = {"name": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
OPTIMIZERS = [
    {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    {"name": "adam", "lr": 1e-3, "weight_decay": 1e-4},
    {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2},
    {"name": "rmsprop", "lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4},
    {"name": "adagrad", "lr": 1e-2, "weight_decay": 1e-4},
    {"name": "lars", "lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4},
    {"name": "lamb", "lr": 1e-2, "weight_decay": 1e-2},
]
# The network whose parameters are compared after a step of each optimizer.
OPTIMIZED = "resnet18"


def right_python():
    """Goes on in a Python that has torch, torchvision and safetensors; makes one where there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="networks, separated by commas")
    parser.add_argument("--steps", type=int, default=20, help="steps whose losses are compared")
    parser.add_argument("--python", default=os.environ.get("PHALANX_PEERS_PYTHON"))
    parser.add_argument("--binary", type=pathlib.Path, help="our side, when it is built already")
    parser.add_argument("--worst", action="store_true", help="name the worst tensor of each kind")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "target/parity.json", metavar="FILE")
    parser.add_argument("--update-results", action="store_true", help="write bench/RESULTS.md")
    args = parser.parse_args()
    python = args.python or HERE / ".venv/bin/python"
    if os.environ.get("PHALANX_PARITY_INSIDE") != "1":
        if not args.python:
            subprocess.run([HERE / "setup.sh"], check=True, stdout=subprocess.DEVNULL)
        os.environ["PHALANX_PARITY_INSIDE"] = "1"
        os.execv(python, [str(python), *sys.argv])
    return args


ARGS = right_python()

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import results
import twins


# ---------------------------------------------------------------------------- PyTorch's side


def heads(model, image):
    """The logits, then those of auxiliary heads."""
    out = model(image)
    return [out] if torch.is_tensor(out) else [out.logits, out.aux_logits1, out.aux_logits2]


def loss_of(all_logits, label):
    weights = [1.0, twins.AUXILIARY, twins.AUXILIARY]
    return sum(w * F.cross_entropy(y, label, reduction="sum") for w, y in zip(weights, all_logits))


def copy_of(network, state, dtype, memory):
    """The network with the weights `state`, in a type and a memory format."""
    model = network.make()
    model.load_state_dict(state)
    return model.to(dtype=dtype, memory_format=memory)


def passes(network, state, batch, dtype, memory):
    """What our side gives, by the same names."""
    model = copy_of(network, state, dtype, memory)
    image, label = batch[0].to(dtype=dtype, memory_format=memory), batch[1]
    out = {}
    with torch.no_grad():
        out["eval.logits"] = model.eval()(image)
    logits = heads(model.train(), image)
    out["logits"] = logits[0]
    out.update({f"aux.{k}": y for k, y in enumerate(logits[1:])})
    out["loss"] = loss_of(logits, label)
    out["loss"].backward()
    out.update({f"gradient.{name}": p.grad for name, p in model.named_parameters()})
    out.update({f"buffer.{name}": b for name, b in model.named_buffers() if b.is_floating_point()})
    return {name: t.detach() for name, t in out.items()}


def decays(name, p):
    """Weights decay; norms and biases do not."""
    return p.dim() > 1


def layerwise(settings, parameters):
    """The first step of LARS and of LAMB, which PyTorch does not have: the formulas of the two papers."""
    lr, decay = settings["lr"], settings["weight_decay"]
    for name, p in parameters:
        g = p.grad
        if settings["name"] == "lars":
            rate = 1.0
            if decays(name, p):
                # The paper's trust coefficient, which is the default.
                rate = 1e-3 * p.norm() / (g.norm() + decay * p.norm())
                g = g + decay * p
            p -= lr * rate * g
        else:
            # Bias-corrected, the first step's means are the gradient and its square.
            u = g / (g.abs() + 1e-6)
            rate = 1.0
            if decays(name, p):
                u = u + decay * p
                rate = p.norm() / u.norm()
            p -= lr * rate * u


def optimizer(settings, parameters):
    """PyTorch's optimizer of these settings."""
    kinds = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
    rest = {k: v for k, v in settings.items() if k not in ("name", "weight_decay")}
    groups = [
        {"params": [p for n, p in parameters if decays(n, p) == yes], "weight_decay": settings["weight_decay"] * yes}
        for yes in (True, False)
    ]
    return getattr(torch.optim, kinds[settings["name"]])(groups, **rest)


def one_step(network, state, gradients, settings, dtype):
    """The parameters after one step, from the gradients of the summed loss."""
    model = copy_of(network, state, dtype, torch.contiguous_format)
    parameters = list(model.named_parameters())
    for name, p in parameters:
        p.grad = gradients[f"gradient.{name}"].to(dtype) / BATCH
    with torch.no_grad():
        if settings["name"] in ("lars", "lamb"):
            layerwise(settings, parameters)
        else:
            optimizer(settings, parameters).step()
    return {name: p.detach() for name, p in parameters}


def running(network, state, batch, steps, dtype, memory):
    """The summed losses of some steps, each before it changes the weights."""
    model = copy_of(network, state, dtype, memory).train()
    image, label = batch[0].to(dtype=dtype, memory_format=memory), batch[1]
    step = optimizer(TRAINING, list(model.named_parameters()))
    seen = []
    for _ in range(steps):
        step.zero_grad()
        loss = loss_of(heads(model, image), label)
        (loss / BATCH).backward()
        step.step()
        seen.append(loss.item())
    return torch.tensor(seen, dtype=torch.float64)


# ---------------------------------------------------------------------------- our side


def ours(binary, network, state, batch, folder, steps):
    """Our figures, by the names that examples/parity.rs gives them."""
    request, given, made = (folder / name for name in ("request.json", "in.safetensors", "out.safetensors"))
    ask = {"model": network.model, "classes": network.classes, "training": {"optimizer": TRAINING, "steps": steps}}
    if network.name == OPTIMIZED:
        ask["optimizers"] = OPTIMIZERS
    request.write_text(json.dumps(ask))
    tensors = {name: t.contiguous() for name, t in state.items()}
    image = batch[0].permute(0, 2, 3, 1).contiguous()
    save_file({**tensors, "image": image, "label": batch[1]}, given)
    subprocess.run([binary, request, given, made], check=True)
    out = load_file(made)
    given.unlink(), made.unlink()
    return out


# ---------------------------------------------------------------------------- the comparison


class Errors:
    """The errors of all tensors: by kind and name, (share of what it may, ours, PyTorch's)."""

    def __init__(self):
        self.seen = {kind: {} for kind in KINDS}

    def see(self, kind, name, mine, peers, reference, scale=None):
        size = reference.norm().item() if scale is None else scale
        own = (mine.double() - reference).norm().item() / size
        peer = max((p.double() - reference).norm().item() for p in peers) / size
        share = own / max(FACTOR * peer, FLOOR)
        # Not a number is too much.
        self.seen[kind][name] = (share if share == share else math.inf, own, peer)

    def failed(self):
        return [(kind, name) for kind, of in self.seen.items() for name, (share, *_) in of.items() if share > 1]

    def worst(self, kind):
        """The tensor that uses most of what it may: its name and errors."""
        return max(self.seen[kind].items(), key=lambda item: item[1][0])

    def cell(self, kind):
        if not self.seen[kind]:
            return ""
        share, own, peer = self.worst(kind)[1]
        return f"{own:.1e} / {peer:.1e}" + ("" if share <= 1 else " FAILED")


KINDS = ["logits", "gradients", "statistics", "losses", "optimizers"]


def compare(binary, network, folder, steps, seed):
    """The errors with the batch of that seed."""
    torch.manual_seed(0)
    state = network.make().state_dict()
    torch.manual_seed(seed)
    batch = (torch.randn(BATCH, *network.sizes), torch.randint(0, network.classes, (BATCH,)))
    mine = ours(binary, network, state, batch, folder, steps)
    formats = [torch.contiguous_format, torch.channels_last]
    reference = passes(network, state, batch, torch.float64, formats[0])
    peers = [passes(network, state, batch, torch.float32, memory) for memory in formats]
    errors = Errors()

    elements = sum(t.numel() for name, t in reference.items() if name.startswith("gradient."))
    squares = sum(t.square().sum().item() for name, t in reference.items() if name.startswith("gradient."))
    for name, t in reference.items():
        kind = {"gradient": "gradients", "buffer": "statistics"}.get(name.split(".")[0], "logits")
        # A gradient's size, or what one of so many elements has on average.
        scale = max(t.norm().item(), math.sqrt(squares * t.numel() / elements)) if kind == "gradients" else None
        errors.see(kind, name, mine[name], [p[name] for p in peers], t, scale)
    for k, settings in enumerate(OPTIMIZERS if network.name == OPTIMIZED else []):
        # All from the same gradients: a step of Adam's kind takes the sign of those that are nearly nothing.
        exact, single = (one_step(network, state, mine, settings, dtype) for dtype in (torch.float64, torch.float32))
        for name, t in exact.items():
            key = f"{settings['name']}: {name}"
            errors.see("optimizers", key, mine[f"step.{k}.{name}"], [single[name]], t)
    if steps:
        exact = running(network, state, batch, steps, torch.float64, formats[0])
        single = [running(network, state, batch, steps, torch.float32, memory) for memory in formats]
        errors.see("losses", "losses", mine["losses"], single, exact)
    return errors


def judged(*rest):
    """The errors of a batch; those above their bounds with two more batches, of which the middle one counts."""
    errors = compare(*rest, SEEDS[0])
    again = errors.failed()
    others = [compare(*rest, seed) for seed in SEEDS[1:]] if again else []
    for kind, name in again:
        three = [e.seen[kind][name] for e in (errors, *others)]
        print(f"    {kind}, {name}: uses {', '.join(f'{share:.2f}' for share, *_ in three)} of what it may", flush=True)
        errors.seen[kind][name] = sorted(three)[1]
    return errors


def built():
    """Our side."""
    command = ["cargo", "build", "--release", "--quiet", "-p", "phalanx-train", "--example", "parity"]
    subprocess.run(command, cwd=ROOT, check=True)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/parity"


def main():
    names = [n for n in ARGS.only.split(",") if n] or list(twins.NETWORKS)
    if unknown := [n for n in names if n not in twins.NETWORKS]:
        sys.exit(f"parity.py: no network {unknown[0]}; there are {', '.join(twins.NETWORKS)}")
    binary = ARGS.binary or built()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            since = time.monotonic()
            errors = judged(binary, twins.NETWORKS[name], pathlib.Path(folder), ARGS.steps)
            cells = [errors.cell(kind) for kind in KINDS]
            keep(name, cells)
            print("  ".join([name.ljust(17), *(c.ljust(19) for c in cells)]).rstrip(), flush=True)
            for kind, of in errors.seen.items() if ARGS.worst else []:
                if of:
                    tensor, (share, *_) = errors.worst(kind)
                    print(f"    {kind}: {tensor} uses {share:.2f} of what it may, of {len(of)}", flush=True)
            print(f"    {time.monotonic() - since:.0f} s", file=sys.stderr)
            failed += [name] if errors.failed() else []
    if ARGS.update_results:
        write()
    if failed:
        sys.exit(f"parity.py: FAILED: {', '.join(failed)}")


def kept():
    return json.loads(ARGS.json.read_text()) if ARGS.json.exists() else {}


def keep(name, cells):
    """Adds a network's row; what was not measured this time stays as it was."""
    rows = kept()
    old = rows.get(name, [""] * len(cells))
    rows[name] = [new or before for new, before in zip(cells, old)]
    ARGS.json.parent.mkdir(parents=True, exist_ok=True)
    ARGS.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def write():
    version, rows = torch.__version__.split("+")[0], kept()
    head = ["network", *KINDS]
    lines = [[name, *rows[name]] for name in twins.NETWORKS if name in rows]
    table = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *lines]]
    note = results.provenance("bench/peers/parity.py", f", PyTorch {version}, one thread")
    said = (
        "Relative errors against PyTorch in double precision, ours / PyTorch's in single precision (the larger one of its two\n"
        "memory formats), of the tensor that uses most of what it may: ours at most twice PyTorch's, or at most 1e-5. The batch\n"
        "is 2 images with torchvision's random weights; losses are those of 20 steps. A ReLU's slope jumps at 0: a tensor above\n"
        "its bound is looked at with two more batches, and the middle one of the three counts."
    )
    results.put("parity", f"## The networks' numbers beside PyTorch's\n\n{note}\n\n{said}\n\n" + "\n".join(table))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
