# What ranks as processes must do whatever launcher has started them; sourced by mpi*.sh and slurm*.sh, not
# run. `by_mpirun` and `by_srun` are in lib.sh; $launch is the one that the script tests.
. "$(dirname "$0")/lib.sh"
: "${PHALANX_MPI:?the binary with the feature mpi; tests/run sets it}"

# digits DIR ARGUMENT...: a run of the digits into DIR, as `line` says.
digits() {
    local dir=$1
    shift
    ranks train "$digits" --out "$dir" --quiet "$@"
}

# transport N [ARGUMENT...]: sums and control calls of N ranks are those of threads.
transport() {
    local n=$1
    shift
    "$launch" "$n"
    "${line[@]}" "$PHALANX_EXAMPLES/conformance" "$@" >"$out" 2>"$err"
    rc=$?
    check "transport, $n ranks${*:+, $*}: $(tail -n 1 "$out")" [ "$rc" -eq 0 ]
}

# bits N...: any number of processes gives the bits of thread ranks.
bits() {
    train "$PHALANX_TMP/threads" --ranks 2 --quiet
    check "the undisturbed run over threads finishes" [ "$rc" -eq 0 ]
    wanted=$(hash_of "$PHALANX_TMP/threads")
    local n
    for n in "$@"; do
        "$launch" "$n"
        digits "$PHALANX_TMP/bits-$n"
        check "$n processes end with 0" [ "$rc" -eq 0 ]
        same_bits "$n processes give the bits of thread ranks" "$PHALANX_TMP/bits-$n" "$wanted"
        check "$n processes: the summary tells of them" \
            [ "$(json "$PHALANX_TMP/bits-$n/summary.json" '["comm"]') $(json "$PHALANX_TMP/bits-$n/summary.json" '["world_size"]')" = "mpi $n" ]
    done
}

# gone: no process of this test is left, at most five seconds later.
gone() {
    local end=$((SECONDS + 5))
    while ours_running; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}
ours_running() {
    local pid exe
    for pid in /proc/[0-9]*; do
        exe=$(readlink "$pid/exe" 2>/dev/null) && [ "${exe##*/}" = phalanx ] || continue
        tr '\0' '\n' 2>/dev/null <"$pid/environ" | grep -qxF "PHALANX_TMP=$PHALANX_TMP" && return 0
    done
    return 1
}

# told TEXT: rank 0 says TEXT once: on standard error or, as srun ends a step when a rank has died and then does not
# print all that it is given, in the run directory.
told() {
    local said
    said=$(grep -cE -- "$1" "$err")
    [ "$said" -eq 0 ] && [ "$launch" = by_srun ] && said=$(grep -cE -- "$1" "$2/failure.txt" 2>/dev/null)
    [ "$said" -eq 1 ]
}

# fault N KIND RANK CODE SECONDS TEXT [ARGUMENT...]: KIND is planted on RANK of N at step 60, with a deadline of two
# seconds. The launcher returns CODE (a regular expression), rank 0 says TEXT once (- where the launcher leaves it no
# time to), everybody is gone within SECONDS, and the run goes on with another number of ranks to the undisturbed bits.
fault() {
    local n=$1 kind=$2 rank=$3 code=$4 seconds=$5 text=$6 dir begun took
    shift 6
    dir=$PHALANX_TMP/fault-${kind%%:*}-$rank
    "$launch" "$n"
    begun=$(date +%s%N)
    digits "$dir" --set distributed.deadline_s=2 --set checkpoint.every_steps=20 --inject "rank=$rank,step=60,kind=$kind" "$@"
    gone
    took=$((($(date +%s%N) - begun) / 1000000))
    local name="$kind on rank $rank of $n"
    if ! [[ "$rc" =~ ^($code)$ ]]; then
        fail "$name: exit code $rc, not $code"
    elif [ "$text" != - ] && ! told "$text" "$dir"; then
        fail "$name: not said once: $text"
    elif ours_running; then
        fail "$name: somebody is still there"
    elif [ "$took" -gt $((seconds * 1000)) ]; then
        fail "$name: all were gone after $took ms, not $seconds s"
    else
        pass "$name: exit code $rc, all gone after $took ms from the start"
    fi
    "$launch" "$((n == 2 ? 3 : 2))"
    digits "$dir"
    same_bits "$name: the undisturbed bits on another number of ranks" "$dir" "$wanted"
}

# signalled NAME RANK SIGNAL SECONDS: a run on three ranks, of which one gets a signal after so long, ends with 75 and
# a checkpoint, and goes on to the undisturbed bits.
signalled() {
    local name=$1 rank=$2 signal=$3 after=$4 dir=$PHALANX_TMP/signal-$1 pid
    "$launch" 3
    (digits "$dir" --inject rank=1,step=50,kind=slow:1500 --set checkpoint.every_steps=5; exit "$rc") &
    local job=$!
    wait_for rank_is_there "$rank"
    sleep "$after"
    pid=$(pid_of "$rank")
    kill "-$signal" "$pid"
    wait "$job"
    rc=$?
    stopped_and_resumed "$name"
}

# pid_of RANK: the process of that rank, by the number that its launcher gave it.
pid_of() {
    local pid exe
    for pid in /proc/[0-9]*; do
        exe=$(readlink "$pid/exe" 2>/dev/null) && [ "${exe##*/}" = phalanx ] || continue
        tr '\0' '\n' 2>/dev/null <"$pid/environ" >"$PHALANX_TMP/environ"
        grep -qxF "PHALANX_TMP=$PHALANX_TMP" "$PHALANX_TMP/environ" || continue
        grep -qxE "(OMPI_COMM_WORLD_RANK|PMI_RANK|PMIX_RANK)=$1" "$PHALANX_TMP/environ" && echo "${pid#/proc/}" && return
    done
    return 1
}
rank_is_there() { pid_of "$1" >/dev/null; }

# stopped_and_resumed NAME: the run in $dir was stopped as it should be, and goes on to the undisturbed bits.
stopped_and_resumed() {
    local status
    status=$(json "$dir/summary.json" '["status"]' 2>/dev/null)
    if [ "$rc" -ne 75 ]; then
        fail "$1: exit code $rc, not 75"
    elif [ "$status" != stopped ] || [ ! -e "$(newest "$dir")/COMPLETE" ]; then
        fail "$1: no checkpoint, or the summary says ${status:-nothing}"
    else
        pass "$1: exit code 75 and a checkpoint at step $(steps_of "$dir")"
    fi
    "$launch" 2
    digits "$dir"
    same_bits "$1: the undisturbed bits after resuming on two" "$dir" "$wanted"
}

# plain_mpirun NAME: that launcher is called plain `mpirun`, as on machines with one MPI.
plain_mpirun() {
    mkdir "$PHALANX_TMP/path"
    # Hydra looks for its helpers beside itself, so a link will not do.
    printf '#!/bin/sh\nexec %s "$@"\n' "$1" >"$PHALANX_TMP/path/mpirun"
    chmod +x "$PHALANX_TMP/path/mpirun"
    PATH=$PHALANX_TMP/path:$PATH
}

# launched NAME CODE ARGUMENT...: `phalanx launch ARGUMENT...` starts ranks that have the bits of threads, returns their
# exit code (a regular expression) when one fails, and turns Ctrl-C into a checkpoint.
launched() {
    local name=$1 code=$2 dir=$PHALANX_TMP/launch pid
    shift 2
    line=(timeout 120)
    ranks launch "$@" -- train "$digits" --out "$dir" --quiet
    check "$name: exit code $rc" [ "$rc" -eq 0 ]
    same_bits "$name: the bits of thread ranks" "$dir" "$wanted"
    check "$name: ranks as processes" [ "$(json "$dir/summary.json" '["comm"]')" = mpi ]
    ranks launch "$@" -- train "$digits" --out "$dir-nan" --quiet --inject rank=1,step=9,kind=nan
    check "$name: exit code $rc when a rank fails" grep -qxE "$code" <<<"$rc"
    dir+=-stopped
    "$PHALANX_MPI" launch "$@" -- train "$digits" --out "$dir" --quiet --set checkpoint.every_steps=5 \
        --inject rank=1,step=50,kind=slow:1500 >"$out" 2>"$err" &
    pid=$!
    wait_for [ -e "$dir/checkpoints/step-00000005" ]
    kill -INT "$pid"
    wait "$pid"
    rc=$?
    stopped_and_resumed "$name: Ctrl-C"
}

# soak KILLS: one run, killed, stopped and resized at random moments, ends with the undisturbed hash.
soak() {
    local kills=0 start n kind step dir=$PHALANX_TMP/soak
    RANDOM=${PHALANX_SEED:=$$}
    for start in $(seq $((4 * $1))); do
        n=$((1 + RANDOM % 4))
        "$launch" "$n"
        if [ "$kills" -ge "$1" ]; then
            digits "$dir"
            break
        fi
        # A random step that is still to come, so that no start is spared.
        step=$(newest "$dir" 2>/dev/null | sed 's/.*step-0*//')
        step=$((${step:-0} + RANDOM % 12))
        # Nobody is there to notice that a rank that is alone has stopped.
        kind=kill
        [ "$n" -gt 1 ] && [ $((RANDOM % 5)) -eq 0 ] && kind=stop
        digits "$dir" --set distributed.deadline_s=1 --set checkpoint.every_steps=5 \
            --inject "rank=$((RANDOM % n)),step=$step,kind=$kind"
        [ "$rc" -eq 0 ] && break
        kills=$((kills + 1))
        gone || { fail "soak: somebody is left after kill $kills (PHALANX_SEED=$PHALANX_SEED)"; return; }
    done
    check "a run that lost a rank $kills times finishes (PHALANX_SEED=$PHALANX_SEED)" [ "$rc" -eq 0 ]
    check "it lost one $1 times" [ "$kills" -ge "$1" ]
    same_bits "it has the bits of the undisturbed run" "$dir" "$wanted"
}
