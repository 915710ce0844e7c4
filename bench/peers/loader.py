#!/usr/bin/env python3
"""Measures `phalanx bench loader` beside torchvision: the same JPEG files, one machine, one run, taking turns.

usage: loader.py [--rounds N] [--seconds S] [--only GROUP,...] [--phalanx BINARY] [--json FILE]

Groups: small (500x375 JPEGs of about 57 KB), large (1500x1000 of about 420 KB), raw (256x256 bytes, against a plain copy).
The files are made here from seeded noise of all scales, as photographs have it, packed as a shard set by `phalanx data pack`, and
given to torchvision from memory. Both sides decode, cut a random piece out, scale it to 224 with antialiasing, mirror it
half the time and deliver bytes, on one thread; ours also reads, checks and batches. The peers are torchvision with PIL and
torchvision.io's decoder with transforms on tensors. Run it with a Python that has torch, torchvision and Pillow.
A figure is the median over the rounds; a ratio is formed within each round.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROUPS = {"small": (375, 500, 58_000, 200), "large": (1000, 1500, 420_000, 40)}


def picture(rng, height, width):
    """Noise of all scales, the coarse ones strongest."""
    out = np.full((height, width, 3), 128, np.float32)
    for scale, strength in ((64, 60), (32, 40), (16, 28), (8, 18), (4, 12), (2, 8), (1, 5)):
        noise = rng.standard_normal((height // scale + 3, width // scale + 3, 3)).astype(np.float32)
        noise = noise * 0.5 + noise.mean(axis=2, keepdims=True)
        layers = [Image.fromarray(noise[:, :, c]).resize((width, height), Image.BICUBIC) for c in range(3)]
        out += strength * np.stack([np.asarray(layer) for layer in layers], 2)
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def encoded(image, target):
    """The best quality of at most `target` bytes."""
    low, high, best = 20, 99, b""
    while high - low > 1:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() > target:
            high = quality
        else:
            low, best = quality, buffer.getvalue()
    return best


def phalanx(binary, *args):
    done = subprocess.run([str(binary), *map(str, args)], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        sys.exit(f"phalanx {' '.join(map(str, args))}: exit code {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stdout


def bench(binary, data, threads, seconds, transform="train"):
    args = ["bench", "loader", data, "--threads", threads, "--seconds", seconds, "--transform", transform, "--json"]
    return json.loads(phalanx(binary, *args))


def peers(files):
    """The two ways of torchvision, from a file's bytes to bytes of pixels."""
    of_pil = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    of_tensor = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    rgb = torchvision.io.ImageReadMode.RGB
    return {
        "pil": lambda i: of_pil(Image.open(io.BytesIO(files[i])).convert("RGB")),
        "io": lambda i: of_tensor(torchvision.io.decode_jpeg(tensors[i], mode=rgb)),
    }


def rate(work, count, seconds):
    for i in range(min(count, 10)):
        work(i)
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work(done % count)
        done += 1
    return done / (time.perf_counter() - begun)


def median(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def jpegs(name, options, folder):
    height, width, target, count = GROUPS[name]
    rng = np.random.default_rng(len(name))
    files = [encoded(picture(rng, height, width), target) for _ in range(count)]
    source = folder / name / "files" / "train"
    for i, data in enumerate(files):
        place = source / f"class-{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:05}.jpg").write_bytes(data)
    packed = folder / name / "set"
    phalanx(options.phalanx, "data", "pack", source, packed)
    ways, rounds = peers(files), []
    for _ in range(options.rounds):
        found = {"ours": bench(options.phalanx, packed, 1, options.seconds)["samples_per_second"]}
        for way, work in ways.items():
            found[way] = rate(work, count, options.seconds)
        found["two"] = bench(options.phalanx, packed, 2, options.seconds)["samples_per_second"]
        rounds.append(found)
    of = lambda key: [r[key] for r in rounds]
    size = statistics.mean(map(len, files))
    print(f"{name}: {width}x{height} JPEGs of {size / 1000:.0f} KB, images/s on one thread")
    print(f"  phalanx {statistics.median(of('ours')):.0f}, PIL {statistics.median(of('pil')):.0f}, "
          f"torchvision.io {statistics.median(of('io')):.0f}")
    print(f"  against PIL {median([r['ours'] / r['pil'] for r in rounds])}, "
          f"against torchvision.io {median([r['ours'] / r['io'] for r in rounds])}")
    print(f"  two threads against one {median([r['two'] / r['ours'] for r in rounds])}", flush=True)
    return rounds


def raw(options, folder):
    rng = np.random.default_rng(3)
    source = folder / "raw" / "files" / "train"
    for i in range(400):
        place = source / f"class-{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i:05}.png", compress_level=0)
    packed = folder / "raw" / "set"
    phalanx(options.phalanx, "data", "pack", source, packed, "--codec", "raw", "--resize", 256)
    rounds = [bench(options.phalanx, packed, 1, options.seconds, "none") for _ in range(options.rounds)]
    shares = [r["bytes_per_second"] / r["copy_bytes_per_second"] for r in rounds]
    speed = statistics.median(r["bytes_per_second"] for r in rounds) / 1e9
    print(f"raw: 256x256 bytes, {speed:.2f} GB/s on one thread, {median(shares)} of a plain copy", flush=True)
    return rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="small,large,raw")
    parser.add_argument("--phalanx", type=pathlib.Path, default=ROOT / "target/release/phalanx")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in options.only.split(","):
            folder = pathlib.Path(folder)
            found[group] = raw(options, folder) if group == "raw" else jpegs(group, options, folder)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


main()
