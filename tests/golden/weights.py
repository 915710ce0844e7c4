"""Writes tests/golden/weights/*.pth: small files of torch.save, for the reader of weights.

    python tests/golden/weights.py          (PyTorch 2.x; crates/train/src/weights/tests.rs reads them)

Element i of tensor number n is ((7 i + 3 n) mod 16 - 8) / 8, which every floating-point type holds exactly.
"""

import collections
import pathlib

import torch

OUT = pathlib.Path(__file__).parent / "weights"


def formula(number, *shape, dtype=torch.float32):
    count = torch.Size(shape).numel()
    return (((torch.arange(count) * 7 + 3 * number) % 16 - 8) / 8).reshape(shape).to(dtype)


def model():
    """A convolution, a batch norm and a linear layer, in torchvision's way of naming."""
    return collections.OrderedDict(
        [
            ("conv1.weight", formula(0, 4, 3, 3, 3)),
            ("bn1.weight", formula(1, 4)),
            ("bn1.bias", formula(2, 4)),
            ("bn1.running_mean", formula(3, 4)),
            ("bn1.running_var", formula(4, 4)),
            ("bn1.num_batches_tracked", torch.tensor(7)),
            ("fc.weight", formula(5, 5, 4)),
            ("fc.bias", formula(6, 5)),
        ]
    )


def views():
    """Everything that a tensor can be besides plain, two dictionaries deep and under DDP's names."""
    whole = formula(0, 4, 6)
    tensors = {
        "whole": whole,
        "transposed": whole.t(),
        "slice": whole[1:3, ::2],
        "column": whole[:, 5],
        "expanded": formula(1, 1, 3).expand(2, 3),
        "scalar": formula(2),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(formula(3, 2, 2)),
        "f64": formula(4, 3, dtype=torch.float64),
        "f16": formula(5, 3, dtype=torch.float16),
        "bf16": formula(6, 3, dtype=torch.bfloat16),
        "i32": torch.tensor([-1, 2], dtype=torch.int32),
        "i16": torch.tensor([-3, 4], dtype=torch.int16),
        "i8": torch.tensor([-5, 6], dtype=torch.int8),
        "bool": torch.tensor([True, False]),
    }
    tensors = collections.OrderedDict((f"module.{name}", tensor) for name, tensor in tensors.items())
    return {"epoch": 3, "best": 0.5, "args": {"lr": [0.1, -200000, 2**40]}, "state_dict": {"model": tensors}}


def main():
    OUT.mkdir(exist_ok=True)
    state = model()
    # What state_dict() hangs on the dictionary.
    state._metadata = collections.OrderedDict([("", {"version": 1})])
    torch.save(state, OUT / "plain.pth")
    torch.save(state, OUT / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, OUT / "protocol4.pth", pickle_protocol=4)
    torch.save(views(), OUT / "views.pth")
    torch.save(views(), OUT / "views-legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), OUT / "module.pth")
    torch.serialization.set_crc32_options(False)
    torch.save(state, OUT / "no-crc.pth")


main()
