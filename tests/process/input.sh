#!/usr/bin/env bash
# Wrong input of every kind: the right exit code, one short message that names the culprit, and nothing
# made or lost.
# timeout: 60
. "$(dirname "$0")/lib.sh"

new=$PHALANX_TMP/new
# wrong CODE TEXT ARGUMENT...: a run of the digits that must not begin.
wrong() {
    local code=$1 text=$2
    shift 2
    refused "$*" "$code" "$text" train "$new" "$@"
    if [ -e "$new/config.toml" ] || [ -e "$new/ledger" ]; then
        fail "$*: it left $(ls "$new" | tr '\n' ' ')"
        rm -rf "$new"
    fi
}
wrong 2 'unknown key `epoch`.*did you mean `epochs`' --set train.epoch=3
wrong 2 'unknown key `chekpoint`.*did you mean `checkpoint`' --set chekpoint.keep=3
wrong 2 'train.epochs: wrong type: string "x", expected a whole number' --set 'train.epochs="x"'
wrong 2 'train.epochs.*-1.*expected a whole number, 0 or more' --set train.epochs=-1
wrong 2 'train.global_batch is 0' --set train.global_batch=0
wrong 2 'train.global_batch: 5000 is larger than the set: .* 1442 samples' --set train.global_batch=5000
wrong 2 'optimizer: lr is -1' --set optimizer.lr=-1
wrong 2 'optimizer: lr is NaN' --set optimizer.lr=nan
wrong 2 'unknown value `adem`.*did you mean `adam`' --set optimizer.name=adem
wrong 2 'unknown value `cosin`.*did you mean `cosine`' --set schedule.name=cosin
wrong 2 'unknown transform "flop"; did you mean "flip"' --set 'loader.transforms=[{name="flop"}]'
wrong 2 'loader.threads is 100000' --set loader.threads=100000
wrong 2 'expected `f32`' --set train.precision=bf16
wrong 2 'virtual_shards is 0' --set distributed.virtual_shards=0
wrong 2 'checkpoint.keep is 0' --set checkpoint.keep=0
wrong 2 'form table.key=value' --set nonsense
wrong 2 'empty key' --set =3
wrong 2 'seed is a value, not a table' --set seed.x=1
wrong 2 'wrong type' --set model.layers=3
wrong 2 'instruction set "sse" is not usable here.*portable' --set compute.isa=sse
wrong 2 '"nope" is neither an embedded data set \(digits\) nor a directory' --set data.train=nope
wrong 2 '"/nope/dir" is neither' --set data.train=/nope/dir
wrong 2 'at least one rank' --ranks 0
wrong 2 '9 ranks cannot share 8 virtual shards; start at most 8' --ranks 9
wrong 2 'cannot share 8' --ranks 4000000000
wrong 2 'kind=kill' --inject fire
wrong 2 'no rank 3 of 2' --ranks 2 --inject rank=3,step=1,kind=nan
wrong 2 'neither a checkpoint nor a run directory' --resume /nope
wrong 2 'neither a checkpoint nor a run directory' --resume /etc
if ! ls /dev/nvidia* >/dev/null 2>&1; then
    wrong 2 'device cuda is unavailable: .*tried libcuda.so.1.*--device cpu' --device cuda
fi

# Files.
toml() { # NAME FROM TO: the configuration with a change (a sed pattern)
    sed "s/$2/$3/" "$digits" >"$PHALANX_TMP/$1.toml"
}
file() { phalanx train "$PHALANX_TMP/$1.toml" --out "$new"; }
refused "a missing file" 2 'nothere.toml: cannot read the configuration: No such file' file nothere
line=$(grep -n '^epochs' "$digits" | cut -d: -f1)
toml key '^epochs' epoch
refused "an unknown key in a file" 2 "key.toml, line [0-9]+: .*unknown key .epoch.*did you mean .epochs" file key
toml type '^epochs.*' 'epochs = "many"'
refused "a wrong type in a file" 2 "type.toml, line $line: wrong type: string \"many\"" file type
toml garbage '^epochs.*' 'epochs = = 3'
refused "garbage in a file" 2 "garbage.toml, line $line: " file garbage
head -c 3000 /dev/urandom >"$PHALANX_TMP/binary.toml"
refused "a binary file" 2 'binary.toml: cannot read the configuration: .*UTF-8' file binary
: >"$PHALANX_TMP/empty.toml"
refused "an empty file" 2 'empty.toml.*missing key `model`' file empty
refused "a directory as a file" 2 'cannot read the configuration: Is a directory' phalanx train configs
toml out '^out = 16' 'out = 0'
refused "a layer of size zero" 2 'out' file out
toml negative '^out = 16' 'out = -4'
refused "a layer of negative size" 2 "negative.toml, line .*-4" file negative
toml layer '^type = "relu"' 'type = "rely"'
refused "an unknown layer" 2 'line .*rely.*did you mean `relu`' file layer
sed '/^\[\[model.layers\]\]/,/^$/d' "$digits" | sed 's/^\[loader\]/[model]\nname = "lenet9"\n[loader]/' >"$PHALANX_TMP/model.toml"
refused "an unknown model" 2 'no model "lenet9".*lenet5' file model
refused "config check finds the same" 2 'no model "lenet9".*lenet5' phalanx config check "$PHALANX_TMP/model.toml"
phalanx config check configs/*.toml
check "config check of every shipped configuration" [ "$rc" -eq 0 ]

# Data.
idx "$PHALANX_TMP/bad" 300 40 123
idx "$PHALANX_TMP/good" 300 40
refused "a label outside the classes" 3 'sample 123 .*label 200' train "$new" --set "data.train=$PHALANX_TMP/bad" \
    --set "data.eval=$PHALANX_TMP/good"
head -c 5000 "$PHALANX_TMP/good/train-images-idx3-ubyte" >"$PHALANX_TMP/cut"
cp "$PHALANX_TMP/cut" "$PHALANX_TMP/good/train-images-idx3-ubyte"
rm -rf "$new"
refused "images cut short" 3 'train-images-idx3-ubyte' train "$new" --set "data.train=$PHALANX_TMP/good" \
    --set "data.eval=$PHALANX_TMP/good"

# Run directories.
: >"$PHALANX_TMP/plain"
refused "a run directory below a file" 2 'cannot be created: .*--out' train "$PHALANX_TMP/plain/run"
refused "a file as run directory" 2 'cannot be created: .*--out' train "$PHALANX_TMP/plain"
run=$PHALANX_TMP/run
train "$run" --max-steps 30 --quiet
state() { find "$run" -type f ! -name .lock -exec sha256sum {} + | sort; }
before=$(state)
refused "another run's directory" 2 'holds another run: optimizer.lr was 0.1 there and is 0.2 now' \
    train "$run" --set optimizer.lr=0.2
toml wide '^out = 16' 'out = 24'
refused "another model's directory" 2 'holds another run: model.layers\[0\].out was 16 there and is 24 now' \
    phalanx train "$PHALANX_TMP/wide.toml" --out "$run"
refused "another model's checkpoint" 2 'checkpoint .*run/checkpoints.*another run: model.layers' \
    phalanx train "$PHALANX_TMP/wide.toml" --out "$new" --resume "$run"
refused "--resume never on a run" 2 'holds a run already.*--out' train "$run" --resume never
refused "another number of shards" 2 'begun with 8; V is fixed' train "$run" --set distributed.virtual_shards=4
refused "more ranks than shards" 2 'start at most 8' train "$run" --ranks 9
refused "another instruction set" 2 'fingerprint differs.*isa is "portable" here.*--allow-fingerprint-change' \
    train "$run" --set compute.isa=portable
check "none of these changed the run" [ "$before" = "$(state)" ]
train "$run" --set compute.isa=portable --allow-fingerprint-change --max-steps 31
check "another instruction set can be allowed, with a warning" grep -q 'warning: the fingerprint differs' "$out"

# Evaluation and ledger.
refused "evaluate another model's checkpoint" 2 'another model: model.layers\[0\].out was 16' phalanx evaluate "$PHALANX_TMP/wide.toml" --checkpoint "$run"
refused "evaluate nothing" 2 '/nope: there is no such directory' phalanx evaluate "$digits" --checkpoint /nope
refused "evaluate on no ranks" 2 'at least 1 is needed' phalanx evaluate "$digits" --checkpoint "$run" --ranks 0
refused "the ledger of nothing" 3 'is this a run directory' phalanx ledger verify /nope
finish
