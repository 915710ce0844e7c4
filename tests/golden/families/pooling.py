"""Pooling over channels-last tensors."""

import torch.nn.functional as F

from formulas import case


def first(x):
    """[N, ..., C] as [N, C, ...]."""
    return x.movedim(-1, 1)


def last(x):
    """[N, C, ...] as [N, ..., C]."""
    return x.movedim(1, -1).contiguous()


def pooling():
    """Windows over the axes between samples and channels, as many axes as "kernel" or "out" has numbers.

    `max_pool` (with "dilation") and `avg_pool` (with "count_include_pad" and "divisor", which may be null)
    have "kernel", "stride", "padding" and "ceil"; `adaptive_max_pool` and `adaptive_avg_pool` have "out".
    The formula's values differ inside every window, so no case depends on how ties are broken.
    """
    largest = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    mean = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    for shape, kernel, stride, padding, dilation, ceil in (
        ([2, 9, 3], [3], [2], [1], [1], False),
        ([1, 10, 2], [4], [3], [2], [1], True),
        ([1, 11, 1], [3], [2], [1], [3], True),
        ([1, 6, 5, 2], [3, 2], [2, 2], [1, 0], [1, 1], True),
        ([1, 7, 7, 3], [3, 3], [2, 2], [0, 0], [1, 1], True),
        ([2, 8, 6, 1], [3, 2], [1, 2], [1, 1], [2, 3], False),
        ([1, 1, 1, 4], [3, 3], [1, 1], [1, 1], [1, 1], False),
        ([1, 3, 3, 1], [3, 3], [3, 3], [1, 1], [1, 1], True),
        ([1, 4, 5, 3, 2], [2, 3, 2], [2, 1, 2], [1, 1, 0], [1, 1, 1], True),
        ([1, 5, 3, 4, 1], [2, 2, 2], [1, 1, 1], [0, 1, 0], [2, 1, 3], False),
    ):
        params = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil": ceil}

        def f(x, k=kernel, s=stride, p=padding, d=dilation, c=ceil):
            return last(largest[len(k)](first(x), k, s, p, d, c))

        yield case("max_pool", params, [shape], f)
    for shape, kernel, stride, padding, ceil, padded, divisor in (
        ([2, 9, 3], [3], [2], [1], False, True, None),
        ([1, 10, 2], [4], [3], [2], True, False, None),
        ([1, 10, 2], [4], [3], [2], True, True, None),
        ([1, 6, 5, 2], [3, 2], [2, 2], [1, 1], True, True, None),
        ([1, 6, 5, 2], [3, 2], [2, 2], [1, 1], True, False, None),
        ([1, 5, 5, 3], [3, 3], [1, 1], [1, 1], False, False, 2),
        ([1, 7, 7, 3], [2, 2], [2, 2], [0, 0], False, True, None),
        ([1, 1, 1, 4], [3, 3], [1, 1], [1, 1], False, True, None),
        ([1, 4, 5, 3, 2], [2, 3, 2], [2, 1, 2], [1, 1, 0], True, True, None),
        ([1, 4, 5, 3, 2], [2, 3, 2], [2, 1, 2], [1, 1, 0], True, False, 7),
    ):
        params = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
        params |= {"count_include_pad": padded, "divisor": divisor}

        def f(x, k=kernel, s=stride, p=padding, c=ceil, i=padded, d=divisor):
            more = {} if len(k) == 1 else {"divisor_override": d}
            return last(mean[len(k)](first(x), k, s, p, c, i, **more))

        yield case("avg_pool", params, [shape], f)
    adaptive = {
        "adaptive_max_pool": {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d},
        "adaptive_avg_pool": {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
    }
    for op, of_rank in adaptive.items():
        for shape, out in (
            ([2, 7, 3], [3]),
            ([1, 6, 5, 2], [4, 3]),
            ([1, 2, 3, 1], [3, 5]),
            ([2, 5, 4, 3], [1, 1]),
            ([1, 4, 3, 5, 2], [3, 2, 2]),
        ):
            yield case(op, {"out": out}, [shape], lambda x, o=out, g=of_rank: last(g[len(o)](first(x), o)))


def response():
    """Local response normalisation over the last axis: "size", "alpha" (divided by the size), "beta", "k"."""
    for shape, size, alpha, beta, k in (
        ([2, 3, 2, 9], 5, 1.5, 0.75, 2.0),
        ([1, 4, 6], 4, 2.0, 0.5, 1.0),
        ([2, 2, 3], 7, 1.0, 1.2, 0.5),
    ):
        params = {"size": size, "alpha": alpha, "beta": beta, "k": k}

        def f(x, p=params):
            return last(F.local_response_norm(first(x), **p))

        yield case("local_response_norm", params, [shape], f)


FAMILIES = [pooling, response]
