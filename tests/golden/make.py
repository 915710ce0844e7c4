#!/usr/bin/env python3
"""Golden values of PyTorch for the tests of `tensor` and `nn`.

usage: make.py [--check] [--only FAMILY]

Needs PyTorch (any recent version; CPU is enough). Writes one JSON file per family beside this script.
With `--check` it writes nothing and fails when a committed file differs from what this PyTorch
computes by more than a relative 1e-10.

No input is stored: a test makes the inputs again from the formulas below. Everything is float64, and
the files hold 13 significant digits.

    value(k, i)   = 0.8 * sin(0.7 * i * (k + 1) + 0.3 * k) + 0.1
    weight(i)     = cos(0.9 * i) + 0.2

`value(k, i)` is element i (row-major order of the shape in the file) of input k, counting from 0. The
products are rounded in the order written: ((0.7 * i) * (k + 1)) + (0.3 * k).

A file is {"about": text, "torch": version, "cases": [case, ...]}, a case is

    {"op": name, "params": {...}, "inputs": [shape, ...],
     "outputs": [[values], ...], "gradients": [[values] or null, ...]}

Outputs are flat, row-major. `gradients[k]` is the gradient of sum_i(weight(i) * outputs[0][i]) with
respect to input k; null where none is wanted. Five keys of `params` mean the same in every case:

    "positive": [k, ...]   these inputs are |value(k, i)| + 0.5 instead of value(k, i)
    "unit": [k, ...]       these are 0.5 + 0.5625 * (value(k, i) - 0.1), between 0 and 1
    "signs": [k, ...]      these are 1 where value(k, i) > 0.1, else -1
    "shape"                the shape of outputs[0], where an op's parameters do not tell it
    "labels", "index", "condition"   integers that the formula cannot make

Layouts are Phalanx's own: images [N, H, W, C], convolution weights [O, KH, KW, I], Linear weights as
given in the family `network`, which uses torchvision's layouts (see `network` below).

The formulas are in formulas.py, further families in families/.
"""

import argparse
import importlib
import json
import math
import pathlib
import sys

import torch
import torch.nn.functional as F

from formulas import case, digits, nchw, nhwc, project, tensor, value

HERE = pathlib.Path(__file__).resolve().parent


# ---------------------------------------------------------------------------- elementwise


def elementwise():
    """Arithmetic with broadcasting, functions of one number, and the choice between two tensors.

    `where` has "condition": zeros and ones, row-major, of shape "condition_shape"; it broadcasts with
    the two inputs, and a one takes the first of them.
    """
    binary = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
    pairs = [
        ([3, 5], [3, 5]),
        ([3, 5], [5]),
        ([3, 1], [1, 5]),
        ([2, 3, 4], [3, 1]),
        ([], [2, 3]),
        ([1], [1]),
        ([17], [17]),
    ]
    for op, f in binary.items():
        for a, b in pairs:
            params = {"shape": list(torch.broadcast_shapes(a, b))}
            if op == "div":
                params["positive"] = [1]
            yield case(op, params, [a, b], f)
    unary = {
        "neg": torch.neg,
        "exp": torch.exp,
        "log": torch.log,
        "sqrt": torch.sqrt,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
    }
    for op, f in unary.items():
        for shape in ([3, 7], [1], [2, 3, 5]):
            params = {"positive": [0]} if op in ("log", "sqrt") else {}
            yield case(op, params, [shape], f)
    for cond, a, b in (([3, 4], [3, 4], [3, 4]), ([4], [3, 1], [3, 4]), ([2, 1, 3], [5, 3], [])):
        bits = [int(x > 0.1) for x in value(7, math.prod(cond))]
        mask = torch.tensor(bits).reshape(cond).bool()
        shape = list(torch.broadcast_shapes(cond, a, b))
        params = {"condition": bits, "condition_shape": cond, "shape": shape}
        yield case("where", params, [a, b], lambda x, y, m=mask: torch.where(m, x, y))


# ---------------------------------------------------------------------------- reductions


def reduce():
    """Sum, mean and largest element over "axes"; "keepdim" says whether they stay as ones."""
    whole = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
    for op, f in whole.items():
        for shape, axes in (
            ([3, 5], [0]),
            ([3, 5], [1]),
            ([3, 5], [0, 1]),
            ([2, 3, 4], [0, 2]),
            ([2, 3, 4], [1]),
            ([2, 1, 5, 3], [0, 1, 2]),
            ([13], [0]),
        ):
            for keepdim in (False, True):
                params = {"axes": axes, "keepdim": keepdim}
                yield case(op, params, [shape], lambda x, f=f, p=params: f(x, p["axes"], keepdim=p["keepdim"]))


# ---------------------------------------------------------------------------- matmul


def matmul():
    """op(a) @ op(b), where "transpose_a" says that a is stored [k, m], "transpose_b" b as [n, k]."""
    for m, k, n in ((3, 4, 5), (1, 1, 1), (7, 5, 3), (1, 9, 2), (8, 1, 3), (5, 17, 6)):
        for ta in (False, True):
            for tb in (False, True):
                a, b = ([k, m] if ta else [m, k]), ([n, k] if tb else [k, n])

                def f(x, y, ta=ta, tb=tb):
                    return (x.T if ta else x) @ (y.T if tb else y)

                yield case("matmul", {"transpose_a": ta, "transpose_b": tb}, [a, b], f)


# ---------------------------------------------------------------------------- convolution and pooling


def conv2d():
    """Cross-correlation: x [N, H, W, C], weight [O, KH, KW, I], bias [O] when there is a third input.

    "stride" and "padding" are [height, width]; padding is zeros on both sides.
    """

    def one(x, o, kernel, stride, padding, bias):
        shapes = [x, [o, *kernel, x[3]]] + ([[o]] if bias else [])

        def f(x, w, b=None):
            return nhwc(F.conv2d(nchw(x), w.permute(0, 3, 1, 2), b, stride=stride, padding=padding)).contiguous()

        return case("conv2d", {"stride": list(stride), "padding": list(padding)}, shapes, f)

    bias = True
    for k in (1, 3, 5):
        for stride in (1, 2):
            for padding in (0, 1) if k == 1 else (0, 1, 2):
                channels = 1 if k == 5 else 2
                yield one([1, 5, 5, channels], 2, (k, k), (stride, stride), (padding, padding), bias)
                bias = not bias
    yield one([2, 3, 4, 3], 3, (3, 3), (1, 1), (1, 1), True)
    yield one([3, 4, 4, 1], 2, (3, 3), (2, 1), (1, 0), False)
    yield one([2, 2, 7, 2], 3, (1, 5), (1, 2), (0, 2), True)
    yield one([1, 3, 2, 1], 17, (3, 2), (1, 1), (0, 0), True)


def max_pool2d():
    """Largest element of each window of [N, H, W, C]; padding counts as minus infinity.

    The formula's values differ inside every window, so no case depends on how ties are broken.
    """
    for kernel, stride, padding, shape in (
        ((2, 2), (2, 2), (0, 0), [1, 4, 6, 3]),
        ((2, 2), (2, 2), (0, 0), [2, 5, 5, 1]),
        ((2, 2), (1, 1), (0, 0), [1, 4, 5, 2]),
        ((2, 2), (2, 2), (1, 1), [1, 5, 4, 2]),
        ((3, 3), (2, 2), (1, 1), [2, 7, 6, 2]),
        ((3, 3), (2, 2), (0, 0), [1, 7, 7, 2]),
        ((3, 3), (1, 1), (1, 1), [1, 4, 4, 2]),
        ((3, 2), (2, 1), (1, 0), [1, 5, 4, 3]),
    ):
        params = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding)}

        def f(x, k=kernel, s=stride, p=padding):
            return nhwc(F.max_pool2d(nchw(x), k, s, p)).contiguous()

        yield case("max_pool2d", params, [shape], f)


# ---------------------------------------------------------------------------- normalisation


def batch_norm():
    """Per-channel normalisation over all axes but the last.

    Training: inputs x, gamma, beta; outputs y, the batch's mean and its biased variance. Evaluation:
    inputs x, gamma, beta, running mean, running variance (positive); output y.
    """
    eps = 1e-5
    for shape in ([2, 3, 4, 3], [6, 5], [2, 2, 1, 17]):
        c = shape[-1]

        def train(x, gamma, beta):
            flat = x.reshape(-1, x.shape[-1])
            y = F.batch_norm(flat, None, None, gamma, beta, training=True, eps=eps)
            return y.reshape(x.shape), flat.mean(0), flat.var(0, unbiased=False)

        def evaluate(x, gamma, beta, mean, var):
            flat = x.reshape(-1, x.shape[-1])
            return F.batch_norm(flat, mean, var, gamma, beta, training=False, eps=eps).reshape(x.shape)

        yield case("batch_norm", {"training": True, "eps": eps}, [shape, [c], [c]], train)
        params = {"training": False, "eps": eps, "positive": [4]}
        # Its running statistics are buffers to PyTorch: they get no gradient.
        yield case("batch_norm", params, [shape, [c], [c], [c], [c]], evaluate, frozen=(3, 4))


# ---------------------------------------------------------------------------- losses


def loss():
    """log_softmax over the last axis; losses as sums, since Phalanx divides after the all-reduce.

    `cross_entropy`: inputs logits [n, classes] and positive weights [n] without a gradient; "labels";
    the sum over samples of weight * -log_softmax(logits)[label]. `mse`: the sum of (a - b)^2.
    """
    for shape in ([3, 5], [1, 1], [4, 10], [2, 17]):
        yield case("log_softmax", {}, [shape], lambda x: F.log_softmax(x, -1))
    for n, classes in ((3, 5), (1, 2), (6, 10)):
        labels = [(3 * i + 1) % classes for i in range(n)]

        def f(x, w, labels=labels):
            return (F.cross_entropy(x, torch.tensor(labels), reduction="none") * w).sum()

        params = {"labels": labels, "positive": [1]}
        yield case("cross_entropy", params, [[n, classes], [n]], f, frozen=(1,))
    for shape in ([3, 5], [1], [2, 3, 4]):
        yield case("mse", {}, [shape, shape], lambda a, b: F.mse_loss(a, b, reduction="sum"))


# ---------------------------------------------------------------------------- shape


def shape():
    """Moving elements: "ranges" of slice are [start, end) for each axis; permute's "axes" say where
    each output axis comes from.

    `gather`: "index" holds positions along "axis"; output[.., j, ..] = x[.., index[j], ..].
    `gather_along`: "index" (row-major, "shape") has the rank of x; out[i][j] = x[i][index[i][j]] for axis 1.
    """
    for dims, ranges in (
        ([3, 5], [[1, 3], [0, 5]]),
        ([4, 6], [[0, 4], [2, 5]]),
        ([2, 3, 4], [[1, 2], [0, 2], [3, 4]]),
        ([3, 5], [[1, 1], [0, 5]]),
    ):
        index = tuple(slice(a, b) for a, b in ranges)
        yield case("slice", {"ranges": ranges}, [dims], lambda x, i=index: x[i])
    for shapes, axis in (
        ([[2, 3], [4, 3]], 0),
        ([[2, 3], [2, 1], [2, 4]], 1),
        ([[2, 3, 2], [2, 1, 2]], 1),
        ([[3], [0], [2]], 0),
    ):
        yield case("concat", {"axis": axis}, shapes, lambda *xs, a=axis: torch.cat(xs, a))
    for dims, axis, index in (
        ([5, 3], 0, [4, 0, 0, 2]),
        ([3, 6], 1, [5, 1, 5]),
        ([2, 4, 3], 1, [3, 3, 0, 1, 2]),
    ):
        params = {"axis": axis, "index": index}
        yield case("gather", params, [dims], lambda x, p=params: x.index_select(p["axis"], torch.tensor(p["index"])))
    for dims, axis, shape, index in (
        ([4, 3], 1, [4, 1], [2, 0, 1, 1]),
        ([3, 4], 0, [2, 4], [0, 2, 1, 1, 2, 2, 0, 1]),
    ):
        params = {"axis": axis, "index": index, "shape": shape}

        def f(x, p=params):
            return torch.gather(x, p["axis"], torch.tensor(p["index"]).reshape(p["shape"]))

        yield case("gather_along", params, [dims], f)
    for dims, axes in (([3, 5], [1, 0]), ([2, 3, 4], [2, 0, 1]), ([2, 3, 4, 5], [0, 3, 1, 2]), ([4], [0])):
        yield case("permute", {"axes": axes}, [dims], lambda x, a=axes: x.permute(a))


# ---------------------------------------------------------------------------- network

LENET5 = [
    ("conv1.weight", [6, 1, 5, 5]),
    ("conv1.bias", [6]),
    ("conv2.weight", [16, 6, 5, 5]),
    ("conv2.bias", [16]),
    ("fc1.weight", [120, 400]),
    ("fc1.bias", [120]),
    ("fc2.weight", [84, 120]),
    ("fc2.bias", [84]),
    ("fc3.weight", [10, 84]),
    ("fc3.bias", [10]),
]

MLP = [("fc1.weight", [32, 784]), ("fc1.bias", [32]), ("fc2.weight", [10, 32]), ("fc2.bias", [10])]


def lenet5(p, x):
    """Images [N, 28, 28, 1] to logits; the Flatten emits (C, H, W), as torchvision's weights expect."""
    x = F.max_pool2d(F.relu(F.conv2d(nchw(x), p["conv1.weight"], p["conv1.bias"], padding=2)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, p["conv2.weight"], p["conv2.bias"])), 2).flatten(1)
    x = F.relu(F.linear(x, p["fc1.weight"], p["fc1.bias"]))
    x = F.relu(F.linear(x, p["fc2.weight"], p["fc2.bias"]))
    return F.linear(x, p["fc3.weight"], p["fc3.bias"])


def mlp(p, x):
    x = F.relu(F.linear(x.flatten(1), p["fc1.weight"], p["fc1.bias"]))
    return F.linear(x, p["fc2.weight"], p["fc2.bias"])


def network():
    """Whole networks: weights by formula in torchvision's names and layouts ([O, I, KH, KW], [out, in]).

    Input 0 is the images [N, 28, 28, 1]; input k is the parameter "names"[k - 1], whose element i is
    "scales"[k - 1] * (value(k, i) - 0.1), the scale being 1 / sqrt(fan in). Outputs: the logits [N, 10]
    and the summed cross-entropy with "labels". Unlike elsewhere `gradients[k]` is not the gradient but
    three numbers of the gradient g of the summed cross-entropy: sum(weight(i) * g[i]), sum(g), sqrt(sum(g^2)).
    """
    for name, parameters, f, batch in (("mlp", MLP, mlp, 3), ("lenet5", LENET5, lenet5, 3)):
        labels = [(3 * i + 1) % 10 for i in range(batch)]
        inputs, scales, named = [tensor(0, [batch, 28, 28, 1])], [], {}
        fan_in = 1
        for k, (key, dims) in enumerate(parameters, 1):
            if key.endswith("weight"):
                fan_in = math.prod(dims[1:])
            scales.append(1 / math.sqrt(fan_in))
            named[key] = (tensor(k, dims) - 0.1) * scales[-1]
            inputs.append(named[key])
        for x in inputs:
            x.requires_grad_()
        logits = f(named, inputs[0])
        total = F.cross_entropy(logits, torch.tensor(labels), reduction="sum")
        total.backward()
        yield {
            "op": name,
            "params": {"names": [key for key, _ in parameters], "scales": scales, "labels": labels},
            "inputs": [list(x.shape) for x in inputs],
            "outputs": [digits(logits), digits(total)],
            "gradients": [
                digits(torch.stack([project(x.grad), x.grad.sum(), x.grad.norm()])) for x in inputs
            ],
        }


# ---------------------------------------------------------------------------- optimizers


def optimizer():
    """Five steps from p = value(0, .): in step t = 1..5 the gradient is 0.5 * p + value(t, .).

    `outputs[t - 1]` is p after step t. Weight decay is added to the gradient (L2), as PyTorch's SGD and
    Adam do; SGD has no dampening.
    """
    sgd = [
        {"lr": 0.1, "momentum": m, "nesterov": n, "weight_decay": wd}
        for m, n in ((0.0, False), (0.9, False), (0.9, True))
        for wd in (0.0, 0.01)
    ]
    adam = [{"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": wd} for wd in (0.0, 0.01)]
    for op, settings in [("sgd", s) for s in sgd] + [("adam", s) for s in adam]:
        p = tensor(0, [7]).requires_grad_()
        if op == "sgd":
            optim = torch.optim.SGD([p], **settings)
        else:
            rest = {key: settings[key] for key in ("lr", "eps", "weight_decay")}
            optim = torch.optim.Adam([p], betas=(settings["beta1"], settings["beta2"]), **rest)
        outputs = []
        for t in range(1, 6):
            p.grad = 0.5 * p.detach() + tensor(t, [7])
            optim.step()
            outputs.append(digits(p))
        yield {"op": op, "params": settings, "inputs": [[7]], "outputs": outputs, "gradients": [None]}


# ---------------------------------------------------------------------------- files

FAMILIES = [elementwise, reduce, matmul, conv2d, max_pool2d, batch_norm, loss, shape, network, optimizer]
# More of them, a module a subject in families/: each lists its own in FAMILIES.
for path in sorted((HERE / "families").glob("*.py")):
    FAMILIES += importlib.import_module(f"families.{path.stem}").FAMILIES


def render(family):
    cases = ",\n".join("  " + json.dumps(c, separators=(",", ":")) for c in family())
    about = "Made by make.py, which tells the formulas of the inputs. " + " ".join(family.__doc__.split())
    return f'{{\n "about": {json.dumps(about)},\n "torch": "{torch.__version__.split("+")[0]}",\n "cases": [\n{cases}\n ]\n}}\n'


def same(a, b):
    """Whether two JSON values agree, numbers up to a relative 1e-10."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-10 * max(1.0, abs(a), abs(b))
    return a == b


def main():
    parser = argparse.ArgumentParser(description="Golden values of PyTorch; see the top of this file.")
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    parser.add_argument("--only", metavar="FAMILY", help="one file instead of all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = {f.__name__: f for f in FAMILIES}
    if args.only and args.only not in known:
        sys.exit(f"make.py: no family `{args.only}`; there are {', '.join(known)}")
    differ = 0
    for name, family in known.items():
        if args.only not in (None, name):
            continue
        path = HERE / f"{name}.json"
        text = render(family)
        if args.check:
            fits = path.exists() and same(json.loads(text)["cases"], json.loads(path.read_text())["cases"])
            differ += not fits
            print(f"{'ok  ' if fits else 'DIFF'} {path.name}")
        else:
            path.write_text(text)
            print(f"{len(text):7} bytes  {path.name}")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
