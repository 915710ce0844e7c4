#!/usr/bin/env bash
# bench/gpu/run without a GPU: what it says of a missing device and of wrong arguments, and every part of it on the stand-ins of tests/cuda,
# which step cuda has built; without them the parts are not run.
. "$(dirname "$0")/lib.sh"
standins=${CARGO_TARGET_DIR:-target}/cuda/stand-ins
folder=$PHALANX_TMP/packed
mkdir -p "$folder"
cp "$PHALANX" bench/gpu/run bench/gpu/peers.py configs/digits.toml configs/mnist-lenet5.toml crates/data/src/embedded/digits.bin "$folder/"

# bench ARGUMENT...: sets rc, out and err.
bench() {
    timeout 120 "$folder/run" --out "$PHALANX_TMP/results.json" "$@" >"$out" 2>"$err"
    rc=$?
}
CUDA_VISIBLE_DEVICES='' bench
check "without a GPU it ends with 2" [ "$rc" -eq 2 ]
check "and says why" grep -q 'no GPU that can be used: .*cuda is unavailable' "$err"
bench --only ops,nothing
check "a part that there is not is refused" [ "$rc" -eq 2 ]
check "and those that there are, are named" grep -q 'no part nothing; there are ops, exact,' "$err"

if [ -e "$standins/libcuda.so.1" ]; then
    export PHALANX_CUDA_PATH=$standins PHALANX_STANDIN_CACHE=$standins/cache PHALANX_CACHE=${CARGO_TARGET_DIR:-target}/cuda/cubin
    bench --smoke
    check "every part runs with tiny sizes: $(tail -n 1 "$out" | sed "s|$PHALANX_TMP|TMP|")" [ "$rc" -eq 0 ]
    check "and has its results" python3 - "$PHALANX_TMP/results.json" <<'PYTHON'
import json, sys
r = json.load(open(sys.argv[1]))
assert list(r["exact"]["hashes"].values()) == [[1, 2]], r["exact"]
assert len(r["memory"]["kernels"]) > 20 and all(k["gb_s"] > 0 for k in r["memory"]["kernels"])
assert [p["precision"] for p in r["gemm"]["products"]] == ["bf16", "tf32", "f32"]
assert all(n["ours"]["samples_per_second"] > 0 for n in r["steps"]["networks"]) and len(r["steps"]["networks"]) == 2
assert len(r["networks"]["networks"]) == 2 and all(n["good"] for n in r["networks"]["networks"]), r["networks"]
assert r["mnist"]["set"].endswith("not MNIST") and r["mnist"]["ours"]["errors"], r["mnist"]
assert r["nccl"]["two_ranks"]["same_hash"] and len(r["nccl"]["buckets"]) == 2
assert "tool" in r["sanitizer"] and not r["failures"]
PYTHON
fi
finish
