#!/usr/bin/env bash
# Shard sets as processes of mpirun read them: staged by one process for all, in blocked order, with damaged records.
# timeout: 120
. "$(dirname "$0")/worlds.sh"
launch=by_mpirun
set=$PHALANX_TMP/set
node=$PHALANX_TMP/node
mkdir "$node"

phalanx data pack digits "$set" --shard-mb 0.02
check "the digits become shards" sh -c '[ "$1" -eq 0 ] && [ -e "$2/train/shard-00001.dat" ]' - "$rc" "$set"

# on DIR ARGUMENT...: a run on the set as `line` says; alone DIR ARGUMENT...: over threads.
settings=(--set "data.train=$set" --set "data.eval=$set" --set distributed.virtual_shards=6 --set train.epochs=2
    --set 'loader.order={ blocked = { block = 64, window = 4 } }')
on() {
    local dir=$1
    shift
    digits "$dir" "${settings[@]}" "$@"
}
alone() {
    local dir=$1
    shift
    train "$dir" --quiet "${settings[@]}" "$@"
}

alone "$PHALANX_TMP/alone"
check "one rank trains on them" [ "$rc" -eq 0 ]
wanted=$(hash_of "$PHALANX_TMP/alone")
for n in 2 3; do
    "$launch" "$n"
    on "$PHALANX_TMP/staged-$n" --set "data.stage=$node"
    check "$n processes end with 0" [ "$rc" -eq 0 ]
    same_bits "$n processes read staged files to the same bits" "$PHALANX_TMP/staged-$n" "$wanted"
done
staged() { json "$PHALANX_TMP/staged-$1/env.json" '["staged"]["'"$2"'"]'; }
check "the first run has copied all, and only once" \
    [ "$(staged 2 copied)" = "$(find "$set" -name '*.dat' -printf '%s\n' | awk '{ n += $1 } END { print n }')" ]
check "the second has found it" [ "$(staged 3 copied) $(staged 3 bytes)" = "0 $(staged 2 bytes)" ]
check "nothing half copied is left" no_litter "$node"

# A place that is full after some of them.
disk=$PHALANX_TMP/disk
mkdir "$disk"
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=60k phalanx-test "$disk" 2>/dev/null; then
    trap 'umount "$disk"' EXIT
    "$launch" 2
    on "$PHALANX_TMP/full" --set "data.stage=$disk"
    check "a place that is too small holds what it can" [ "$rc" -eq 0 ]
    same_bits "and the rest is read where it lies, to the same bits" "$PHALANX_TMP/full" "$wanted"
    check "the run says how much" [ "$(json "$PHALANX_TMP/full/env.json" '["staged"]["left"]')" -gt 0 ]
    check "nothing half copied is left there" no_litter "$disk"
    umount "$disk"
    trap - EXIT
else
    echo "skipped: a full place (needs root and mount)"
fi

# A bit of three records; the copies are as they were.
python3 - "$set/train" <<'PYTHON'
import sys
for shard, place in (0, 70), (1, 7000), (1, 7100):
    with open(f"{sys.argv[1]}/shard-{shard:05}.dat", "r+b") as f:
        f.seek(place)
        byte = f.read(1)[0]
        f.seek(place)
        f.write(bytes([byte ^ 1]))
PYTHON
"$launch" 3
on "$PHALANX_TMP/copies" --set "data.stage=$node"
same_bits "what is damaged in the original does not matter to those who read copies" "$PHALANX_TMP/copies" "$wanted"
on "$PHALANX_TMP/fail"
check "without, a damaged record ends all with 3" [ "$rc" -eq 3 ]
check "rank 0 names it once" told '^error: .*sample [0-9]+ of .*CRC32C'
for policy in substitute quarantine; do
    alone "$PHALANX_TMP/$policy-alone" --set "loader.bad_records=$policy"
    check "$policy: one rank goes on" [ "$rc" -eq 0 ]
    for n in 2 3; do
        "$launch" "$n"
        on "$PHALANX_TMP/$policy-$n" --set "loader.bad_records=$policy"
        check "$policy: $n processes go on" [ "$rc" -eq 0 ]
        same_bits "$policy: $n processes give the same bits" "$PHALANX_TMP/$policy-$n" \
            "$(hash_of "$PHALANX_TMP/$policy-alone")"
        check "$policy: the summary counts them" \
            [ "$(json "$PHALANX_TMP/$policy-$n/summary.json" '["bad_records"]')" = 6 ]
        check "$policy: each is named" [ "$(wc -l <"$PHALANX_TMP/$policy-$n/quarantine.jsonl")" = 6 ]
    done
done
phalanx ledger verify "$PHALANX_TMP/substitute-3"
check "the proof counts them: $(tail -n 1 "$out")" grep -q '6 replaced by other samples, 0 left out' "$out"
finish
