#!/usr/bin/env bash
# A signal at any moment: exit code 75, a checkpoint, and the bits of an undisturbed run after resuming.
# timeout: 120
. "$(dirname "$0")/lib.sh"

# A large evaluation set gives time to hit the evaluation.
idx "$PHALANX_TMP/set" 600 20000
set_of=(--set "data.train=$PHALANX_TMP/set" --set "data.eval=$PHALANX_TMP/set" --set train.epochs=3)
train "$PHALANX_TMP/calm" "${set_of[@]}" --quiet
check "the undisturbed run finishes" [ "$rc" -eq 0 ]
wanted=$(hash_of "$PHALANX_TMP/calm")

# signalled NAME WHEN SIGNALS ARGUMENT...: starts a run, sends the signals once `WHEN` succeeds.
signalled() {
    local name=$1 when=$2 signals=$3 pid
    shift 3
    dir=$PHALANX_TMP/$name
    "$PHALANX" train "$digits" --out "$dir" --ranks 2 "${set_of[@]}" "$@" >"$out" 2>"$err" &
    pid=$!
    wait_for eval "$when"
    for signal in $signals; do kill "-$signal" "$pid"; done
    wait "$pid"
    rc=$?
}

# resumed NAME: it was stopped as it should be, and goes on to the bits of the undisturbed run.
resumed() {
    local name=$1
    if [ "$rc" -ne 75 ]; then
        fail "$name: exit code $rc, not 75"
    elif ! grep -q 'run the same command again to go on' "$out"; then
        fail "$name: the user is not told what to do"
    elif [ -s "$err" ]; then
        fail "$name: standard error is not empty"
    elif [ ! -e "$(newest "$dir")/COMPLETE" ] || [ "$(json "$dir/summary.json" '["status"]')" != stopped ]; then
        fail "$name: no checkpoint, or the summary does not say stopped"
    else
        train "$dir" "${set_of[@]}" --ranks 3 --quiet
        same_bits "$name: exit code 75, and the same bits after resuming" "$dir" "$wanted"
    fi
}

slow=()
for step in $(seq 0 29); do slow+=(--inject "rank=1,step=$step,kind=slow:40"); done
starting() { [ -d "$dir" ]; }
training() { grep -qs '"kind":"step"' "$dir/metrics.jsonl"; }
evaluating() { grep -qs '"kind":"epoch"' "$dir/metrics.jsonl"; }
# A checkpoint after every step keeps the writer busy all the time; later steps are slow, so that the
# signal does not come too late.
writing() { [ -d "$dir/checkpoints" ]; }
write=(--set checkpoint.every_steps=1)
for step in $(seq 12 29); do write+=(--inject "rank=1,step=$step,kind=slow:40"); done
log=(--set log.every_steps=1)

for signal in INT TERM USR1; do
    signalled "start-$signal" starting "$signal" "${slow[@]}"
    resumed "$signal at the start"
    signalled "training-$signal" training "$signal" "${slow[@]}" "${log[@]}"
    resumed "$signal while training"
    signalled "evaluation-$signal" evaluating "$signal"
    check "$signal comes while evaluating" \
        [ "$(json "$(newest "$dir")/state.json" '["evaluation_due"]')" = True ]
    resumed "$signal while evaluating"
    signalled "writing-$signal" writing "$signal" "${write[@]}"
    resumed "$signal while checkpoints are written"
done
signalled twice training "INT INT" "${slow[@]}" "${log[@]}"
resumed "two INT at once"
signalled many writing "INT INT TERM USR1 INT" "${write[@]}"
resumed "a burst of signals"
finish
