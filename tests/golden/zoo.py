#!/usr/bin/env python3
"""What torchvision's networks consist of, for the tests of `nn`: writes zoo.json beside this script.

usage: zoo.py

Needs torchvision. For each network: how many tensors its state has and how many elements these have,
trainable elements, the SHA-256 of the sorted lines "NAME [SHAPE]\\n", as "fc.bias [1000]", and where
torchvision tells them, thousand million multiply-adds ("_ops" of its weights).
"""

import hashlib
import json
import pathlib

import torch
import torchvision

NAMES = [
    "alexnet",
    *(f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")),
    "googlenet",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "wide_resnet50_2",
    "wide_resnet101_2",
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
]


def row(name):
    more = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **more)
    state = model.state_dict()
    lines = sorted(f"{key} [{','.join(map(str, value.shape))}]\n" for key, value in state.items())
    weights = list(torchvision.models.get_model_weights(name))
    return {
        "name": name,
        "tensors": len(state),
        "elements": sum(t.numel() for t in state.values()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "giga_multiply_adds": weights[0].meta["_ops"] if weights else None,
    }


if __name__ == "__main__":
    rows = ",\n".join("  " + json.dumps(row(name)) for name in NAMES)
    version = torchvision.__version__.split("+")[0]
    text = f'{{\n "about": "Made by zoo.py.",\n "torchvision": "{version}",\n "networks": [\n{rows}\n ]\n}}\n'
    (pathlib.Path(__file__).resolve().parent / "zoo.json").write_text(text)
