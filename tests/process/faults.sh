#!/usr/bin/env bash
# Planted failures, full disks and two processes on one directory: each ends all ranks at once with one
# short error, and the run goes on afterwards to the bits of an undisturbed one.
# timeout: 150
. "$(dirname "$0")/lib.sh"

train "$PHALANX_TMP/calm" --quiet
check "the undisturbed run finishes" [ "$rc" -eq 0 ]
wanted=$(hash_of "$PHALANX_TMP/calm")

# A rank that hangs where no abort reaches it takes its time to be given up: begin it now, look later.
hung=$PHALANX_TMP/hung
hung_start=$SECONDS
(
    timeout 60 "$PHALANX" train "$digits" --out "$hung" --ranks 2 --quiet --set distributed.deadline_s=1 \
        --inject rank=1,step=60,kind=slow:600000 >"$hung.out" 2>"$hung.err"
    echo "$? $((SECONDS - hung_start))" >"$hung.rc"
) &

# broken NAME CODE TEXT ARGUMENT...: the run fails at once, then goes on without the fault.
broken() {
    local name=$1 code=$2 text=$3 start=$SECONDS
    shift 3
    dir=$PHALANX_TMP/$(echo "$name" | tr -c 'a-z0-9\n' -)
    refused "$name" "$code" "$text" train "$dir" "$@"
    check "$name: all ranks end at once" [ $((SECONDS - start)) -lt 15 ]
    train "$dir" --ranks 2 --quiet
    same_bits "$name: the same bits once it is gone" "$dir" "$wanted"
}

broken "a panic at the first step" 4 'rank 2 panicked: planted by --inject at step 0' \
    --ranks 3 --inject rank=2,step=0,kind=panic
broken "a panic" 4 'rank 1 panicked: planted by --inject at step 77' --ranks 4 --inject rank=1,step=77,kind=panic
broken "nan" 5 'non-finite loss \(NaN\) at step 70 on rank 2, shard 5' --ranks 3 --inject rank=2,step=70,kind=nan
broken "disk-full" 1 'cannot write .*checkpoints.*: no storage space' --ranks 2 --inject rank=0,step=70,kind=disk-full
check "disk-full: the checkpoint before was intact" grep -q 'step-00000069' "$PHALANX_TMP/disk-full/metrics.jsonl"

train "$PHALANX_TMP/slow" --ranks 2 --quiet --inject rank=1,step=9,kind=slow:300 --inject rank=0,step=11,kind=slow:300
same_bits "a slow rank changes nothing" "$PHALANX_TMP/slow" "$wanted"

# A disk that is really full.
disk=$PHALANX_TMP/disk
mkdir "$disk"
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=900k phalanx-test "$disk" 2>/dev/null; then
    trap 'umount "$disk"' EXIT
    refused "a full disk" 1 'cannot write .*: No space left on device' train "$disk/run" --ranks 2 \
        --set checkpoint.every_steps=5
    [ -n "$(newest "$disk/run")" ] && before=yes || before=no
    check "a full disk: earlier checkpoints are kept" [ "$before" = yes ]
    refused "a disk that is still full" 1 'cannot .*: No space left on device' train "$disk/run"
    mount -o remount,size=20m "$disk"
    train "$disk/run" --ranks 3 --quiet
    same_bits "a full disk: the same bits once there is room" "$disk/run" "$wanted"
    mount -o remount,ro "$disk"
    refused "a read-only file system" 2 'run directory cannot be (created|written): .*--out' train "$disk/other"
    umount "$disk"
    trap - EXIT
else
    echo "skipped: a really full disk (needs root and mount)"
fi
if [ -e /dev/full ]; then
    timeout 60 "$PHALANX" train "$digits" --out "$PHALANX_TMP/stdout" --ranks 2 >/dev/full 2>"$err"
    rc=$?
    check "standard output on a full disk does not end the run" [ "$rc" -eq 0 ]
fi

# Two processes on one directory.
dir=$PHALANX_TMP/shared
"$PHALANX" train "$digits" --out "$dir" --quiet --inject rank=0,step=3,kind=slow:600000 &
first=$!
wait_for test -s "$dir/metrics.jsonl"
refused "a second process on the same directory" 2 "another process \(process $first on .*\) is training in it" \
    train "$dir"
kill -9 "$first"
wait "$first" 2>/dev/null
train "$dir" --quiet
same_bits "a killed process leaves no lock" "$dir" "$wanted"

wait_for test -s "$hung.rc"
read -r rc took <"$hung.rc"
cp "$hung.out" "$out"
cp "$hung.err" "$err"
refused "a rank that hangs" 4 'rank 0 waited 1s for' true
check "a rank that hangs: the process is gone $took s after its start" [ "$took" -lt 30 ]
train "$hung" --quiet
same_bits "a rank that hangs: the same bits afterwards" "$hung" "$wanted"
finish
