#!/usr/bin/env bash
# Ranks as processes of mpirun, each with a GPU of its own: NCCL's identity goes over MPI, gradients over NCCL, and the bits are those of
# thread ranks. On the stand-ins of tests/cuda, which step cuda has built and whose compiled kernels it has left; without them nothing is checked.
# timeout: 300
. "$(dirname "$0")/lib.sh"
standins=${CARGO_TARGET_DIR:-target}/cuda/stand-ins
if [ ! -e "$standins/libnccl.so.2" ]; then
    echo "not checked: $standins is missing; tests/run cuda makes it"
    exit 0
fi
export PHALANX_CUDA_PATH=$standins PHALANX_STANDIN_CACHE=$standins/cache PHALANX_STANDIN_DEVICES=2
export PHALANX_CACHE=${CARGO_TARGET_DIR:-target}/cuda/cubin
short=(--device cuda --max-steps 4 --set train.epochs=1 --set compute.threads=1 --set distributed.exact=true --quiet)

timeout 120 "$PHALANX_MPI" train "$digits" --ranks 1 "${short[@]}" --out "$PHALANX_TMP/one" >"$out" 2>"$err"
rc=$?
check "one rank on a GPU" [ "$rc" -eq 0 ]
timeout 120 "$PHALANX_MPI" train "$digits" --ranks 2 --comm nccl "${short[@]}" --out "$PHALANX_TMP/threads" >"$out" 2>"$err"
rc=$?
check "two thread ranks over NCCL" [ "$rc" -eq 0 ]
by_mpirun 2
ranks train "$digits" --comm nccl "${short[@]}" --out "$PHALANX_TMP/processes"
check "two processes over NCCL" [ "$rc" -eq 0 ]
told() { echo "$(json "$PHALANX_TMP/$1/summary.json" '["comm"]') $(json "$PHALANX_TMP/$1/summary.json" '["world_size"]')"; }
check "the summaries tell of NCCL: $(told processes)" [ "$(told processes) $(told threads)" = "nccl 2 nccl 2" ]
for other in threads processes; do
    check "$other have the bits of one rank" [ "$(hash_of "$PHALANX_TMP/$other")" = "$(hash_of "$PHALANX_TMP/one")" ]
done

# An error of NCCL on one process ends both, in time.
begun=$SECONDS
PHALANX_STANDIN_NCCL_FAIL=5@1 ranks train "$digits" --comm nccl "${short[@]}" --out "$PHALANX_TMP/failed"
check "an error of NCCL ends both processes" [ "$rc" -ne 0 ]
check "and within its deadline" [ $((SECONDS - begun)) -lt 60 ]

# A process that is killed while its peer waits for it in a sum.
begun=$SECONDS
ranks train "$digits" --comm nccl "${short[@]}" --set distributed.deadline_s=10 --inject rank=1,step=2,kind=kill --out "$PHALANX_TMP/killed"
check "a killed process ends the other, which waits in NCCL: exit code $rc" [ "$rc" -ne 0 ]
check "within its deadline too" [ $((SECONDS - begun)) -lt 60 ]
check "and the report names the rank" grep -q 'rank 1' "$err"
finish
