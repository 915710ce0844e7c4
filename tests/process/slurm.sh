#!/usr/bin/env bash
# Ranks on the two nodes of a real Slurm: the bits of thread ranks, planted failures, a cut link, signals.
# timeout: 1200
. "$(dirname "$0")/worlds.sh"
. tests/cluster/lib.sh
launch=by_srun
litter >"$PHALANX_TMP/before"

for n in 2 3 4; do transport "$n"; done
bits 1 2 3 4

fault 2 kill 1 '137|143' 10 'rank 1 .* is lost: its connection closed'
fault 2 stop 1 '4|137|143' 12 'error: (rank 1 .* is lost: no sign of life|rank 0 waited 2s for)'
fault 4 kill 0 '137|143' 10 'rank 1 .* was (waiting for sums|in forward and backward|in the loader)'
fault 2 panic 1 '4|143' 10 'rank 1 panicked: planted by --inject at step 60'
fault 2 nan 1 '5|143' 10 'non-finite loss \(NaN\) at step 60 on rank 1'
fault 2 desync 1 '4|143' 10 'ranks are out of step at collective'
fault 2 corrupt-gradient 1 '4|143' 10 'replicas differ' --set distributed.audit_every_steps=10
fault 3 hang-loader 2 '4|143' 12 'error: rank [01] waited 2s for collective .*has not come'
fault 2 disk-full 0 '1|143' 10 'cannot write .*no storage space'
fault 2 exit:9 1 '9|143' 10 'rank 1 .* is lost: its connection closed'

# The cable of node 2 is pulled while both wait for nothing but each other.
dir=$PHALANX_TMP/cut
by_srun 2
(digits "$dir" --set distributed.deadline_s=2 --set checkpoint.every_steps=20 --inject rank=1,step=60,kind=slow:1500; exit "$rc") &
job=$!
wait_for sh -c '[ -e "$1/checkpoints/step-00000060" ]' - "$dir"
begun=$SECONDS
link 2 down
for _ in $(seq 100); do ours_running || break; sleep 0.1; done
took=$((SECONDS - begun))
check "a cut link: all processes are gone after $took s" [ "$took" -le 8 ]
link 2 up
wait "$job"
rc=$?
check "a cut link: exit code $rc" [ "$rc" -ne 0 ]
check "a cut link: rank 0 says who is lost" grep -qE 'rank 1 .* is lost|rank 0 .* is lost|waited 2s' "$err"
mend
by_srun 3
digits "$dir"
same_bits "a cut link: the undisturbed bits once it is mended" "$dir" "$wanted"

signalled train-usr1 1 USR1 0.8
signalled train-term 0 TERM 0.9
by_srun 2
dir=$PHALANX_TMP/scancel
(digits "$dir" --inject rank=1,step=50,kind=slow:1500 --set checkpoint.every_steps=5; exit "$rc") &
job=$!
wait_for sh -c '[ -e "$1/checkpoints" ]' - "$dir"
scancel --signal=USR1 "$(squeue --noheader --format=%A | head -n 1).0"
wait "$job"
rc=$?
stopped_and_resumed "scancel --signal=USR1"

launched "phalanx launch --on slurm" '5|143' --on slurm --nodes 2
if [ "$PHALANX_SLOW" = 1 ]; then soak 50; fi

refused "srun without an MPI interface" 2 'srun has started 2 tasks without an MPI interface.*--mpi=pmix' \
    eval 'timeout 60 srun --nodes=2 --ntasks=2 --mpi=none "$PHALANX_MPI" train "$digits" --out "$PHALANX_TMP/none" >"$out" 2>"$err.all"; rc=$?
          grep -E "^error" "$err.all" >"$err"'
wait_idle 20
check "nothing is left on the nodes" leftovers "$PHALANX_TMP/before"
finish
