#!/usr/bin/env bash
# Killed at random moments and resumed on other numbers of ranks, a run ends with the bits of one that
# was left alone, and its ledger proves it.
# timeout: 180
. "$(dirname "$0")/lib.sh"

train "$PHALANX_TMP/calm" --quiet
check "the undisturbed run finishes" [ "$rc" -eq 0 ]
wanted=$(hash_of "$PHALANX_TMP/calm")
error=$(json "$PHALANX_TMP/calm/summary.json" '["eval"]["top1_error"]')
check "it has learnt the digits to at most 4 % error ($error)" python3 -c "assert $error <= 0.04"

# One run, killed over and over. Rank 0 sleeps now and then, so that there is time to kill it.
dir=$PHALANX_TMP/killed
worlds=(2 3 4 8 1)
slow=()
for step in $(seq 2 4 344); do slow+=(--inject "rank=0,step=$step,kind=slow:30"); done
seed=${PHALANX_SEED:-$$}
RANDOM=$seed
kills=0
for start in $(seq 60); do
    world=${worlds[$((start % 5))]}
    "$PHALANX" train "$digits" --out "$dir" --ranks "$world" --resume auto --quiet \
        --set checkpoint.every_steps=9 "${slow[@]}" >"$out" 2>"$err" &
    pid=$!
    # Some die while they start, most while they train.
    sleep "0.$(printf %03d $((RANDOM % (start % 4 == 0 ? 60 : 700))))"
    kill -9 "$pid" 2>/dev/null && kills=$((kills + 1))
    wait "$pid" 2>/dev/null
    rc=$?
    [ "$rc" -eq 0 ] && break
    if [ -s "$err" ]; then
        fail "start $start on $world ranks after a kill (PHALANX_SEED=$seed)"
        break
    fi
    # What a kill leaves must never fail the proof of what was done so far.
    if [ -d "$dir/ledger" ] && ! "$PHALANX" ledger verify "$dir" >"$out" 2>"$err"; then
        grep -q 'there is none' "$err" || { fail "the ledger after kill $kills (PHALANX_SEED=$seed)"; break; }
    fi
done
[ "$rc" -eq 0 ] || train "$dir" --ranks 2 --quiet
check "a run that was killed $kills times finishes (PHALANX_SEED=$seed)" [ "$rc" -eq 0 ]
same_bits "it has the bits of the undisturbed run" "$dir" "$wanted"
phalanx ledger verify "$dir"
check "the proof tells of the starts: $(sed -n 2p "$out")" grep -qE '^starts: ([2-9]|[0-9]{2}), on ' "$out"

# The proof finds what is planted.
spoil() { # NAME CHANGE TEXT
    rm -rf "$PHALANX_TMP/spoilt"
    cp -r "$PHALANX_TMP/calm" "$PHALANX_TMP/spoilt"
    python3 - "$PHALANX_TMP/spoilt/ledger/attempt-0001-rank-00000.jsonl" "$2" <<'PYTHON'
import json, sys
path, change = sys.argv[1:]
lines = open(path).read().splitlines()
line, other = json.loads(lines[300]), json.loads(lines[310])
if change == "omit":
    del line["ids"][3]
elif change == "repeat":
    line["ids"].append(other["ids"][0])
elif change == "swap":
    line["ids"][0] = other["ids"][0]
lines[300] = json.dumps(line)
open(path, "w").write("\n".join(lines) + "\n")
PYTHON
    refused "$1" 3 "$3" phalanx ledger verify "$PHALANX_TMP/spoilt"
}
spoil "a planted omission is found" omit 'sample [0-9]+ of epoch [0-9]+ is missing at step 37'
spoil "a planted repeat is found" repeat 'sample [0-9]+ was consumed twice in epoch [0-9]+'
spoil "a swapped sample is found" swap 'does not belong|consumed twice|missing'

# Damage to what is on disk.
damage() { # DIR CHECKPOINT
    printf 'x' | dd of="$2/model.safetensors" bs=1 seek=5000 conv=notrunc 2>/dev/null
}
dir=$PHALANX_TMP/damaged
train "$dir" --ranks 2 --max-steps 130 --quiet
damage "$dir" "$(newest "$dir")"
train "$dir" --ranks 3 --max-steps 131
check "a damaged checkpoint is passed over with a warning" \
    grep -qE 'warning: .*step-00000130: model.safetensors is damaged.*the one before' "$out"
check "the warning is in metrics.jsonl" grep -q '"kind":"warning".*damaged' "$dir/metrics.jsonl"
check "the run goes on from the one before" grep -q 'going on from .*step-00000115' "$out"
phalanx ledger verify "$dir"
check "the ledger knows which steps were done again" [ "$rc" -eq 0 ]
train "$dir" --quiet
same_bits "after a damaged checkpoint the bits are the same" "$dir" "$wanted"
check "what was set aside is gone once the run has passed it" [ -z "$(find "$dir" -name '*.undone')" ]

dir=$PHALANX_TMP/ruined
train "$dir" --max-steps 130 --quiet
for checkpoint in "$dir"/checkpoints/step-*; do damage "$dir" "$checkpoint"; done
before=$(find "$dir" -type f ! -name .lock -exec sha256sum {} + | sort)
refused "when all checkpoints are damaged the run does not start anew" 2 'none of the 3 is good.*--out' train "$dir"
after=$(find "$dir" -type f ! -name .lock -exec sha256sum {} + | sort)
check "and nothing is changed" [ "$before" = "$after" ]

# Back behind what was done: the later checkpoints are no longer history, and nothing contradicts.
dir=$PHALANX_TMP/back
train "$dir" --max-steps 130 --quiet --set checkpoint.keep=20
train "$dir" --resume "$dir/checkpoints/step-00000050" --max-steps 60 --ranks 2
check "going back is told" grep -q 'warning: the run goes on from step 50' "$out"
phalanx ledger verify "$dir"
check "the ledger follows a run that went back" [ "$rc" -eq 0 ]
train "$dir" --ranks 4 --quiet
same_bits "a run that went back has the same bits" "$dir" "$wanted"

# From another run's checkpoint into a directory of its own.
train "$PHALANX_TMP/fork" --resume "$PHALANX_TMP/calm" --quiet
same_bits "a run forked from another's newest checkpoint" "$PHALANX_TMP/fork" "$wanted"
finish
