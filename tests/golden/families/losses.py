"""Losses, as the weighted sums that Phalanx gives."""

import torch
import torch.nn.functional as F

from formulas import case

OTHERS = {
    "mse": lambda p: F.mse_loss,
    "l1": lambda p: F.l1_loss,
    "huber": lambda p: lambda x, y, reduction: F.huber_loss(x, y, reduction=reduction, delta=p["delta"]),
    "smooth_l1": lambda p: lambda x, y, reduction: F.smooth_l1_loss(x, y, reduction=reduction, beta=p["beta"]),
    "bce": lambda p: F.binary_cross_entropy,
    "kl_div": lambda p: lambda x, y, reduction: F.kl_div(x, y, reduction=reduction, log_target=p["log_target"]),
    "logistic": lambda p: F.soft_margin_loss,
    "poisson": lambda p: lambda x, y, reduction: F.poisson_nll_loss(
        x, y, log_input=p["log_input"], full=p["full"], eps=p["eps"], reduction=reduction
    ),
    "hinge_embedding": lambda p: lambda x, y, reduction: F.hinge_embedding_loss(
        x, y, margin=p["margin"], reduction=reduction
    ),
    # PyTorch has no function of these three.
    "hinge": lambda p: lambda x, y, reduction: F.relu(p["margin"] - x * y),
    "squared_hinge": lambda p: lambda x, y, reduction: F.relu(p["margin"] - x * y) ** 2,
    "exponential": lambda p: lambda x, y, reduction: torch.exp(-x * y),
}


def weighted(each, w):
    """The sum of `each`, entries of the first axis weighted when there are weights."""
    return (each if w is None else each * w.reshape(-1, *[1] * (each.ndim - 1))).sum()


def points():
    """Losses of numbers one by one: inputs x, y and perhaps positive weights [n]. `bce_with_logits` has "pos_weight",
    whether its last input is that, one number for each of the last axis.
    """
    bounded, signed, counts = {"unit": [0, 1]}, {"signs": [1]}, {"positive": [0, 1]}
    for op, params in (
        ("mse", {}),
        ("l1", {}),
        ("huber", {"delta": 1.0}),
        ("huber", {"delta": 0.3}),
        ("smooth_l1", {"beta": 0.4}),
        ("smooth_l1", {"beta": 0.0}),
        ("bce", bounded),
        ("hinge", {"margin": 1.0} | signed),
        ("hinge", {"margin": 0.2}),
        ("squared_hinge", {"margin": 1.0} | signed),
        ("hinge_embedding", {"margin": 0.5} | signed),
        ("exponential", signed),
        ("logistic", {}),
        ("kl_div", {"log_target": False, "unit": [1]}),
        ("kl_div", {"log_target": True}),
        ("poisson", {"log_input": True, "full": False, "eps": 1e-8, "positive": [1]}),
        ("poisson", {"log_input": True, "full": True, "eps": 1e-8, "positive": [1]}),
        ("poisson", {"log_input": False, "full": False, "eps": 1e-3} | counts),
    ):
        f = OTHERS[op](params)
        frozen = (1,) if "signs" in params or op in ("logistic", "poisson") else ()
        for n, shapes in ((2, [[3, 7], [3, 7]]), (3, [[2, 3, 5], [2, 3, 5], [2]])):
            more = dict(params)
            if n == 3:
                more["positive"] = more.get("positive", []) + [2]

            def run(x, y, w=None, f=f):
                return weighted(f(x, y, reduction="none"), w)

            yield case(op, more, shapes, run, frozen=frozen + (2,))
    for shapes, weight, pos in (
        ([[3, 7], [3, 7]], False, False),
        ([[4, 19], [4, 19], [4], [19]], True, True),
        ([[2, 3, 5], [2, 3, 5], [5]], False, True),
        ([[6], [6], [6]], True, False),
        ([[6], [6], [6]], False, True),
    ):
        params = {"unit": [1], "positive": [2, 3], "weighted": weight, "pos_weight": pos}

        def run(x, y, *more, weight=weight, pos=pos):
            w = more[0] if weight else None
            p = more[-1] if pos else None
            return weighted(F.binary_cross_entropy_with_logits(x, y, pos_weight=p, reduction="none"), w)

        yield case("bce_with_logits", params, shapes, run, frozen=(2, 3))


def classes():
    """Losses of classes: logits, log-probabilities or scores, classes last. Inputs x, then as "inputs" says: "target"
    (probabilities of x's shape), "weights" of samples, "class_weights"; labels where there is no target. The last
    output is what PyTorch's mean divides by.
    """
    last = lambda x: x.movedim(-1, 1)
    for shape, inputs, smoothing, ignore in (
        ([4, 6], [], 0.1, None),
        ([5, 3], ["weights", "class_weights"], 0.0, None),
        ([7, 10], ["weights", "class_weights"], 0.2, 3),
        ([3, 2, 4, 5], ["weights"], 0.0, -100),
        ([2, 3, 19], ["class_weights"], 0.3, -1),
        ([4, 6], ["target"], 0.0, None),
        ([4, 6], ["target", "weights", "class_weights"], 0.1, None),
        ([2, 3, 2, 17], ["target", "class_weights"], 0.0, None),
        ([3, 4], ["weights"], 1.0, 2),
    ):
        k, rows = shape[-1], shape[:-1]
        n = torch.Size(rows).numel()
        of = {"target": shape, "weights": shape[:1], "class_weights": [k]}
        labels = [(3 * i + 1) % k for i in range(n)]
        if ignore is not None and ignore < 0:
            labels[1 :: 3] = [ignore] * len(labels[1 :: 3])
        params = {"inputs": inputs, "label_smoothing": smoothing, "ignore_index": ignore}
        params |= {"unit": [1] if "target" in inputs else [], "labels": [] if "target" in inputs else labels}
        params["positive"] = [i + 1 for i, name in enumerate(inputs) if name != "target"]

        def f(x, *more, names=inputs, labels=labels, rows=rows, smoothing=smoothing, ignore=ignore):
            given = dict(zip(names, more))
            target = torch.tensor(labels).reshape(rows)
            hard = "target" not in given
            target = target if hard else last(given["target"])
            skip = -100 if ignore is None else ignore
            w, c = given.get("weights"), given.get("class_weights")
            each = F.cross_entropy(
                last(x), target, weight=c, ignore_index=skip, reduction="none", label_smoothing=smoothing
            )
            total = weighted(each, w)
            count = torch.ones(rows, dtype=x.dtype)
            if hard:
                kept = target != skip
                count = count * kept * (c[target * kept] if c is not None else 1.0)
                if w is None:
                    mean = F.cross_entropy(
                        last(x), target, weight=c, ignore_index=skip, label_smoothing=smoothing
                    )
                    assert torch.allclose(mean, total / count.sum())
            return total, weighted(count, w)

        yield case("cross_entropy", params, [shape] + [of[name] for name in inputs], f, (1, 2, 3))
    for op, shape, inputs, more in (
        ("nll", [4, 6], ["weights", "class_weights"], {"ignore_index": None}),
        ("nll", [3, 2, 5], ["class_weights"], {"ignore_index": -1}),
        ("multi_margin", [4, 6], ["weights", "class_weights"], {"p": 1, "margin": 1.0, "ignore_index": None}),
        ("multi_margin", [5, 3], [], {"p": 2, "margin": 0.5, "ignore_index": None}),
    ):
        k, rows = shape[-1], shape[:-1]
        of = {"weights": shape[:1], "class_weights": [k]}
        labels = [(3 * i + 1) % k for i in range(torch.Size(rows).numel())]
        if more["ignore_index"] is not None:
            labels[1::3] = [more["ignore_index"]] * len(labels[1::3])
        positive = [i + 1 for i in range(len(inputs))]
        params = {"inputs": inputs, "labels": labels, "positive": positive} | more

        def f(x, *given, op=op, names=inputs, labels=labels, rows=rows, more=more):
            given = dict(zip(names, given))
            target, c = torch.tensor(labels).reshape(rows), given.get("class_weights")
            if op == "nll":
                skip = -100 if more["ignore_index"] is None else more["ignore_index"]
                each = F.nll_loss(last(x), target, weight=c, ignore_index=skip, reduction="none")
            else:
                each = F.multi_margin_loss(x, target, more["p"], more["margin"], c, reduction="none")
            return weighted(each, given.get("weights"))

        yield case(op, params, [shape] + [of[name] for name in inputs], f, (1, 2))


def margins():
    """Losses of several tensors; positive weights [n] are the last input where "weighted" says so."""
    F1 = F.cosine_embedding_loss
    for n, d, margin in ((4, 5, 0.0), (3, 17, 0.3)):
        for weight in (False, True):
            shapes = [[n, d], [n, d], [n]] + [[n]] * weight

            def f(a, b, y, w=None, m=margin):
                return weighted(F1(a, b, y, margin=m, reduction="none"), w)

            params = {"margin": margin, "weighted": weight, "signs": [2], "positive": [3]}
            yield case("cosine_embedding", params, shapes, f, (2, 3))
    for shape, margin, weight in (([6], 0.0, False), ([3, 4], 0.3, True)):
        shapes = [shape] * 3 + [shape[:1]] * weight

        def f(a, b, y, w=None, m=margin):
            return weighted(F.margin_ranking_loss(a, b, y, margin=m, reduction="none"), w)

        params = {"margin": margin, "weighted": weight, "signs": [2], "positive": [3]}
        yield case("margin_ranking", params, shapes, f, (2, 3))
    for shape, how, weight in (
        ([4, 5], {"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False}, False),
        ([4, 5], {"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": True}, True),
        ([3, 17], {"margin": 2.0, "p": 1.0, "eps": 1e-6, "swap": True}, False),
        ([2, 3, 4], {"margin": 0.5, "p": 3.0, "eps": 1e-3, "swap": False}, True),
    ):
        shapes = [shape] * 3 + [shape[:1]] * weight

        def f(a, p, n, w=None, how=how):
            return weighted(F.triplet_margin_loss(a, p, n, reduction="none", **how), w)

        yield case("triplet_margin", how | {"weighted": weight, "positive": [3]}, shapes, f, (3,))
    for shape, full, eps, weight in (([3, 5], False, 1e-6, True), ([2, 3, 4], True, 0.7, False)):
        shapes = [shape] * 3 + [shape[:1]] * weight

        def f(x, y, v, w=None, full=full, eps=eps):
            return weighted(F.gaussian_nll_loss(x, y, v, full=full, eps=eps, reduction="none"), w)

        params = {"full": full, "eps": eps, "weighted": weight, "positive": [2, 3]}
        yield case("gaussian_nll", params, shapes, f, (3,))


def losses():
    """Sums of losses: see the families' source for what each is given. Weights are of samples, classes are last."""
    yield from points()
    yield from classes()
    yield from margins()


FAMILIES = [losses]
