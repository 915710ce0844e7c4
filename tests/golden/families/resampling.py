"""Resizing and pooling that tells its places, over channels-last tensors."""

import torch
import torch.nn.functional as F

from formulas import case, value
from families.pooling import first, last

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resampling():
    """`interpolate` with "mode" nearest, nearest-exact, linear or cubic, to "size" or by "factors" (one is null),
    with "align_corners" and "antialias".

    `fractional_max_pool` has "kernel", "out" and "samples" [N, C, axes]; `max_pool_places` has "kernel", "stride" and
    "padding": the second output of both is the places; `max_unpool` puts numbers at "places" in images of "sizes".
    """
    for shape, mode, size, factors, align, antialias in (
        ([2, 5, 3], "nearest", [9], None, False, False),
        ([1, 7, 5, 2], "nearest", [4, 11], None, False, False),
        ([1, 3, 4, 5], "nearest", None, [2.0, 2.0], False, False),
        ([1, 6, 5, 1], "nearest", None, [1.7, 0.6], False, False),
        ([1, 2, 3, 4, 2], "nearest", [3, 2, 5], None, False, False),
        ([2, 5, 3], "nearest-exact", [8], None, False, False),
        ([1, 7, 5, 2], "nearest-exact", [4, 11], None, False, False),
        ([1, 2, 3, 4, 2], "nearest-exact", [3, 2, 6], None, False, False),
        ([2, 5, 3], "linear", [9], None, False, False),
        ([2, 5, 3], "linear", [3], None, True, False),
        ([1, 4, 5, 2], "linear", [8, 10], None, False, False),
        ([1, 4, 5, 2], "linear", [7, 3], None, True, False),
        ([1, 4, 5, 2], "linear", [1, 1], None, True, False),
        ([1, 5, 4, 1], "linear", None, [1.7, 0.6], False, False),
        ([1, 2, 3, 4, 2], "linear", [4, 5, 3], None, False, False),
        ([1, 3, 3, 2, 2], "linear", [2, 5, 4], None, True, False),
        ([1, 5, 4, 2], "cubic", [10, 7], None, False, False),
        ([1, 5, 4, 2], "cubic", [8, 3], None, True, False),
        ([1, 5, 4, 1], "cubic", None, [1.7, 0.6], False, False),
        ([1, 9, 11, 2], "linear", [4, 3], None, False, True),
        ([1, 9, 6, 2], "linear", [4, 9], None, False, True),
        ([1, 9, 8, 1], "linear", [4, 3], None, True, True),
        ([1, 9, 8, 1], "linear", None, [0.4, 0.3], False, True),
        ([1, 12, 11, 2], "cubic", [5, 3], None, False, True),
        ([1, 10, 6, 1], "cubic", [4, 9], None, False, True),
    ):
        named = {"linear": LINEAR[len(shape) - 2], "cubic": "bicubic"}.get(mode, mode)
        # PyTorch refuses these options with modes that have none.
        options = {} if mode.startswith("nearest") else {"align_corners": align}
        options |= {"antialias": True} if antialias else {}

        def f(x, size=size, factors=factors, named=named, options=options):
            return last(F.interpolate(first(x), size, factors, named, **options))

        params = {"mode": mode, "size": size, "factors": factors, "align_corners": align, "antialias": antialias}
        yield case("interpolate", params, [shape], f)
    fractional = {2: F.fractional_max_pool2d, 3: F.fractional_max_pool3d}
    for shape, kernel, out in (
        ([2, 7, 6, 3], [2, 2], [4, 3]),
        ([1, 9, 5, 2], [3, 1], [5, 4]),
        ([1, 5, 5, 1], [2, 3], [1, 1]),
        ([1, 6, 5, 4, 2], [2, 2, 1], [3, 3, 3]),
    ):
        count = shape[0] * shape[-1] * len(kernel)
        samples = [abs(v) for v in value(3, count)]
        given = torch.tensor(samples, dtype=torch.float64).reshape(shape[0], shape[-1], len(kernel))

        def f(x, kernel=kernel, out=out, given=given):
            y, places = fractional[len(kernel)](
                first(x), kernel, output_size=out, return_indices=True, _random_samples=given
            )
            return last(y), last(places)

        yield case("fractional_max_pool", {"kernel": kernel, "out": out, "samples": samples}, [shape], f)
    largest = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    unpool = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}
    for shape, kernel, stride, padding in (
        ([2, 9, 2], [3], [2], [1]),
        ([1, 6, 5, 3], [2, 3], [2, 1], [1, 0]),
        ([1, 4, 4, 3, 2], [2, 2, 2], [2, 1, 1], [0, 1, 0]),
    ):
        params = {"kernel": kernel, "stride": stride, "padding": padding}

        def f(x, k=kernel, s=stride, p=padding):
            return tuple(last(t) for t in largest[len(k)](first(x), k, s, p, return_indices=True))

        yield case("max_pool_places", params, [shape], f)
    for shape, kernel in (([2, 8, 3], [2]), ([1, 5, 6, 2], [2, 2]), ([1, 4, 2, 4, 1], [2, 1, 2])):
        x = first(torch.tensor(value(1, torch.Size(shape).numel()), dtype=torch.float64).reshape(shape))
        y, places = largest[len(kernel)](x, kernel, return_indices=True)
        given = list(last(y).shape)

        def f(x, k=kernel, places=places, sizes=shape[1:-1]):
            return last(unpool[len(k)](first(x), places, k, output_size=sizes))

        params = {"places": last(places).reshape(-1).tolist(), "sizes": shape[1:-1]}
        yield case("max_unpool", params, [given], f)


FAMILIES = [resampling]
