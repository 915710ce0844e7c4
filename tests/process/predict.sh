#!/usr/bin/env bash
# The classes of image files: checkpoints of ours and PyTorch's files, images of every kind, and what is none.
# timeout: 60
. "$(dirname "$0")/lib.sh"

golden=tests/golden/pictures
run=$PHALANX_TMP/run
train "$run" --quiet --ranks 2
check "a run of the digits" [ "$rc" -eq 0 ]

# The evaluation set as PNG files, in the run's order: classify them and compare with the run's own error.
phalanx evaluate "$digits" --checkpoint "$run" --json
cp "$out" "$PHALANX_TMP/eval.json"

# png FILE HEX...: rows of grey pixels as a PNG file.
png() {
    python3 - "$@" <<'PYTHON'
import struct, sys, zlib
path, *rows = sys.argv[1:]
rows = [bytes.fromhex(r) for r in rows]
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
body = zlib.compress(b"".join(b"\0" + r for r in rows))
open(path, "wb").write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
PYTHON
}
# A one and a zero, as pens write them.
png "$PHALANX_TMP/one.png" 000000a0f0000000 000030f0ff000000 0000f0ffff000000 000030f0ff000000 \
    000000f0ff000000 000000f0ff000000 000000f0ff100000 000000a0f0300000
png "$PHALANX_TMP/zero.png" 000050f0d0100000 0000f0f0a0f00000 0030ff2000f08000 0040c00000808000 \
    0050800000908000 0040b00010c07000 0020e050a0c00000 000060d0a0000000
phalanx predict --checkpoint "$run" --json --top 3 "$PHALANX_TMP/one.png" "$PHALANX_TMP/zero.png"
check "a run directory tells its model, its sizes and its classes' names" python3 - "$out" "$rc" <<'PYTHON'
import json, math, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert sys.argv[2] == "0" and len(lines) == 2, lines
for best, digit in zip(lines, (1, 0)):
    assert [set(c) for c in best] == [{"class", "name", "logit", "probability"}] * 3, best
    assert best[0]["class"] == digit and best[0]["name"] == str(digit), (digit, best)
    assert best == sorted(best, key=lambda c: -c["probability"])
    ratio = math.exp(best[1]["logit"] - best[0]["logit"])
    assert abs(best[1]["probability"] / best[0]["probability"] - ratio) < 1e-6 * ratio, best
PYTHON
phalanx predict --checkpoint "$(newest "$run")" --top 1 "$PHALANX_TMP/zero.png"
check "a checkpoint does, too, and words are for people" grep -qE '^ +[0-9.]+ %  0 \(0\)$' "$out"
seq -f 'digit %g' 0 9 >"$PHALANX_TMP/labels"
phalanx predict --checkpoint "$run" --labels "$PHALANX_TMP/labels" --top 1 --json "$PHALANX_TMP/one.png"
check "--labels names the classes" grep -q '"name":"digit 1"' "$out"
head -n 3 "$PHALANX_TMP/labels" >"$PHALANX_TMP/few"
refused "too few labels" 2 'few: it has 3 lines, but the model has 10 classes' \
    phalanx predict --checkpoint "$run" --labels "$PHALANX_TMP/few" "$PHALANX_TMP/one.png"

# Images that are none, among others: named, and the others are told.
phalanx predict --checkpoint "$run" --json "$PHALANX_TMP/one.png" README.md "$golden/grey.png" /nope.png "$PHALANX_TMP/zero.png"
check "what cannot be told is named in its line, with exit code 3" python3 - "$out" "$err" "$rc" <<'PYTHON'
import json, sys
lines, errors = [json.loads(line) for line in open(sys.argv[1])], open(sys.argv[2]).read().splitlines()
assert sys.argv[3] == "3", sys.argv[3]
assert [type(l) for l in lines] == [list, dict, dict, dict, list], lines
for line, image, why in zip(lines[1:4], ("README.md", "grey.png", "/nope.png"), ("no JPEG or PNG", "17", "No such file")):
    assert line["image"].endswith(image) and why in line["error"], line
assert len(errors) == 3 and all(e.startswith("error: ") for e in errors), errors
PYTHON

# PyTorch's files, and images of every kind.
refused "a file does not tell its model" 2 'name it, as --model' \
    phalanx predict --checkpoint tests/golden/weights/plain.pth "$golden/rgb.jpg"
refused "another model's file" 2 'of another model: .*missing \(.* more\)' \
    phalanx predict --model resnet18 --checkpoint tests/golden/weights/plain.pth "$golden/rgb.jpg"
refused "a file that would be executed" 3 'asks for torch.nn.modules.linear.Linear, which is not executed' \
    phalanx predict --model resnet18 --checkpoint tests/golden/weights/module.pth "$golden/rgb.jpg"
head -c 3000 tests/golden/weights/plain.pth >"$PHALANX_TMP/cut.pth"
refused "a file cut off" 3 'cut.pth: its zip directory is damaged or cut off' \
    phalanx predict --model resnet18 --checkpoint "$PHALANX_TMP/cut.pth" "$golden/rgb.jpg"
refused "no such file" 2 'none.pth: there is no such file' \
    phalanx predict --model resnet18 --checkpoint "$PHALANX_TMP/none.pth" "$golden/rgb.jpg"
refused "an unknown model" 2 'no model "resnet19".*did you mean' \
    phalanx predict --model resnet19 --checkpoint "$run" "$golden/rgb.jpg"

# A run that begins with another's weights.
next=$PHALANX_TMP/next
train "$next" --quiet --ranks 3 --max-steps 0 --set "init.weights=$run" --set seed=9
check "a run begins with another's weights" [ "$(hash_of "$next")" = "$(hash_of "$run")" ]
train "$next" --quiet --max-steps 4 --set "init.weights=$run" --set seed=9
check "and goes on" [ "$rc" -eq 0 ]
check "the weights' hash is in its records" python3 - "$next/env.json" <<'PYTHON'
import json, sys
init = json.load(open(sys.argv[1]))["init"]
assert len(init["blake3"]) == 64 and init["new"] == [] and "step-" in init["path"], init
PYTHON
refused "other weights are another run" 2 'init.weights was .*run.* there and is .*next.* now' \
    train "$next" --set "init.weights=$next" --set seed=9
newest=$(newest "$run")/model.safetensors
cp "$newest" "$PHALANX_TMP/w.safetensors"
train "$PHALANX_TMP/file" --quiet --max-steps 2 --set "init.weights=$PHALANX_TMP/w.safetensors"
check "a run begins with a file" [ "$rc" -eq 0 ]
printf 'x' | dd of="$PHALANX_TMP/w.safetensors" bs=1 seek=9000 conv=notrunc 2>/dev/null
refused "a file that has changed since" 2 'not what this run began with' \
    train "$PHALANX_TMP/file" --max-steps 4 --set "init.weights=$PHALANX_TMP/w.safetensors"
rm "$PHALANX_TMP/w.safetensors"
train "$PHALANX_TMP/file" --quiet --max-steps 4 --set "init.weights=$PHALANX_TMP/w.safetensors"
check "one that is gone is not needed any more" [ "$rc" -eq 0 ]
refused "weights of another model" 2 'is of another model: .*conv1.weight' \
    train "$PHALANX_TMP/other" --set init.weights=tests/golden/weights/plain.pth

# Several views of each image: the same on any number of ranks.
for views in "--crops 10 --scales 10" "--scales 8,10,12 --crop 8" "--crops 10 --scales 9,11"; do
    # shellcheck disable=SC2086
    phalanx evaluate "$digits" --checkpoint "$run" --json $views
    cp "$out" "$PHALANX_TMP/views"
    # shellcheck disable=SC2086
    phalanx evaluate "$digits" --checkpoint "$run" --json $views --ranks 3
    check "evaluate $views: the same on 3 ranks" cmp -s "$out" "$PHALANX_TMP/views"
done
phalanx evaluate "$digits" --checkpoint "$run" --json --scales 8
check "one scale that is the image's own is the plain evaluation" python3 - "$out" "$PHALANX_TMP/eval.json" <<'PYTHON'
import json, sys
a, b = (json.load(open(p)) for p in sys.argv[1:])
assert a.pop("views") == {"scales": [8], "crops": 1}, a
assert a["top1_error"] == b["top1_error"] and abs(a["loss"] - b["loss"]) < 1e-5, (a, b)
PYTHON
refused "a crop larger than the image" 2 'a crop of 9x9 does not lie in an image of 8x8' \
    phalanx evaluate "$digits" --checkpoint "$run" --crop 9
refused "a size that the network does not take" 2 'made for another size than 16x16x1: layers.13.weight would be' \
    phalanx evaluate "$digits" --checkpoint "$run" --scales 16
refused "five crops" 2 'there are 1 or 10 crops, not 5' phalanx evaluate "$digits" --checkpoint "$run" --crops 5

# What does not fit into memory says what it needs.
refused "a model larger than memory" 2 'mlp does not fit into memory: it needs .* GB.*has .* left' \
    train "$PHALANX_TMP/large" --set "model={name=\"mlp\",hidden=[$(printf '65000,%.0s' {1..20})]}"
phalanx evaluate "$digits" --checkpoint "$run" --json --set eval.batch=100000000000
check "a batch larger than the set is no more than the set" cmp -s "$out" "$PHALANX_TMP/eval.json"
finish
