#!/usr/bin/env bash
# Data on the two nodes of a real Slurm: made by ranks on both with the bytes of one, measured by all, and staged by one process
# of each node to a place that only that node has.
# timeout: 300
. "$(dirname "$0")/worlds.sh"
. tests/cluster/lib.sh
launch=by_srun
set=$PHALANX_TMP/set
sums() { (cd "$1" && find . -type f -exec sha256sum {} + | sort); }

synth=(--classes 4 --images 240 --val 40 --size 64x48 --shard-mb 0.05)
phalanx data synth "$set" "${synth[@]}"
check "one rank makes a set of several shards" sh -c '[ "$1" -eq 0 ] && [ -e "$2/train/shard-00003.dat" ]' - "$rc" "$set"
phalanx data stats "$set" --json
cp "$out" "$PHALANX_TMP/stats"
for n in 2 4; do
    by_srun "$n"
    ranks data synth "$PHALANX_TMP/by-$n" "${synth[@]}"
    check "$n ranks on two nodes make the same bytes" [ "$rc:$(sums "$PHALANX_TMP/by-$n")" = "0:$(sums "$set")" ]
    ranks data stats "$set" --json
    check "$n ranks tell the same stats, once" cmp -s "$out" "$PHALANX_TMP/stats"
done

settings=(--set "data.train=$set" --set "data.eval=$set" --set distributed.virtual_shards=4 --set train.epochs=2 --set train.global_batch=32
    --set "loader.transforms=[{ name = 'random-resized-crop', size = 32 }]" --set log.every_steps=0)
train "$PHALANX_TMP/alone" --quiet "${settings[@]}"
check "one rank trains on it" [ "$rc" -eq 0 ]
wanted=$(hash_of "$PHALANX_TMP/alone")
# There is a /dev/shm for each node.
by_srun 4
digits "$PHALANX_TMP/staged" "${settings[@]}" --set data.stage=/dev/shm
check "four ranks on two nodes read staged files" [ "$rc" -eq 0 ]
same_bits "to the same bits" "$PHALANX_TMP/staged" "$wanted"
all=$(find "$set" -name '*.dat' -printf '%s\n' | awk '{ n += $1 } END { print n }')
check "each node has copied everything, once" [ "$(json "$PHALANX_TMP/staged/env.json" '["staged"]["copied"]')" = $((2 * all)) ]
copies() { timeout 60 srun --nodes=2 --ntasks=2 --ntasks-per-node=1 sh -c "$1"; }
check "both have it" [ "$(copies "find /dev/shm/phalanx-stage-* -name '*.dat' -printf '%s\\n' | awk '{ n += \$1 } END { print n }'" | sort -u)" = "$all" ]
by_srun 2
digits "$PHALANX_TMP/again" "${settings[@]}" --set data.stage=/dev/shm
check "the next run finds the copies" [ "$rc:$(json "$PHALANX_TMP/again/env.json" '["staged"]["copied"]')" = "0:0" ]
same_bits "and gives the same bits on two ranks" "$PHALANX_TMP/again" "$wanted"
copies 'rm -r /dev/shm/phalanx-stage-*'
check "nothing else is left on the nodes" [ -z "$(copies 'ls -A /dev/shm')" ]
finish
