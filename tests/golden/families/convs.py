"""Convolutions over channels-last tensors, as they are and transposed."""

import torch.nn.functional as F

from formulas import case


def first(x):
    """[N, ..., C] as [N, C, ...]."""
    return x.movedim(-1, 1)


def convs():
    """Convolutions over the axes between samples and channels, as many as "kernel" has numbers.

    `conv` has a weight [O, ..., I / groups], `conv_transpose` one [I, ..., O / groups] and "output_padding". "padding" is
    zeros on both sides or "same". The bias is the third input, when there is one.
    """
    plain = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    for x, out, kernel, stride, padding, dilation, groups, bias in (
        ([2, 9, 4], 6, [3], [2], [1], [1], 1, True),
        ([1, 12, 1], 4, [5], [1], [2], [2], 1, False),
        ([2, 7, 6], 6, [3], [1], [1], [1], 6, True),
        ([1, 5, 4], 2, [4], [1], "same", [1], 2, True),
        ([1, 7, 6, 4], 6, [3, 2], [2, 1], [1, 0], [1, 2], 2, True),
        ([1, 6, 6, 6], 6, [3, 3], [1, 1], [1, 1], [1, 1], 6, False),
        ([1, 7, 7, 4], 8, [3, 3], [2, 2], [1, 1], [1, 1], 4, True),
        ([1, 8, 8, 3], 2, [3, 3], [1, 1], [3, 3], [3, 3], 1, True),
        ([1, 5, 6, 2], 3, [2, 4], [1, 1], "same", [2, 1], 1, True),
        ([1, 12, 12, 3], 2, [11, 11], [4, 4], [2, 2], [1, 1], 1, True),
        ([1, 1, 1, 3], 2, [3, 3], [2, 2], [1, 1], [1, 1], 1, True),
        ([1, 4, 5, 4, 2], 3, [2, 3, 3], [1, 2, 1], [0, 1, 1], [2, 1, 1], 1, True),
        ([2, 3, 3, 3, 4], 4, [3, 3, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1], 4, True),
        ([1, 3, 4, 3, 4], 2, [2, 2, 2], [2, 1, 1], [1, 0, 1], [1, 1, 2], 2, False),
    ):
        params = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        shapes = [x, [out, *kernel, x[-1] // groups]] + ([[out]] if bias else [])

        def f(x, w, b=None, s=stride, p=padding, d=dilation, g=groups):
            y = plain[len(s)](first(x), first(w), b, s, p if p == "same" else tuple(p), d, g)
            return y.movedim(1, -1).contiguous()

        yield case("conv", params, shapes, f)
    for x, out, kernel, stride, padding, more, dilation, groups, bias in (
        ([2, 5, 4], 3, [3], [2], [1], [1], [1], 1, True),
        ([1, 4, 4], 6, [2], [3], [0], [2], [1], 2, False),
        ([1, 4, 4, 3], 2, [4, 4], [2, 2], [1, 1], [0, 0], [1, 1], 1, True),
        ([2, 3, 4, 4], 4, [3, 3], [2, 1], [1, 2], [1, 0], [1, 1], 2, True),
        ([1, 4, 4, 5], 5, [3, 3], [2, 2], [1, 1], [1, 1], [1, 1], 5, True),
        ([1, 3, 3, 2], 2, [3, 2], [1, 1], [2, 1], [1, 2], [2, 3], 1, False),
        ([1, 1, 1, 4], 3, [3, 5], [1, 1], [0, 1], [0, 0], [1, 1], 1, True),
        ([1, 2, 3, 2, 2], 2, [2, 3, 2], [2, 1, 2], [0, 1, 0], [1, 0, 1], [1, 1, 1], 1, True),
        ([1, 3, 2, 2, 4], 4, [3, 2, 1], [1, 2, 1], [1, 0, 0], [1, 1, 0], [2, 1, 1], 2, True),
    ):
        params = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        params["output_padding"] = more
        shapes = [x, [x[-1], *kernel, out // groups]] + ([[out]] if bias else [])

        def f(x, w, b=None, s=stride, p=padding, m=more, d=dilation, g=groups):
            y = transposed[len(s)](first(x), first(w), b, s, p, m, g, d)
            return y.movedim(1, -1).contiguous()

        yield case("conv_transpose", params, shapes, f)


FAMILIES = [convs]
