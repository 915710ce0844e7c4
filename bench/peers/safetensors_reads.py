"""Whether Python's `safetensors` reads a checkpoint of ours, tensor by tensor, with the bits that it was written with.

    python safetensors_reads.py CHECKPOINT

CHECKPOINT is a folder such as runs/digits/checkpoints/step-00000100. Needs `safetensors` and `numpy`; ends with an error when a file is not as
its header says, a value is not finite, or a tensor that is read by slices differs from the same one read at once.
"""

import glob
import os
import sys

import numpy
import safetensors
from safetensors.numpy import load_file, save

files = sorted(glob.glob(f"{sys.argv[1]}/*.safetensors"))
assert any(os.path.basename(f) == "model.safetensors" for f in files), f"{files}: no model"
count = elements = 0
for file in files:
    arrays = load_file(file)
    with safetensors.safe_open(file, framework="numpy") as opened:
        assert sorted(opened.keys()) == sorted(arrays), file
        for name, array in arrays.items():
            assert array.dtype.kind in "iu" or numpy.isfinite(array).all(), name
            again = opened.get_slice(name)
            assert list(again.get_shape()) == list(array.shape), name
            if array.ndim:
                half = array.shape[0] // 2
                assert numpy.concatenate([again[:half], again[half:]]).tobytes() == array.tobytes(), name
            count, elements = count + 1, elements + array.size
    # What Python writes of it has the same tensors.
    assert {n: a.tobytes() for n, a in safetensors.numpy.load(save(arrays)).items()} == {n: a.tobytes() for n, a in arrays.items()}, file
print(f"{count} tensors of {elements} elements in {len(files)} files, read by safetensors {safetensors.__version__}")
