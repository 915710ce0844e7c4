"""Padding, windows taken out and put back, and other moves of elements, over channels-last tensors."""

import torch
import torch.nn.functional as F

from formulas import case
from families.pooling import first, last


def padding():
    """`pad`: "amounts" are [before, after] for the axes from "axis" on; "mode" is torch's, "value" the constant.

    `unfold` gives [N, ..., K*C] of [N, ..., C], `fold` is its way back to "sizes"; both have "kernel", "stride",
    "padding" and "dilation". `pixel_shuffle` and `pixel_unshuffle` have "factor".
    """
    for shape, amounts, mode in (
        ([2, 5, 3], [[2, 1]], "constant"),
        ([1, 4, 3, 2], [[1, 0], [2, 3]], "constant"),
        ([1, 4, 5, 2], [[-1, 2], [1, -2]], "constant"),
        ([1, 2, 3, 2, 2], [[0, 1], [-1, 0], [1, 1]], "constant"),
        ([2, 5, 3], [[3, 4]], "reflect"),
        ([1, 4, 3, 2], [[1, 3], [2, 0]], "reflect"),
        ([1, 5, 5, 1], [[-1, 2], [1, -2]], "reflect"),
        ([1, 3, 2, 3, 2], [[1, 2], [0, 1], [2, 1]], "reflect"),
        ([2, 2, 3], [[3, 5]], "replicate"),
        ([1, 4, 3, 2], [[0, 2], [4, 1]], "replicate"),
        ([1, 4, 4, 1], [[-1, 2], [1, -2]], "replicate"),
        ([1, 2, 3, 1, 2], [[1, 2], [0, 1], [2, 1]], "replicate"),
        ([2, 4, 3], [[4, 1]], "circular"),
        ([1, 4, 3, 2], [[0, 2], [3, 1]], "circular"),
        ([1, 4, 4, 2], [[-1, 2], [1, -1]], "circular"),
        ([1, 2, 3, 2, 2], [[1, 2], [0, 1], [2, 1]], "circular"),
    ):
        flat = [a for pair in reversed(amounts) for a in pair]
        value = 0.75 if mode == "constant" else 0.0

        def f(x, flat=flat, mode=mode, value=value):
            return last(F.pad(first(x), flat, mode, value))

        yield case("pad", {"axis": 1, "amounts": amounts, "mode": mode, "value": value}, [shape], f)
    for shape, axis, amounts in (([3, 4], 0, [[1, 2]]), ([2, 3, 2], 1, [[0, 1], [2, 0]]), ([4], 0, [[2, -1]])):
        flat = [a for pair in reversed(amounts + [[0, 0]] * (len(shape) - axis - len(amounts))) for a in pair]
        params = {"axis": axis, "amounts": amounts, "mode": "constant", "value": -0.5}
        yield case("pad", params, [shape], lambda x, flat=flat: F.pad(x, flat, "constant", -0.5))
    for shape, kernel, stride, pad, dilation in (
        ([2, 5, 4, 3], [3, 2], [1, 1], [0, 0], [1, 1]),
        ([1, 6, 5, 2], [2, 3], [2, 1], [1, 2], [1, 2]),
        ([1, 4, 4, 1], [2, 2], [3, 2], [0, 1], [2, 1]),
    ):
        params = {"kernel": kernel, "stride": stride, "padding": pad, "dilation": dilation}
        sizes = shape[1:3]
        out = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in zip(sizes, kernel, stride, pad, dilation)
        ]
        n, c, k = shape[0], shape[3], kernel[0] * kernel[1]
        geometry = (kernel, dilation, pad, stride)

        def take(x, geometry=geometry, n=n, c=c, k=k, out=out):
            y = F.unfold(first(x), *geometry).reshape(n, c, k, -1)
            return y.permute(0, 3, 2, 1).reshape(n, *out, k * c)

        def put(x, geometry=geometry, n=n, c=c, k=k, sizes=sizes):
            y = x.reshape(n, -1, k, c).permute(0, 3, 2, 1).reshape(n, c * k, -1)
            return last(F.fold(y, sizes, *geometry))

        yield case("unfold", params, [shape], take)
        yield case("fold", params | {"sizes": sizes}, [[n, *out, k * c]], put)
    for shape, factor in (([1, 2, 3, 8], 2), ([2, 1, 2, 9], 3)):
        yield case("pixel_shuffle", {"factor": factor}, [shape], lambda x, r=factor: last(F.pixel_shuffle(first(x), r)))
    for shape, factor in (([1, 4, 6, 2], 2), ([1, 3, 6, 1], 3)):

        def f(x, r=factor):
            return last(F.pixel_unshuffle(first(x), r))

        yield case("pixel_unshuffle", {"factor": factor}, [shape], f)
    for shape, axes in (([3, 4], [0]), ([2, 3, 2], [0, 2]), ([5], [0])):
        yield case("flip", {"axes": axes}, [shape], lambda x, a=axes: torch.flip(x, a))
    for shape, axis, shift in (([3, 4], 1, 1), ([2, 5, 2], 1, -7), ([4], 0, 6)):
        yield case("roll", {"axis": axis, "shift": shift}, [shape], lambda x, a=axis, s=shift: torch.roll(x, s, a))
    for shape, times in (([3, 2], [2, 3]), ([2, 1, 2], [1, 4, 2]), ([3], [0])):
        yield case("repeat", {"times": times}, [shape], lambda x, t=times: x.repeat(t))


FAMILIES = [padding]
