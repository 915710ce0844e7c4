"""Norms of each sample by itself, channels last."""

import torch
import torch.nn.functional as F

from formulas import case


def norms():
    """`layer_norm` and `rms_norm` over the last "axes" axes, `group_norm` of "groups" (with `instance_norm` as many as
    channels). Inputs x, then gamma and beta where "scaled" and "shifted" say so. `group_norm` has two further outputs,
    each sample's means and biased variances [N, groups].
    """
    every = ((True, True), (False, False), (True, False), (False, True))
    shapes = (([3, 5], 1), ([2, 3, 70], 1), ([2, 3, 4, 5], 3), ([2, 3, 4, 5], 2), ([4, 1], 1), ([6], 1))
    for i, (shape, axes) in enumerate(shapes):
        scaled, shifted = every[i % 4]
        eps, over = 1e-5, shape[len(shape) - axes :]

        def layer(x, *more, scaled=scaled, shifted=shifted, over=over, eps=eps):
            gamma = more[0] if scaled else None
            beta = more[-1] if shifted else None
            return F.layer_norm(x, over, gamma, beta, eps)

        params = {"axes": axes, "eps": eps, "scaled": scaled, "shifted": shifted}
        yield case("layer_norm", params, [shape] + [over] * (scaled + shifted), layer)
        if i < 4:

            def rms(x, gamma=None, over=over):
                return F.rms_norm(x, over, gamma, 1e-6)

            params = {"axes": axes, "eps": 1e-6, "scaled": scaled}
            yield case("rms_norm", params, [shape] + [over] * scaled, rms)
    shapes = (
        ([2, 3, 4, 6], 3),
        ([3, 5, 5, 7], 7),
        ([2, 9, 4], 1),
        ([3, 8], 2),
        ([1, 2, 3, 2, 36], 4),
        ([2, 1, 1, 4], 4),
    )
    for i, (shape, groups) in enumerate(shapes):
        scaled, shifted = every[i % 4]
        eps, c = 1e-3, shape[-1]

        def group(x, *more, scaled=scaled, shifted=shifted, groups=groups, eps=eps):
            gamma = more[0] if scaled else None
            beta = more[-1] if shifted else None
            first = x.movedim(-1, 1)
            if groups == x.shape[-1] and first[0, 0].numel() > 1:
                y = F.instance_norm(first, None, None, gamma, beta, eps=eps)
                assert torch.allclose(y, F.group_norm(first, groups, gamma, beta, eps))
            y = F.group_norm(first, groups, gamma, beta, eps)
            flat = first.reshape(x.shape[0], groups, -1)
            return y.movedim(1, -1).contiguous(), flat.mean(2), flat.var(2, unbiased=False)

        params = {"groups": groups, "eps": eps, "scaled": scaled, "shifted": shifted}
        yield case("group_norm", params, [shape] + [[c]] * (scaled + shifted), group)


FAMILIES = [norms]
