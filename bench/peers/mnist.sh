#!/usr/bin/env bash
# Trains the three full-set recipes with two ranks and prints their test errors.
#
#   bench/peers/mnist.sh [--update-results]
#   PHALANX=target/release/phalanx  RANKS=2  DATA=data  OUT=runs/full-sets-<date>
#
# Fetches MNIST and Fashion-MNIST into $DATA/mnist and $DATA/fashion-mnist, where the recipes look for
# them, unless they are there. The exit code is 0 when every error is at or below its mark.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

phalanx=${PHALANX:-target/release/phalanx}
ranks=${RANKS:-2}
data=${DATA:-data}
out=${OUT:-runs/full-sets-$(date +%Y%m%d-%H%M%S)}
if [ ! -x "$phalanx" ]; then
    echo "mnist.sh: $phalanx does not exist: run \`cargo build --release\` first" >&2
    exit 2
fi

for set in mnist fashion-mnist; do
    [ -d "$data/$set" ] || "$phalanx" data fetch "$set" "$data/$set"
done
for recipe in mnist-mlp mnist-lenet5 fashion-lenet5; do
    set=${recipe%-*}
    [ "$set" = fashion ] && set=fashion-mnist
    where=()
    [ "$data" = data ] || where=(--set "data.train=$data/$set" --set "data.eval=$data/$set")
    "$phalanx" train "configs/$recipe.toml" --ranks "$ranks" --out "$out/$recipe" "${where[@]}"
done

python3 - "$here" "$out" "$ranks" "${1:-}" <<'PYTHON'
import json
import pathlib
import sys

here, out, ranks, option = sys.argv[1:]
sys.path.insert(0, here)
import results

# Recipe, title, the project's mark, and what a plain recipe reaches in PyTorch, in per cent.
SETS = [
    ("mnist-mlp", "MNIST, MLP 784-512-10", 1.7, 1.59),
    ("mnist-lenet5", "MNIST, LeNet-5", 1.1, 1.28),
    ("fashion-lenet5", "Fashion-MNIST, LeNet-5", 10.0, 10.3),
]
lines = [
    "| recipe | epochs | test error | mark | PyTorch, plain recipe | time |",
    "| --- | ---: | ---: | --- | ---: | ---: |",
]
missed = 0
for recipe, title, mark, peer in SETS:
    summary = json.loads(pathlib.Path(out, recipe, "summary.json").read_text())
    error = 100 * summary["eval"]["top1_error"]
    met = error <= mark
    missed += not met
    lines.append(
        f"| {title} | {summary['epochs']} | {error:.2f} % | ≤ {mark:g} % {'met' if met else 'MISSED'} "
        f"| {peer:g} % | {summary['wall_s']:.0f} s |"
    )
table = "\n".join(lines)
print(table)
if option == "--update-results":
    note = results.provenance("bench/peers/mnist.sh", f", {ranks} ranks")
    results.put("full-sets", f"## Full data sets\n\n{note}\n\n{table}\n")
sys.exit(1 if missed else 0)
PYTHON
