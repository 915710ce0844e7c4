"""The optimizers besides SGD and Adam, and gradient clipping."""

import torch

from formulas import digits, tensor

STEPS = 5


def settings():
    """(name, our keys, PyTorch's class and arguments)."""
    for wd in (0.0, 0.01):
        for amsgrad in (False, True):
            ours = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": wd, "amsgrad": amsgrad}
            theirs = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": wd, "amsgrad": amsgrad}
            yield "adamw", ours, torch.optim.AdamW, theirs
            if amsgrad:
                yield "adam", ours, torch.optim.Adam, theirs
        for momentum in (0.0, 0.9):
            for centered in (False, True):
                ours = {"lr": 0.02, "alpha": 0.9, "eps": 1e-6, "momentum": momentum, "centered": centered}
                ours["weight_decay"] = wd
                yield "rmsprop", ours, torch.optim.RMSprop, ours
        for lr_decay, initial in ((0.0, 0.0), (0.1, 0.5)):
            ours = {"lr": 0.1, "lr_decay": lr_decay, "initial_accumulator_value": initial, "eps": 1e-10}
            ours["weight_decay"] = wd
            yield "adagrad", ours, torch.optim.Adagrad, ours


def run(make, clip=None):
    """p after each of five steps; `clip` changes the gradients before each."""
    p = tensor(0, [7]).requires_grad_()
    optim = make([p])
    outputs = []
    for t in range(1, STEPS + 1):
        p.grad = 0.5 * p.detach() + tensor(t, [7])
        if clip:
            clip([p])
        optim.step()
        outputs.append(digits(p))
    return outputs


def optimizers():
    """As the family `optimizer`: five steps from p = value(0, .), with the gradient 0.5 * p + value(t, .) in step t = 1..5.

    AdamW's decay is decoupled, the others' is added to the gradient.
    """
    for op, ours, kind, theirs in settings():
        outputs = run(lambda ps, kind=kind, theirs=theirs: kind(ps, **theirs))
        yield {"op": op, "params": ours, "inputs": [[7]], "outputs": outputs, "gradients": [None]}


def clipping():
    """Five steps of SGD as in the family `optimizer`; before each, the gradient is clipped to the norm "clip_norm"

    (torch.nn.utils.clip_grad_norm_) or to values of at most "clip_value" (clip_grad_value_). The gradient's norm is above
    1.7 in some steps only.
    """
    for key, bound, clip in (
        ("clip_norm", 1.7, torch.nn.utils.clip_grad_norm_),
        ("clip_norm", 0.2, torch.nn.utils.clip_grad_norm_),
        ("clip_value", 0.3, torch.nn.utils.clip_grad_value_),
    ):
        sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
        outputs = run(lambda ps: torch.optim.SGD(ps, **sgd), lambda ps, clip=clip, bound=bound: clip(ps, bound))
        yield {"op": "sgd", "params": {**sgd, key: bound}, "inputs": [[7]], "outputs": outputs, "gradients": [None]}


FAMILIES = [optimizers, clipping]
