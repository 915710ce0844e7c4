"""Whether Python's `webdataset` reads what `phalanx data export --format webdataset` writes.

    python webdataset_reads.py FOLDER SAMPLES CLASSES

FOLDER holds the tars of one split. Needs `webdataset`, `numpy` and `Pillow`; ends with an error when a
sample is missing, a label is outside the classes, or an image or array cannot be decoded.
"""

import glob
import sys

import webdataset

folder, samples, classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = open(f"{folder}/classes.txt", encoding="utf-8").read().splitlines()
assert len(names) == classes, f"{len(names)} names of classes"
keys = set()
for tar in sorted(glob.glob(f"{folder}/*.tar")):
    for sample in webdataset.WebDataset(tar, shardshuffle=False).decode("rgb8"):
        keys.add(sample["__key__"])
        assert 0 <= sample["cls"] < classes, sample["cls"]
        image = sample["jpg"] if "jpg" in sample else sample["png"]
        assert image.ndim == 3 and image.shape[2] == 3, image.shape
        for ending, value in sample.items():
            assert not ending.endswith("npy") or value.size > 0, ending
assert len(keys) == samples, f"{len(keys)} samples"
print(f"{samples} samples of {classes} classes, read by webdataset {webdataset.__version__}")
