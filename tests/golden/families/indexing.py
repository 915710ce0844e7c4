"""Batched products, and picking and adding by index."""

import torch
import torch.nn.functional as F

from formulas import case


def indexing():
    """`matmul` broadcasts over leading axes and takes vectors; `softmax` and `log_softmax` are over "axis".

    "index" holds integers, row-major, of shape "of". `embedding` looks them up in a table, whose row "padding"
    (may be null) gets no gradient. `index_add` and `scatter_add` add input 1 to input 0 along "axis".
    `one_hot` has "classes" and no input.
    """
    for a, b in (
        ([3, 4, 5], [3, 5, 2]),
        ([2, 3, 2, 4], [3, 4, 3]),
        ([2, 1, 3, 4], [5, 4, 2]),
        ([4, 3, 5], [5, 2]),
        ([3, 5], [4, 5, 2]),
        ([5], [5]),
        ([5], [3, 5, 2]),
        ([2, 3, 5], [5]),
        ([5], [5, 4]),
        ([4, 5], [5]),
    ):
        shape = list(torch.matmul(torch.zeros(a), torch.zeros(b)).shape)
        yield case("matmul", {"shape": shape}, [a, b], torch.matmul)
    for shape, axis in (([3, 4, 5], 1), ([6, 3], 0), ([2, 3, 4], 2)):
        yield case("softmax", {"axis": axis}, [shape], lambda x, d=axis: F.softmax(x, d))
        yield case("log_softmax", {"axis": axis}, [shape], lambda x, d=axis: F.log_softmax(x, d))
    for table, of, index, padding in (
        ([5, 3], [2, 4], [0, 4, 4, 1, 3, 0, 2, 4], None),
        ([5, 3], [2, 4], [0, 4, 4, 1, 3, 0, 2, 4], 4),
        ([7, 2], [6], [6, 6, 0, 6, 1, 0], 0),
    ):
        params = {"of": of, "index": index, "padding": padding}
        at = torch.tensor(index).reshape(of)
        yield case("embedding", params, [table], lambda w, i=at, p=padding: F.embedding(i, w, p))
    for shape, axis, index in (([6, 3], 0, [5, 0, 0, 2, 5]), ([2, 4, 3], 1, [3, 3, 0])):
        added = [len(index) if i == axis else n for i, n in enumerate(shape)]
        params = {"axis": axis, "of": [len(index)], "index": index}
        yield case(
            "index_add",
            params,
            [shape, added],
            lambda x, s, d=axis, i=torch.tensor(index): torch.index_add(x, d, i, s),
        )
    for shape, axis, of, index in (
        ([4, 3], 1, [4, 2], [2, 0, 1, 1, 0, 0, 2, 2]),
        ([4, 3], 0, [2, 3], [3, 3, 0, 1, 2, 0]),
        ([2, 5, 3], 1, [2, 1, 2], [4, 0, 2, 2]),
    ):
        params = {"axis": axis, "of": of, "index": index}
        at = torch.tensor(index).reshape(of)
        yield case(
            "scatter_add", params, [shape, of], lambda x, s, d=axis, i=at: torch.scatter_add(x, d, i, s)
        )
    index = [1, 0, 2, 2, 1, 1]
    hot = F.one_hot(torch.tensor(index).reshape(2, 3), 4)
    params = {"of": [2, 3], "index": index, "classes": 4}
    outputs = [float(v) for v in hot.reshape(-1)]
    yield {"op": "one_hot", "params": params, "inputs": [], "outputs": [outputs], "gradients": []}


FAMILIES = [indexing]
