#!/usr/bin/env bash
# Ranks as processes of mpirun: the bits of thread ranks, planted failures, signals, and launches that would
# make many worlds of one.
# timeout: 900
. "$(dirname "$0")/worlds.sh"
launch=by_mpirun

for n in 1 2 4; do transport "$n"; done
transport 3 messages
bits 1 2 3 4

refused "a binary without MPI under mpirun" 2 'started 2 processes.*--features mpi' \
    eval '"${line[@]:0:3}" -n 2 "$PHALANX" train "$digits" --out "$PHALANX_TMP/none" >/dev/null 2>"$err.all"; rc=$?
          grep -E "^error" "$err.all" >"$err"'
refused "ranks as threads and as processes" 2 '--ranks 2 starts threads' \
    eval 'by_mpirun 1; ranks train "$digits" --ranks 2 --out "$PHALANX_TMP/none"; grep -E "^error" "$err" >"$err.e"; mv "$err.e" "$err"'
refused "tasks without an MPI interface" 2 'srun has started 4 tasks without an MPI interface.*--mpi=pmix' \
    eval 'SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=0 timeout 20 "$PHALANX_MPI" train "$digits" >"$out" 2>"$err"; rc=$?'
refused "more ranks than shards" 2 'cannot share' \
    eval 'by_mpirun 3; ranks train "$digits" --set distributed.virtual_shards=2 --out "$PHALANX_TMP/none"; grep -E "^error" "$err" >"$err.e"; mv "$err.e" "$err"'

before=$(ls -A /dev/shm)
fault 3 kill 1 137 7 'rank 1 .* is lost: its connection closed'
fault 3 kill 0 137 7 'rank 1 .* was (waiting for sums|in forward and backward|in the loader)'
fault 3 stop 2 4 9 'error: (rank 2 .* is lost: no sign of life|rank [01] waited 2s for)'
fault 2 panic 1 4 7 'rank 1 panicked: planted by --inject at step 60'
fault 3 nan 2 5 7 'non-finite loss \(NaN\) at step 60 on rank 2'
fault 3 desync 1 4 7 'ranks are out of step at collective'
fault 3 corrupt-gradient 1 4 7 'replicas differ' --set distributed.audit_every_steps=10
fault 3 hang-loader 1 4 9 'error: rank [02] waited 2s for collective .*rank 1 has not come'
fault 2 disk-full 0 1 7 'cannot write .*no storage space'
fault 2 exit:9 1 9 7 'rank 1 .* is lost: its connection closed'
check "nothing is left in /dev/shm" [ "$before" = "$(ls -A /dev/shm)" ]

by_mpirun 3
digits "$PHALANX_TMP/slow" --inject rank=1,step=9,kind=slow:300
same_bits "a slow rank changes nothing" "$PHALANX_TMP/slow" "$wanted"
check "the time that it cost is accounted for as skew" python3 - "$PHALANX_TMP/slow/summary.json" <<'PYTHON'
import json, sys
time = json.load(open(sys.argv[1]))["time"]
# Two of three ranks waited for it.
assert time["skew_s"] > 0.15, time
PYTHON

signalled start-usr1 0 USR1 0.05
signalled start-term 2 TERM 0.2
signalled train-usr1 1 USR1 0.8
signalled train-term 2 TERM 0.9

plain_mpirun mpirun.openmpi
launched "phalanx launch --on mpirun" 5 --on mpirun --ranks-per-node 3

if [ "$PHALANX_SLOW" = 1 ]; then soak 50; else soak 10; fi
finish
