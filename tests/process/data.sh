#!/usr/bin/env bash
# Sets of shards: made alike by any number of ranks and after any interruption; every damage found, told and worked
# around; a full disk leaves nothing that looks whole.
# timeout: 120
. "$(dirname "$0")/lib.sh"

# synth OUT ARGUMENT...: a small set of some shards to train on and one to validate on.
synth() {
    local to=$1
    shift
    phalanx data synth "$to" --classes 4 --images 600 --val 40 --size 64x48 --codec raw --shard-mb 1 "$@"
}
sums() { (cd "$1" && find . -type f ! -name '.*' -exec sha256sum {} + | sort); }
same_set() { [ "$(sums "$1")" = "$(sums "$2")" ]; }
sound() {
    phalanx data verify "$1"
    [ "$rc" -eq 0 ] && [ "$(grep -c ' sound: ' "$out")" -eq 2 ]
}

set=$PHALANX_TMP/set
synth "$set"
check "synth" sh -c '[ "$1" -eq 0 ] && [ ! -s "$2" ] && grep -q "train.*600 samples of 4 classes" "$3"' - "$rc" "$err" "$out"
check "a set of several shards" [ -e "$set/train/shard-00001.dat" ]
check "no litter" [ -z "$(find "$set" -name '.*' -type f -o -name '*.tmp')" ]
for ranks in 1 3; do
    synth "$PHALANX_TMP/set-$ranks" --ranks "$ranks" --threads 2
    check "the same bytes from $ranks ranks" same_set "$set" "$PHALANX_TMP/set-$ranks"
done
check "verify passes" sound "$set"
before=$(sums "$set")
synth "$set"
check "a finished set is left as it is" [ "$rc$before" = "0$(sums "$set")" ]
refused "another set in its place" 2 'holds another set.*--force' synth "$set" --seed 8
synth "$PHALANX_TMP/set-3" --seed 8 --force
check "--force puts another set there" sh -c '[ "$1" -eq 0 ] && ! cmp -s "$2" "$3"' - "$rc" \
    "$set/train/shard-00000.dat" "$PHALANX_TMP/set-3/train/shard-00000.dat"

phalanx data synth "$PHALANX_TMP/only" --classes 3 --images 3 --val 0 --size 16x16
check "synth without a validation split" sh -c '[ "$1" -eq 0 ] && [ -e "$2/train/dataset.rkyv" ] && [ ! -e "$2/val" ]' - \
    "$rc" "$PHALANX_TMP/only"
phalanx data synth "$PHALANX_TMP/files" --classes 3 --images 60 --size 100x75
check "synth as JPEG files" grep -q 'val  3 samples of 3 classes' "$out"
phalanx data inspect "$PHALANX_TMP/files" --sheet "$PHALANX_TMP/sheet.png" --json
check "inspect --json" python3 - "$out" <<'PYTHON'
import json, sys
r, val = json.load(open(sys.argv[1]))
assert val["records"] == 3 and r["records"] == 60 and r["codecs"] == {"jpeg": 60} and [c["records"] for c in r["classes"]] == [20] * 3, r
assert 60 <= r["sizes"]["height"]["least"] <= r["sizes"]["width"]["most"] <= 115, r["sizes"]
PYTHON
check "the contact sheet is a PNG file" python3 - "$PHALANX_TMP/sheet.png" <<'PYTHON'
import struct, sys, zlib
b = open(sys.argv[1], "rb").read()
assert b[:8] == b"\x89PNG\r\n\x1a\n"
at, data, kinds = 8, b"", []
while at < len(b):
    n, kind = struct.unpack(">I4s", b[at:at + 8])
    assert zlib.crc32(b[at + 4:at + 8 + n]) == struct.unpack(">I", b[at + 8 + n:at + 12 + n])[0]
    kinds.append(kind)
    data += b[at + 8:at + 8 + n] if kind == b"IDAT" else b""
    at += 12 + n
w, h = struct.unpack(">II", b[16:24])
assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND" and len(zlib.decompress(data)) == h * (1 + 3 * w), (w, h)
PYTHON
refused "a sheet of another kind" 2 '--sheet writes a PNG file' phalanx data inspect "$set" --sheet "$PHALANX_TMP/sheet.jpg"
phalanx data inspect "$set" --pictures 5
check "pictures without a sheet" sh -c '[ "$1" -eq 2 ] && grep -q -- "--sheet" "$2"' - "$rc" "$err"
refused "megabytes of tars that are none" 2 '--shard-mb is of tars' phalanx data export "$set" "$PHALANX_TMP/x" --format folder --shard-mb 5
mkdir "$PHALANX_TMP/home"
echo x >"$PHALANX_TMP/home/thesis.tex"
refused "a folder of other things" 2 'holds "thesis.tex", which is no part of a set' synth "$PHALANX_TMP/home"
check "is left as it is" [ "$(ls "$PHALANX_TMP/home")" = thesis.tex ]
phalanx data inspect "$set"
check "inspect in words" sh -c '[ "$1" -eq 0 ] && grep -q "classes *4, of 150 to 150 records" "$2"' - "$rc" "$out"
phalanx data stats "$set" --json
cp "$out" "$PHALANX_TMP/stats"
phalanx data stats "$set" --json --ranks 3
check "stats are the same from any number of ranks" cmp -s "$out" "$PHALANX_TMP/stats"
check "stats" [ "$(json "$out" '["images"]')" = 600 ]
phalanx data export "$PHALANX_TMP/files" "$PHALANX_TMP/tars" --format webdataset
phalanx data pack "$PHALANX_TMP/tars" "$PHALANX_TMP/again"
check "an exported set can be packed again" sh -c '[ "$1" -eq 0 ] && grep -q "60 samples of 3 classes" "$2"' - "$rc" "$out"

# What is computed can be learnt, from files that are decoded on the way.
phalanx data synth "$PHALANX_TMP/textures" --classes 4 --images 400 --val 80 --size 100x75
phalanx train configs/synth-cnn.toml --ranks 2 --out "$PHALANX_TMP/learnt" --quiet --set "data.train=$PHALANX_TMP/textures" \
    --set train.epochs=15 --set train.global_batch=32 --set "loader.transforms=[{ name = 'random-resized-crop', size = 32 }]"
check "a network learns textures of four classes: error $(json "$PHALANX_TMP/learnt/summary.json" '["eval"]["top1_error"]')" \
    python3 -c 'import json, sys; assert json.load(open(sys.argv[1]))["eval"]["top1_error"] < 0.4' "$PHALANX_TMP/learnt/summary.json"
phalanx ledger verify "$PHALANX_TMP/learnt"
check "each image exactly once an epoch" grep -q '15 whole epochs' "$out"

# A flipped byte in a record.
bad=$PHALANX_TMP/bad
cp -r "$set" "$bad"
flip() { # FILE BYTE
    python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); b = f.read(1)[0]; f.seek(-1, 1); f.write(bytes([b ^ 64]))' "$@"
}
flip "$bad/train/shard-00001.dat" 12345
phalanx data verify "$bad" --json
record=$(json "$out" '[0]["bad"][0]["id"]')
check "verify finds a flipped byte" [ "$rc" -eq 3 ]
phalanx data verify "$bad" --threads 2
check "and names the record" sh -c '[ "$1" -eq 3 ] && grep -q "record $2 .*shard 1 .*CRC32C" "$3" && grep -q "val.* sound" "$3"' - "$rc" "$record" "$out"
refused "stats of a damaged set" 3 "sample $record of .*CRC32C" phalanx data stats "$bad"
phalanx data repair "$bad"
check "repair puts it into quarantine" sh -c '[ "$1" -eq 0 ] && grep -q "599 records are left; 1 in quarantine, 1 of them new" "$2"' - "$rc" "$out"
phalanx data stats "$bad" --json
check "the others can be used" [ "$(json "$out" '["images"]')" = 599 ]
check "verify is content" sound "$bad"
flip "$bad/train/shard-00001.dat" 12345
phalanx data repair "$bad"
check "repair releases what is sound again" sh -c 'grep -q "600 records are left; 0 in quarantine" "$1" && [ ! -e "$2/train/quarantine.json" ]' - "$out" "$bad"
for file in dataset.rkyv shard-00000.idx dataset.json; do
    size=$(stat -c %s "$bad/train/$file")
    flip "$bad/train/$file" $((size / 2))
    phalanx data verify "$bad"
    check "verify finds a flipped byte of $file" sh -c '[ "$1" -eq 3 ] && grep -q "$2" "$3"' - "$rc" "$file" "$out"
    flip "$bad/train/$file" $((size / 2))
done
mv "$bad/train/shard-00001.dat" "$PHALANX_TMP/away"
phalanx data verify "$bad"
check "a missing shard: incomplete" sh -c '[ "$1" -eq 3 ] && grep -q "incomplete" "$2" && grep -q "shard-00001.dat" "$2"' - "$rc" "$out"
refused "which cannot be repaired" 3 'shard-00001.dat' phalanx data repair "$bad"

# Killed at random points, and gone on with.
killed=$PHALANX_TMP/killed
rounds=0
for delay in 0.01 0.03 0.06 0.1 0.15; do
    "$PHALANX" data synth "$killed" --classes 4 --images 600 --val 40 --size 64x48 --codec raw --shard-mb 1 \
        --threads 2 >/dev/null 2>&1 &
    sleep "$delay"
    kill -9 $! 2>/dev/null && rounds=$((rounds + 1))
    wait $! 2>/dev/null
    if [ -d "$killed/train" ] && [ ! -e "$killed/train/dataset.rkyv" ]; then
        phalanx data verify "$killed"
        [ "$rc" -eq 3 ] && grep -qE 'incomplete|no shard set' "$out" "$err" || fail "verify after a kill: $rc"
    fi
done
synth "$killed"
check "killed $rounds times and gone on with: the same bytes" same_set "$set" "$killed"
for delay in 0.005 0.02 0.04; do
    "$PHALANX" data pack "$set" "$PHALANX_TMP/packed" --shard-mb 1 >/dev/null 2>&1 &
    sleep "$delay"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
done
phalanx data pack "$set" "$PHALANX_TMP/packed" --shard-mb 1
phalanx data pack "$set" "$PHALANX_TMP/at-once" --shard-mb 1 --ranks 2
check "a packing that was killed gives the same bytes" same_set "$PHALANX_TMP/packed" "$PHALANX_TMP/at-once"

# Ctrl-C: what comes next is said, and the process ends as others do.
timeout --preserve-status -s INT 0.4 "$PHALANX" data synth "$PHALANX_TMP/ctrl-c" --classes 4 --images 200000 --val 40 --size 64x48 --codec raw \
    --shard-mb 1 >"$out" 2>"$err"
rc=$?
check "Ctrl-C: $(cat "$err")" sh -c '[ "$1" -eq 130 ] && grep -q "the same command goes on" "$2"' - "$rc" "$err"

# A disk that is really full.
disk=$PHALANX_TMP/disk
mkdir "$disk"
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=1500k phalanx-test "$disk" 2>/dev/null; then
    trap 'umount "$disk"' EXIT
    refused "a full disk" 1 'cannot .*: No space left on device' synth "$disk/set"
    phalanx data verify "$disk/set"
    check "what it left is called incomplete" sh -c '[ "$1" -eq 3 ] && grep -q "incomplete" "$2" && ! grep -q " sound" "$2"' - "$rc" "$out"
    refused "and cannot be trained on" 3 'incomplete|dataset.rkyv' train "$PHALANX_TMP/none" --set "data.train=$disk/set"
    refused "a sheet on a full disk" 1 'cannot .*: No space left on device' phalanx data inspect "$set" --sheet "$disk/sheet.png"
    check "which leaves no part of it" sh -c '[ -z "$(find "$1" -name "sheet*")" ]' - "$disk"
    mount -o remount,size=100m "$disk"
    synth "$disk/set"
    check "the same bytes once there is room" same_set "$set" "$disk/set"
    umount "$disk"
    trap - EXIT
else
    echo "skipped: a really full disk (needs root and mount)"
fi

# What is no set, and what is no option.
refused "no classes" 2 '--classes: is 0; 1..=100000' phalanx data synth "$PHALANX_TMP/x" --classes 0 --images 5
refused "no images" 2 '--images: is 0' phalanx data synth "$PHALANX_TMP/x" --classes 5 --images 0
refused "a size too small" 2 '--size: is 4x375' phalanx data synth "$PHALANX_TMP/x" --classes 5 --images 5 --size 4x375
refused "a quality too high" 2 '--quality: is 101' phalanx data synth "$PHALANX_TMP/x" --classes 5 --images 5 --quality 101
refused "pixels of several sizes" 2 '--vary: is 0.2; stored as pixels, images have one size' \
    phalanx data synth "$PHALANX_TMP/x" --classes 5 --images 5 --codec raw --vary 0.2
check "none of them made anything" [ ! -e "$PHALANX_TMP/x" ]
refused "no set" 3 'there is no shard set' phalanx data verify "$PHALANX_TMP"
refused "stats of nothing" 2 '"nope" is neither' phalanx data stats nope
phalanx data synth "$PHALANX_TMP/x" --classes 5 --images 5 --qualty 3
check "a misspelt option" sh -c '[ "$1" -eq 2 ] && grep -q "similar.*--quality" "$2"' - "$rc" "$err"
phalanx data verfy "$set"
check "a misspelt command" sh -c '[ "$1" -eq 2 ] && grep -q "similar.*verify" "$2"' - "$rc" "$err"
phalanx data synth "$PHALANX_TMP/x" --classes 5 --images 5 --size 500:375
check "a size of another form" sh -c '[ "$1" -eq 2 ] && grep -q "the form is WxH, as 500x375" "$2"' - "$rc" "$err"
finish
