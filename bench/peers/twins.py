"""The networks of `phalanx model list` in PyTorch: torchvision's, and twins of those that it does not have.

Names of parameters are ours, which are torchvision's where it has the network.
"""

import torch
import torchvision
from torch import nn

# What the loss of an auxiliary head of GoogLeNet counts.
AUXILIARY = 0.3


class Network:
    """A network with its `[model]` table, both without dropout, and its inputs."""

    def __init__(self, name, make, model=None, sizes=(3, 224, 224), classes=1000):
        self.name, self.make, self.sizes, self.classes = name, make, sizes, classes
        self.model = {"name": name, **(model or {})}


class AlexNet2012(nn.Module):
    """Krizhevsky, Sutskever and Hinton, 2012: two groups, response norms over 5 channels."""

    def __init__(self):
        super().__init__()
        # PyTorch divides alpha by the channels of a window, the paper does not.
        self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        self.pool = nn.MaxPool2d(3, 2)
        self.conv1 = nn.Conv2d(3, 96, 11, 4, 2)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.fc6, self.fc7, self.fc8 = nn.Linear(256 * 36, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)

    def forward(self, x):
        x = self.pool(self.norm(self.conv1(x).relu()))
        x = self.pool(self.norm(self.conv2(x).relu()))
        x = self.conv4(self.conv3(x).relu()).relu()
        x = self.avgpool(self.pool(self.conv5(x).relu())).flatten(1)
        return self.fc8(self.fc7(self.fc6(x).relu()).relu())


def vgg(convs, batch_norm=False, pointwise=False, lrn=False):
    """A column of table 1 of Simonyan and Zisserman, 2014."""
    layers, channels = [], 3
    for block, count in enumerate(convs):
        out = min(64 << block, 512)
        for i in range(count):
            kernel = 1 if pointwise and i == 2 else 3
            layers.append(nn.Conv2d(channels, out, kernel, padding=kernel // 2))
            layers += [nn.BatchNorm2d(out)] if batch_norm else []
            layers.append(nn.ReLU())
            layers += [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if lrn and block == 0 else []
            channels = out
        layers.append(nn.MaxPool2d(2))
    return torchvision.models.VGG(nn.Sequential(*layers), dropout=0.0)


class Basic(nn.Module):
    """The block of He et al., 2015, with their shortcut without parameters (option A)."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.zeros = stride, out - channels

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.zeros))
        return (y + short).relu()


class PreActivated(nn.Module):
    """The block of Zagoruyko and Komodakis, 2016: norms and ReLUs before the convolutions."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.equal = channels == out and stride == 1
        if not self.equal:
            self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x):
        first = self.bn1(x).relu()
        y = self.conv2(self.bn2(self.conv1(first)).relu())
        return y + (x if self.equal else self.shortcut(first))


class Small(nn.Module):
    """A residual network for images of 32x32, of three stages."""

    def __init__(self, block, blocks, width, last):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        first = {"bn": nn.BatchNorm2d(64 * width)} if last else {"bn1": nn.BatchNorm2d(16)}
        (self.norm, norm), self.last = *first.items(), last
        self.add_module(self.norm, norm)
        channels = 16
        for stage in range(3):
            out, made = (16 << stage) * width, []
            for i in range(blocks):
                made.append(block(channels, out, 2 if stage and not i else 1))
                channels = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        norm = getattr(self, self.norm)
        x = self.conv1(x)
        x = x if self.last else norm(x).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        x = norm(x).relu() if self.last else x
        return self.fc(x.mean((2, 3)))


def torchvisions(name, **options):
    """torchvision's network with its random weights."""
    return Network(name, lambda: getattr(torchvision.models, name)(weights=None, **options), WITHOUT_DROPOUT if options else None)


WITHOUT_DROPOUT = {"dropout": 0.0}
CIFAR = {"sizes": (3, 32, 32), "classes": 10}
ALL = [
    torchvisions("alexnet", dropout=0.0),
    Network("alexnet-2012", AlexNet2012, WITHOUT_DROPOUT),
    *[torchvisions(f"vgg{depth}{bn}", dropout=0.0) for depth in (11, 13, 16, 19) for bn in ("", "_bn")],
    Network("vgg-a-lrn", lambda: vgg([1, 1, 2, 2, 2], lrn=True), WITHOUT_DROPOUT),
    Network("vgg-c", lambda: vgg([2, 2, 3, 3, 3], pointwise=True), WITHOUT_DROPOUT),
    torchvisions("googlenet", dropout=0.0, dropout_aux=0.0, init_weights=True),
    *[torchvisions(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")],
    *[torchvisions(name) for name in ("wide_resnet50_2", "wide_resnet101_2")],
    *[torchvisions(f"densenet{depth}") for depth in (121, 161, 169, 201)],
    Network("resnet20", lambda: Small(Basic, 3, 1, False), **CIFAR),
    Network("wrn-16-4", lambda: Small(PreActivated, 2, 4, True), **CIFAR),
]
NETWORKS = {n.name: n for n in ALL}
