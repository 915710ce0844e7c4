"""Functions of one and two numbers beyond plain arithmetic."""

import torch
import torch.nn.functional as F

from formulas import case

SHAPE = [3, 7]


def functions():
    """`op` of "scale" times the input (powers of two, which change no digit), with "constants".

    The constants of `clamp` may be null; those of the others are in the order of PyTorch's arguments.
    The hard functions are taken from their definitions: PyTorch's own have a sixth in single precision.
    """
    everywhere = {
        "abs": torch.abs,
        "sign": torch.sign,
        "square": torch.square,
        "relu": F.relu,
        "exp": torch.exp,
        "expm1": torch.expm1,
        "exp2": torch.exp2,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "sin": torch.sin,
        "cos": torch.cos,
        "atan": torch.atan,
        "sinh": torch.sinh,
        "cosh": torch.cosh,
        "asinh": torch.asinh,
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round": torch.round,
        "trunc": torch.trunc,
        "fract": torch.frac,
        "erf": torch.erf,
        "gaussian": lambda x: torch.exp(-x * x),
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "mish": F.mish,
        "relu6": F.relu6,
        "selu": F.selu,
        "softsign": F.softsign,
        "hard_sigmoid": lambda x: F.relu6(x + 3) / 6,
        "hard_swish": lambda x: x * F.relu6(x + 3) / 6,
        "log_sigmoid": F.logsigmoid,
        "tanh_shrink": F.tanhshrink,
    }
    for op, f in everywhere.items():
        for scale in (1, 8):
            yield case(op, {"scale": scale}, [SHAPE], lambda x, f=f, s=scale: f(s * x))
    inside = {"tan": torch.tan, "log1p": torch.log1p, "asin": torch.asin, "acos": torch.acos, "atanh": torch.atanh}
    for op, f in inside.items():
        yield case(op, {"scale": 1}, [SHAPE], f)
    positive = {
        "log2": (torch.log2, 1),
        "log10": (torch.log10, 1),
        "log1p": (torch.log1p, 8),
        "sqrt": (torch.sqrt, 4),
        "rsqrt": (torch.rsqrt, 4),
        "reciprocal": (torch.reciprocal, 4),
        "acosh": (torch.acosh, 4),
    }
    for op, (f, scale) in positive.items():
        yield case(op, {"scale": scale, "positive": [0]}, [SHAPE], lambda x, f=f, s=scale: f(s * x))
    constants = {
        "leaky_relu": (F.leaky_relu, [[0.01], [0.25]]),
        "elu": (F.elu, [[1.0], [0.5]]),
        "celu": (F.celu, [[1.0], [2.0]]),
        "softplus": (F.softplus, [[1.0, 20.0], [2.0, 5.0]]),
        "hard_tanh": (F.hardtanh, [[-1.0, 1.0], [-2.0, 3.0]]),
        "hard_shrink": (F.hardshrink, [[0.5], [2.0]]),
        "soft_shrink": (F.softshrink, [[0.5], [2.0]]),
        "threshold": (F.threshold, [[0.1, 20.0]]),
        "clamp": (torch.clamp, [[-1.0, 2.0], [None, 0.5], [-0.25, None]]),
        "pow_scalar": (torch.pow, [[2.0], [3.0], [1.0], [0.0]]),
    }
    for op, (f, choices) in constants.items():
        for choice in choices:
            params = {"scale": 4, "constants": choice}
            yield case(op, params, [SHAPE], lambda x, f=f, a=choice: f(4 * x, *a))
    for exponent in (0.5, -0.5, -1.0, 1.7, -2.0):
        params = {"scale": 2, "constants": [exponent], "positive": [0]}
        yield case("pow_scalar", params, [SHAPE], lambda x, e=exponent: torch.pow(2 * x, e))


def pairs():
    """Functions of two tensors; both operands broadcast."""
    several = {
        "maximum": torch.maximum,
        "minimum": torch.minimum,
        "atan2": torch.atan2,
        "remainder": torch.remainder,
        "pow": torch.pow,
        "logaddexp": torch.logaddexp,
    }
    for op, f in several.items():
        for a, b in (([3, 5], [3, 5]), ([3, 1], [1, 5]), ([2, 3, 4], [3, 1]), ([], [2, 3])):
            params = {"shape": list(torch.broadcast_shapes(a, b))}
            if op == "pow":
                params["positive"] = [0]
            yield case(op, params, [a, b], f)
    # Channels last here, second in PyTorch.
    for shape, slopes in (([2, 5, 3], 3), ([4, 6], 6), ([2, 3, 2], 1)):

        def f(x, w):
            return F.prelu(x.movedim(-1, 1), w).movedim(1, -1)

        yield case("prelu", {"shape": shape}, [shape, [slopes]], f)


FAMILIES = [functions, pairs]
