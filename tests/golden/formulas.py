"""The formulas of the inputs and what a case is made of; make.py tells them in words."""

import math

import torch

F64 = torch.float64


def value(k, n):
    """The first n elements of input k."""
    return [0.8 * math.sin(0.7 * i * (k + 1) + 0.3 * k) + 0.1 for i in range(n)]


def weight(n):
    """The first n elements of the weights that make a scalar of an output."""
    return [math.cos(0.9 * i) + 0.2 for i in range(n)]


KINDS = {
    "positive": lambda x: abs(x) + 0.5,
    "unit": lambda x: 0.5 + 0.5625 * (x - 0.1),
    "signs": lambda x: 1.0 if x > 0.1 else -1.0,
}


def tensor(k, shape, kind=None):
    data = value(k, math.prod(shape))
    if kind:
        data = [KINDS[kind](x) for x in data]
    return torch.tensor(data, dtype=F64).reshape(shape)


def digits(t):
    """A tensor as a flat list, cut to 13 significant digits."""
    return [float(f"{x:.12e}") for x in t.detach().reshape(-1).tolist()]


def project(t):
    """sum_i(weight(i) * t[i]) over the row-major elements of `t`."""
    return (t.reshape(-1) * torch.tensor(weight(t.numel()), dtype=F64)).sum()


def case(op, params, shapes, f, frozen=()):
    """Runs `f(*inputs)`, which gives one tensor or a tuple whose first is differentiated."""
    kinds = {k: kind for kind in KINDS for k in params.get(kind, [])}
    inputs = [tensor(k, s, kinds.get(k)) for k, s in enumerate(shapes)]
    for k, x in enumerate(inputs):
        x.requires_grad_(k not in frozen)
    outputs = f(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    project(outputs[0]).backward()
    return {
        "op": op,
        "params": params,
        "inputs": [list(s) for s in shapes],
        "outputs": [digits(o) for o in outputs],
        "gradients": [None if x.grad is None else digits(x.grad) for x in inputs],
    }


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)
