#!/usr/bin/env bash
# `phalanx launch`: the lines it builds, what it refuses, the exit codes it returns, and the signals it passes on.
# timeout: 120
. "$(dirname "$0")/lib.sh"

# This test is about a plain shell, wherever it is started.
unset "${!SLURM_@}" "${!PMI_@}" "${!PMIX_@}" "${!OMPI_COMM_@}" RANK WORLD_SIZE

launch() { phalanx launch "$@"; }

# line NAME WANTED ARGUMENT...: --dry-run prints that line, and nothing else.
line() {
    local name=$1 wanted=$2
    shift 2
    launch --dry-run "$@"
    if [ "$rc" -eq 0 ] && [ ! -s "$err" ] && [ "$(cat "$out")" = "$wanted" ]; then
        pass "dry run: $name"
    else
        fail "dry run: $name: exit code $rc, or not: $wanted"
    fi
}
binary=$(readlink -f "$PHALANX")
line "one rank" "$binary train $digits" -- train "$digits"
line "threads" "$binary train $digits --ranks 3" --on local --ranks-per-node 3 -- train "$digits"
line "the command's own --ranks" "$binary bench step --model mlp --ranks 2" -- bench step --model mlp --ranks 2
line "words that a shell would take apart" "$binary train 'a b.toml' --set 'run.name='\\''x'\\'''" \
    -- train "a b.toml" --set "run.name='x'"

# misused NAME TEXT ARGUMENT...: the reader of the command line refuses it, with its usual lines of help.
misused() {
    local name=$1 text=$2
    shift 2
    launch "$@"
    check "$name" sh -c '[ "$1" -eq 2 ] && [ ! -s "$2" ] && grep -qF -- "$4" "$3"' - "$rc" "$out" "$err" "$text"
}
misused "no command" "required arguments were not provided"
misused "a launcher that does not exist" "invalid value 'k8s'" --on k8s -- train "$digits"
misused "no machine" "0 is not in" --nodes 0 -- train "$digits"
refused "a command without ranks" 2 "it has no ranks to start" launch -- config check "$digits"
refused "a launcher of a launcher" 2 "it has no ranks" launch -- launch -- train "$digits"
misused "a wrong word in the command" "unexpected argument '--rank'" -- train "$digits" --rank 2
refused "ranks twice" 2 "--ranks-per-node 2 and --ranks 3" launch --ranks-per-node 2 -- train "$digits" --ranks 3
refused "several machines without Slurm" 2 "--nodes 2: .*--on slurm" launch --nodes 2 -- train "$digits"
refused "a partition without Slurm" 2 "--partition is for Slurm" launch --partition p -- train "$digits"
refused "--requeue" 2 "--requeue needs a batch job" launch --requeue -- train "$digits"
for on in mpirun slurm; do
    refused "a binary without MPI on $on" 2 "build --release --features mpi" launch --on "$on" -- train "$digits"
done
in_job() { SLURM_JOB_ID=17 SLURM_JOB_NODELIST='n[1-2]' phalanx launch "$@"; }
refused "a binary without MPI in an allocation" 2 "srun .*built without MPI" in_job -- train "$digits"
in_ranks() { OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 phalanx launch "$@"; }
refused "as one of many ranks" 2 "mpirun has started 4 processes" in_ranks -- train "$digits"

# ------------------------------------------------------------------ exit codes and signals

idx "$PHALANX_TMP/set" 600 200
set_of=(--set "data.train=$PHALANX_TMP/set" --set "data.eval=$PHALANX_TMP/set" --set train.epochs=3)
launch --on local --ranks-per-node 2 -- train "$digits" --out "$PHALANX_TMP/calm" "${set_of[@]}" --quiet
check "an undisturbed run: exit code 0" sh -c '[ "$1" -eq 0 ] && [ ! -s "$2" ] && [ ! -s "$3" ]' - "$rc" "$out" "$err"
wanted=$(hash_of "$PHALANX_TMP/calm")
refused "the command's exit code 2, and its message" 2 "no-such.toml" launch -- train no-such.toml
idx "$PHALANX_TMP/bad" 600 200 7
refused "the command's exit code 3" 3 "label" launch -- train "$digits" --out "$PHALANX_TMP/worse" \
    --set "data.train=$PHALANX_TMP/bad" --set "data.eval=$PHALANX_TMP/set"

slow=(--set log.every_steps=1)
for step in $(seq 0 29); do slow+=(--inject "rank=1,step=$step,kind=slow:40"); done
training() { grep -qs '"kind":"step"' "$dir/metrics.jsonl"; }

# stopped NAME SIGNAL...: the signals to the launcher, once it trains, end it with 75 and a checkpoint, and the same
# line goes on to the bits of the undisturbed run.
stopped() {
    local name=$1 pid
    shift
    dir=$PHALANX_TMP/$name
    "$PHALANX" launch --on local --ranks-per-node 2 -- train "$digits" --out "$dir" "${set_of[@]}" "${slow[@]}" \
        >"$out" 2>"$err" &
    pid=$!
    wait_for training
    for signal in "$@"; do kill "-$signal" "$pid"; done
    wait "$pid"
    rc=$?
    if [ "$rc" -ne 75 ]; then
        fail "$name: exit code $rc, not 75"
    elif [ -s "$err" ] || ! grep -q 'run the same command again to go on' "$out"; then
        fail "$name: standard error is not empty, or the user is not told what to do"
    elif [ ! -e "$(newest "$dir")/COMPLETE" ] || [ "$(json "$dir/summary.json" '["status"]')" != stopped ]; then
        fail "$name: no checkpoint, or the summary does not say stopped"
    else
        launch --on local --ranks-per-node 3 -- train "$digits" --out "$dir" "${set_of[@]}" --quiet
        same_bits "$name to the launcher: exit code 75, and the same bits after resuming" "$dir" "$wanted"
    fi
}
for signal in INT TERM HUP USR1 USR2; do stopped "$signal" "$signal"; done
stopped "a burst" INT TERM INT HUP USR1

# A rank that the system kills: the launcher says so by the code that a shell would have.
dir=$PHALANX_TMP/killed
launch --on local -- train "$digits" --out "$dir" "${set_of[@]}" --inject rank=0,step=3,kind=kill
check "a killed command: exit code 137" [ "$rc" -eq 137 ]
launch --on local -- train "$digits" --out "$dir" "${set_of[@]}" --quiet
same_bits "the same bits after a kill" "$dir" "$wanted"

# Under nohup the end of the terminal is no reason to stop.
dir=$PHALANX_TMP/nohup
(trap '' HUP && exec "$PHALANX" launch -- train "$digits" --out "$dir" "${set_of[@]}" "${slow[@]/rank=1/rank=0}" --quiet) \
    >"$out" 2>"$err" &
pid=$!
wait_for training
kill -HUP "$pid"
wait "$pid"
rc=$?
check "an ignored HUP stays ignored" [ "$rc" -eq 0 ]
same_bits "and the run is undisturbed" "$dir" "$wanted"
finish
