"""Makes digits.bin from scikit-learn's copy of the UCI digits, and prints its checksum.

Run: python make_digits.py. Needs scikit-learn and NumPy.

The file is one zlib stream: 1,797 labels, one byte each, then 64 planes of 1,797 pixels (0..16, one byte
each), a plane for every place in the 8x8 image, row by row. Planes compress better than images: a place is
more like itself in the next image than like its neighbour.
"""

import hashlib
import pathlib
import zlib

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
labels = digits.target.astype(np.uint8)
images = digits.images.astype(np.uint8).reshape(1797, 64)
assert (images == digits.images.reshape(1797, 64)).all() and images.max() == 16

packed = zlib.compress(labels.tobytes() + images.T.tobytes(), 9)
pathlib.Path(__file__).with_name("digits.bin").write_bytes(packed)
# What the loaded set is checked against: labels, then images in their usual layout.
print(len(packed), "bytes; SHA-256", hashlib.sha256(labels.tobytes() + images.tobytes()).hexdigest())
