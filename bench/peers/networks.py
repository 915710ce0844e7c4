#!/usr/bin/env python3
"""Training steps of the ImageNet networks beside PyTorch's: speed and peak memory, on one thread.

usage: networks.py [--rounds N] [--only NETWORK,...] [--seconds S] [--python PYTHON] [--phalanx BINARY]
                   [--json FILE] [--update-results]

A step is forward, cross-entropy, backward and SGD with momentum, on 224x224 images in memory. The two sides take turns,
round after round; a ratio is formed within each round, and its median and range are printed. PyTorch gets the better of
its memory formats, which are both tried before the first round. Peak memory is the most that a process had at once; a
second row takes off what the Python process had before it made the network.

Options are those of run.py, whose parts this script uses. The exit code is 0 only when everything could be measured;
a figure that misses its mark is printed, and is no error.
"""

import json
import sys

import results
from run import Failure, Phalanx, Row, Torch, markdown, plain, read_arguments

# Batches of the networks.
NETWORKS = {"alexnet": 16, "vgg16": 4, "googlenet": 16, "resnet18": 16, "resnet50": 16, "densenet121": 16}
SPEED_MARK, MEMORY_MARK = 0.6, 1.2
FORMATS = ("contiguous", "channels_last")


class Peer:
    """PyTorch on one network, in the better of its memory formats; a process of its own, so that its memory is."""

    def __init__(self, python, network, batch):
        self.network, self.batch = network, batch
        tried = {name: Torch(python, 0.0) for name in FORMATS}
        try:
            own = {name: torch.ask(1, what="memory")["peak_rss_bytes"] for name, torch in tried.items()}
            speeds = {name: self.measure(torch, name, 2)["samples_per_second"] for name, torch in tried.items()}
        except Failure:
            for torch in tried.values():
                torch.close()
            raise
        self.format = max(speeds, key=speeds.get)
        self.torch, self.own = tried.pop(self.format), own[self.format]
        for other in tried.values():
            other.close()

    def measure(self, torch, memory_format, steps):
        variant = {"channels_last": memory_format == "channels_last", "optimizer": "foreach", "onednn": True, "static_graph": False}
        return torch.ask(1, what="step", model=self.network, batch=self.batch, variant=variant, steps=steps, warm=1)

    def step(self):
        return {**self.measure(self.torch, self.format, 3), **self.torch.ask(1, what="memory")}


def arguments():
    return read_arguments(
        "The ImageNet networks beside PyTorch; see the top of this file.", "network", NETWORKS, rounds=5, json="networks.json",
        seconds="length of one measurement of ours", python="a Python that has torchvision",
    )


def measure(args, network):
    """The figures of all rounds: ours, PyTorch's, and PyTorch's memory format."""
    batch, phalanx = NETWORKS[network], Phalanx(args.phalanx)
    peer = Peer(args.python, network, batch)
    mine, theirs = [], []
    try:
        for i in range(args.rounds):
            mine.append(phalanx.bench("step", "--model", network, "--batch", batch, "--threads", 1, "--seconds", args.seconds))
            theirs.append(peer.step())
            print(f"{network}: round {i + 1} of {args.rounds}", file=sys.stderr)
    finally:
        peer.torch.close()
    return {"ours": mine, "peer": theirs, "format": peer.format, "own": peer.own, "torch": peer.torch.version}


def rows(network, taken):
    def pair(key, scale=1.0):
        return [[scale * figures[key] for figures in taken[side]] for side in ("ours", "peer")]

    title = f"{network}, b{NETWORKS[network]}, {taken['format']}"
    # Memory only grows: what a side has had at the end is its peak.
    mine, theirs = (max(side) for side in pair("peak_rss_bytes", 1e-6))
    return [
        Row(title, "images/s", *pair("samples_per_second"), at_least=SPEED_MARK),
        Row("its peak memory", "MB", [mine], [theirs], at_most=MEMORY_MARK),
        Row("the same without Python's own", "MB", [mine], [theirs - 1e-6 * taken["own"]]),
    ]


def main():
    args = arguments()
    taken, broken, table = {}, {}, []
    for network in args.only_names:
        try:
            taken[network] = measure(args, network)
            table += rows(network, taken[network])
        except Failure as e:
            broken[network] = str(e)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"networks": taken, "broken": broken}, indent=1) + "\n")
    print(plain(table))
    for network, why in broken.items():
        print(f"NOT MEASURED {network}: {why}")
    if args.update_results and not broken:
        version = next(iter(taken.values()))["torch"].split("+")[0]
        only = f" --only {args.only}" if args.only_names != list(NETWORKS) else ""
        command = f"bench/peers/networks.py --rounds {args.rounds}{only}"
        note = results.provenance(command, f", PyTorch {version}, one thread, medians of {args.rounds} rounds")
        results.put("networks", markdown("ImageNet networks beside PyTorch", table, note))
    elif args.update_results:
        print("bench/RESULTS.md is left as it was: not everything could be measured")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
