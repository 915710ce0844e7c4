"""Whole networks of torchvision at a small size."""

import numpy
import torch
import torch.nn.functional as F
import torchvision

from formulas import F64, nchw, project, tensor


def noise(k, shape):
    """Element i of tensor k as a hash of both, in [-1, 1); numbers of single precision."""
    i = numpy.arange(int(numpy.prod(shape)), dtype=numpy.uint64)
    h = (i * 2654435769 + k * 2246822519) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 2246822519) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 3266489917) & 0xFFFFFFFF
    h ^= h >> 16
    return torch.tensor((h.astype(numpy.float64) / 2.0**31 - 1.0).reshape(shape), dtype=F64)


def first(k, name, shape):
    """How a parameter begins: He's rule for weights, a little noise for the rest; rounded to f32."""
    if len(shape) > 1:
        fan_in = numpy.prod(shape[1:])
        t = noise(k, shape) * float(numpy.sqrt(6.0 / fan_in))
    elif name.endswith("weight"):
        t = 1.0 + 0.25 * noise(k, shape)
    else:
        t = 0.1 * noise(k, shape)
    return t.float().double()


def alexnet():
    model = torchvision.models.alexnet(num_classes=10, dropout=0.0)
    for at, (i, o) in {1: (256 * 36, 32), 4: (32, 24), 6: (24, 10)}.items():
        model.classifier[at] = torch.nn.Linear(i, o)
    return model


def vgg11_bn():
    model = torchvision.models.vgg11_bn(num_classes=10, dropout=0.0, init_weights=False)
    for at, (i, o) in {0: (512 * 49, 32), 3: (32, 24), 6: (24, 10)}.items():
        model.classifier[at] = torch.nn.Linear(i, o)
    return model


def googlenet():
    return torchvision.models.googlenet(num_classes=10, dropout=0.0, dropout_aux=0.0, init_weights=False)


CASES = [
    ("alexnet", alexnet, [64, 64, 3], {"hidden": [32, 24], "dropout": 0.0}),
    ("vgg11_bn", vgg11_bn, [64, 64, 3], {"hidden": [32, 24], "dropout": 0.0}),
    ("googlenet", googlenet, [64, 64, 3], {"dropout": 0.0}),
    ("resnet18", lambda: torchvision.models.resnet18(num_classes=10), [64, 64, 3], {}),
    ("resnet50", lambda: torchvision.models.resnet50(num_classes=10), [64, 64, 4], {}),
    ("densenet121", lambda: torchvision.models.densenet121(num_classes=10), [64, 64, 3], {}),
]


def networks():
    """Networks of torchvision in training mode without dropout; "inputs" are the images' shape.

    Input 0 is made by the usual formula. Parameters, sorted by name and counted from 1, begin as `first`
    of families/networks.py says. The loss is the summed cross-entropy with "labels"; that of auxiliary
    logits counts 0.3 of it. Outputs: the logits, the auxiliary logits ("aux1" before "aux2"), the loss,
    and sum(weight(i) * s[i]), sqrt(sum(s^2)) of all running means and variances s after the batch, one
    after the other, sorted by name. `gradients` is one list: for each parameter's gradient g, sorted by
    name, sum(weight(i) * g[i]) and sqrt(sum(g^2)).
    """
    for name, make, sizes, options in CASES:
        torch.manual_seed(0)
        model = make().double().train()
        if sizes[2] != 3:
            model.conv1 = torch.nn.Conv2d(sizes[2], 64, 7, 2, 3, bias=False).double()
        parameters = sorted(model.named_parameters(), key=lambda p: p[0])
        with torch.no_grad():
            for k, (key, p) in enumerate(parameters, 1):
                p.copy_(first(k, key, p.shape))
        labels = torch.tensor([3, 8])
        out = model(nchw(tensor(0, [2, *sizes])))
        heads = [out]
        if name == "googlenet":
            heads = [out.logits, out.aux_logits1, out.aux_logits2]
        loss = sum(w * F.cross_entropy(y, labels, reduction="sum") for w, y in zip((1.0, 0.3, 0.3), heads))
        loss.backward()
        running = sorted((k, b) for k, b in model.named_buffers() if "running" in k)
        outputs = [short(y) for y in heads] + [short(loss)]
        if running:
            s = torch.cat([b.reshape(-1) for _, b in running])
            outputs.append(short(torch.stack([project(s), s.norm()])))
        gradients = [torch.stack([project(p.grad), p.grad.norm()]) for _, p in parameters]
        yield {
            "op": name,
            "params": {"options": options, "labels": labels.tolist()},
            "inputs": [[2, *sizes]],
            "outputs": outputs,
            "gradients": [short(torch.cat(gradients))],
        }


def short(t):
    """A tensor as a flat list of 8 significant digits: more than single precision can tell."""
    return [float(f"{x:.7e}") for x in t.detach().reshape(-1).tolist()]


FAMILIES = [networks]
