"""Reductions beyond sums, and what is computed along an axis."""

import math

import torch

from formulas import case


def reductions():
    """`op` over "axes" with "keepdim"; "correction" of `var` and `std`, "p" of `norm` (null for infinity)."""
    cases = (
        ([3, 5], [0], True),
        ([3, 5], [1], False),
        ([2, 3, 4], [0, 2], False),
        ([2, 3, 4], [1], True),
        ([2, 1, 5, 3], [1, 2, 3], False),
        ([13], [0], False),
    )
    several = {"min": torch.amin, "logsumexp": torch.logsumexp}
    for shape, axes, keepdim in cases:
        params = {"axes": axes, "keepdim": keepdim}
        for op, f in several.items():
            yield case(op, params, [shape], lambda x, f=f, p=params: f(x, p["axes"], keepdim=p["keepdim"]))

        def prod(x, p=params):
            for axis in reversed(p["axes"]):
                x = x.prod(axis, keepdim=p["keepdim"])
            return x

        yield case("prod", params, [shape], prod)
        for op, f in (("var", torch.var), ("std", torch.std)):
            for correction in (0, 1):
                params = {"axes": axes, "keepdim": keepdim, "correction": correction}

                def moment(x, f=f, p=params):
                    return f(x, p["axes"], correction=p["correction"], keepdim=p["keepdim"])

                yield case(op, params, [shape], moment)
        for p in (0.5, 1, 1.5, 2, 3, -1, None):
            params = {"axes": axes, "keepdim": keepdim, "p": p}

            def norm(x, q=params):
                p = math.inf if q["p"] is None else q["p"]
                return torch.linalg.vector_norm(x, p, q["axes"], keepdim=q["keepdim"])

            yield case("norm", params, [shape], norm)


def along():
    """`op` along "axis": cumulative sums and products; `top_k` with "k" and "largest"; `sort` with "falling".

    The second output of the last two is the places.
    """
    for shape, axis in (([7], 0), ([3, 5], 0), ([3, 5], 1), ([2, 4, 3], 1)):
        params = {"axis": axis}
        for op, f in (("cumsum", torch.cumsum), ("cumprod", torch.cumprod)):
            yield case(op, params, [shape], lambda x, f=f, a=axis: f(x, a))
        for k in (1, 3):
            for largest in (True, False):
                params = {"axis": axis, "k": k, "largest": largest}

                def top(x, p=params):
                    return tuple(torch.topk(x, p["k"], p["axis"], p["largest"]))

                yield case("top_k", params, [shape], top)
        for falling in (False, True):
            params = {"axis": axis, "falling": falling}
            yield case("sort", params, [shape], lambda x, a=axis, f=falling: tuple(torch.sort(x, a, f)))


FAMILIES = [reductions, along]
