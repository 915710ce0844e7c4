"""Writes tests/golden/pictures/: small image files of every kind, and pictures.json with what Pillow and
torchvision make of them (crates/data/src/picture/tests.rs compares).

    python tests/golden/pictures.py         (Pillow, torchvision)
"""

import json
import pathlib
import struct
import zlib

import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

OUT = pathlib.Path(__file__).parent / "pictures"


def pattern(height, width, channels):
    """Smooth waves, as photographs are, with an edge: element (y, x, c)."""
    y, x, c = torch.meshgrid(torch.arange(height), torch.arange(width), torch.arange(channels), indexing="ij")
    wave = (x * (c + 2) * 7 + y * (3 - c % 3) * 5) % 256
    return torch.where(x + y > width, 255 - wave, wave).to(torch.uint8)


def image(height, width, channels, mode):
    data = pattern(height, width, channels)
    return Image.fromarray(data.squeeze(-1).numpy(), mode)


def png(path, width, height, depth, colour, rows, chunks=()):
    """A PNG file of given raw rows, for what Pillow does not write."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write():
    h, w = 13, 17
    image(h, w, 3, "RGB").save(OUT / "rgb.png")
    image(h, w, 1, "L").save(OUT / "grey.png")
    image(h, w, 2, "LA").save(OUT / "grey-alpha.png")
    image(h, w, 4, "RGBA").save(OUT / "rgba.png")
    image(h, w, 3, "RGB").quantize(16).save(OUT / "palette.png")
    image(h, w, 3, "RGB").quantize(16).save(OUT / "palette-clear.png", transparency=3)
    image(h, w, 1, "L").point(lambda v: 255 * (v > 127)).convert("1").save(OUT / "bits.png")
    image(1, 1, 3, "RGB").save(OUT / "one.png")
    image(1, 40, 3, "RGB").save(OUT / "line.png")
    high = pattern(h, w, 3).tolist()
    # Sixteen bits: the pattern above, something else below.
    rows = [b"".join(bytes([v, 37 * (x + c) % 256]) for x, p in enumerate(row) for c, v in enumerate(p)) for row in high]
    png(OUT / "rgb16.png", w, h, 16, 2, rows)
    rows = [b"".join(bytes([p[0], 91]) for p in row) for row in high]
    png(OUT / "grey16.png", w, h, 16, 0, rows)
    smooth = Image.fromarray(pattern(4, 5, 3).numpy()).resize((40, 32), Image.BICUBIC)
    smooth.save(OUT / "rgb.jpg", quality=92)
    smooth.save(OUT / "progressive.jpg", quality=92, progressive=True)
    smooth.convert("L").save(OUT / "grey.jpg", quality=92)
    smooth.convert("CMYK").save(OUT / "cmyk.jpg", quality=92)
    # What nearly all files are, in each sampling of colours, of sizes that are no whole blocks.
    sharp = image(67, 45, 3, "RGB")
    for name, options in {
        "ycc444": {"subsampling": 0},
        "ycc422": {"subsampling": 1, "restart_marker_blocks": 3},
        "ycc420": {"subsampling": 2},
        "restarts": {"subsampling": 2, "restart_marker_rows": 1},
        "own-codes": {"subsampling": 2, "optimize": True},
        "red-green-blue": {"subsampling": 0, "keep_rgb": True},
    }.items():
        sharp.save(OUT / f"{name}.jpg", quality=90, **options)
    sharp.crop((0, 0, 5, 3)).save(OUT / "tiny.jpg", quality=90)
    sharp.convert("L").save(OUT / "grey-odd.jpg", quality=100)


def decoded():
    files = {}
    for path in sorted(OUT.iterdir()):
        if path.suffix == ".json":
            continue
        if path.name == "grey16.png":
            # Pillow cuts these off at 255 instead of scaling.
            pixels = pattern(13, 17, 3)[:, :, :1].expand(-1, -1, 3)
        else:
            pixels = torch.frombuffer(bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8)
            size = Image.open(path).size
            pixels = pixels.reshape(size[1], size[0], 3)
        files[path.name] = {"size": list(pixels.shape[:2]), "rgb": bytes(pixels.reshape(-1).tolist()).hex()}
    return files


def resized():
    """torchvision's Resize (antialiased, bilinear, by Pillow) and CenterCrop."""
    cases = []
    for height, width, shorter, crop in [
        (61, 47, 40, 32),
        (47, 61, 40, 33),
        (64, 96, 25, 24),
        (9, 5, 31, 24),
        (1, 1, 20, 16),
        (2, 61, 20, 16),
        (40, 55, 40, 32),
        (301, 203, 36, 32),
    ]:
        picture = Image.fromarray(pattern(height, width, 3).numpy())
        bilinear = v2.InterpolationMode.BILINEAR
        out = v2.Compose([v2.Resize(shorter, bilinear, antialias=True), v2.CenterCrop(crop)])(picture)
        cases.append({"size": [height, width], "shorter": shorter, "crop": crop, "rgb": out.tobytes().hex()})
    return cases


def framed():
    """torchvision's Resize to a shorter side or to a size, and CenterCrop to height and width."""
    cases = []
    for height, width, size, crop in [
        (61, 47, 40, [33, 24]),
        (47, 61, [21, 34], [20, 31]),
        (13, 30, None, [10, 17]),
        (13, 30, None, [20, 17]),
        (13, 30, None, [21, 41]),
        (19, 20, 16, [17, 16]),
        (23, 9, 31, [40, 41]),
    ]:
        steps = [] if size is None else [v2.Resize(size, v2.InterpolationMode.BILINEAR, antialias=True)]
        picture = Image.fromarray(pattern(height, width, 3).numpy())
        out = v2.Compose([*steps, v2.CenterCrop(crop)])(picture)
        cases.append({"size": [height, width], "to": size, "crop": crop, "rgb": out.tobytes().hex()})
    return cases


def smaller():
    """A JPEG file decoded at a half, a quarter and an eighth of its size, by libjpeg."""
    cases = []
    for name in ["ycc444", "ycc422", "ycc420", "grey-odd"]:
        for times in [2, 4, 8]:
            picture = Image.open(OUT / f"{name}.jpg")
            width, height = picture.size
            picture.draft(None, (width // times, height // times))
            rgb = bytes(picture.convert("RGB").tobytes())
            cases.append({"file": name, "times": times, "size": picture.size[::-1], "rgb": rgb.hex()})
    return cases


OUT.mkdir(exist_ok=True)
write()
about = "tests/golden/pictures.py, torchvision " + torchvision.__version__
text = json.dumps({"about": about, "files": decoded(), "resized": resized(), "framed": framed(), "smaller": smaller()}, indent=0)
(OUT / "pictures.json").write_text(text + "\n")
