#!/usr/bin/env bash
# Packing as processes of mpirun: the bytes of one rank, whatever their number and also after a kill; a damaged image
# on one rank ends all of them.
# timeout: 180
. "$(dirname "$0")/worlds.sh"
launch=by_mpirun

# pack DIR ARGUMENT...: as `line` says, into some twenty shards a split.
options=(--resize 6 --quality 80 --shard-mb 0.01)
pack() {
    local dir=$1
    shift
    ranks data pack "$PHALANX_TMP/files" "$dir" "${options[@]}" "$@"
}
# same NAME DIR: the folder has the bytes that one rank wrote, and nothing else.
same() { check "$1" diff -r "$PHALANX_TMP/one" "$2"; }

phalanx data export digits "$PHALANX_TMP/files" --format folder
check "the digits become a folder for each class" [ "$rc" -eq 0 ]
phalanx data pack "$PHALANX_TMP/files" "$PHALANX_TMP/one" "${options[@]}"
check "one rank packs: $(head -n 1 "$out" | cut -d ' ' -f 3-)" [ "$rc" -eq 0 ]

for n in 1 2 3; do
    "$launch" "$n"
    pack "$PHALANX_TMP/by-$n"
    check "$n processes end with 0, and rank 0 reports" \
        [ "$rc $(grep -c '^ready: train' "$out")" = "0 1" ]
    same "$n processes give the bytes of one" "$PHALANX_TMP/by-$n"
done

# begun: the first shard of the first split is finished.
begun() { [ -e "$PHALANX_TMP/killed/train/shard-00000.idx" ]; }
for rank in 0 1 2; do
    rm -rf "$PHALANX_TMP/killed"
    "$launch" 3
    (pack "$PHALANX_TMP/killed"; exit "$rc") &
    job=$!
    wait_for begun
    # It may have come to its end by itself; then there is nothing to go on with.
    kill -KILL "$(pid_of "$rank")" 2>/dev/null
    wait "$job"
    first=$?
    gone
    "$launch" 2
    pack "$PHALANX_TMP/killed"
    check "rank $rank was killed (exit code $first): two go on and end with 0" [ "$rc" -eq 0 ]
    same "what they leave has the bytes of one" "$PHALANX_TMP/killed"
done

# What is computed and measured over processes is what one makes of it.
synth=(--classes 4 --images 120 --val 20 --size 64x48 --shard-mb 0.05)
phalanx data synth "$PHALANX_TMP/synth" "${synth[@]}"
phalanx data stats "$PHALANX_TMP/synth" --json
cp "$out" "$PHALANX_TMP/stats"
for n in 2 3; do
    "$launch" "$n"
    ranks data synth "$PHALANX_TMP/synth-$n" "${synth[@]}"
    check "synth by $n processes gives the bytes of one" diff -r "$PHALANX_TMP/synth" "$PHALANX_TMP/synth-$n"
    ranks data stats "$PHALANX_TMP/synth" --json
    check "stats by $n processes are those of one, told once" cmp -s "$out" "$PHALANX_TMP/stats"
done

victim=$(find "$PHALANX_TMP/files/train/7" -name '*.png' | sort | tail -n 1)
head -c 40 "$victim" >"$victim.cut" && mv "$victim.cut" "$victim"
"$launch" 3
pack "$PHALANX_TMP/bad"
check "a damaged image on one rank: exit code 3 for all" [ "$rc" -eq 3 ]
check "rank 0 names the image once" [ "$(grep -c "^error: .*${victim##*/}.*cut off" "$err")" -eq 1 ]
check "the set is incomplete" [ ! -e "$PHALANX_TMP/bad/train/dataset.rkyv" ]
pack "$PHALANX_TMP/bad" --bad skip --force
check "--bad skip leaves it out" [ "$rc $(grep -c "${victim##*/}" "$out")" = "0 1" ]
finish
