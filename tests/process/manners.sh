#!/usr/bin/env bash
# How the program speaks: help, pipes, JSON, silence, and what it does when there is nothing to do.
# timeout: 60
. "$(dirname "$0")/lib.sh"

phalanx
check "without arguments: usage on standard error, exit code 2" \
    sh -c '[ "$1" -eq 2 ] && [ ! -s "$2" ] && grep -q "phalanx train configs/digits.toml" "$3"' - "$rc" "$out" "$err"
for command in "" train evaluate predict data "data fetch" "data pack" "data export" ledger "ledger verify" config "config check" bench "bench gemm" \
    "bench step" "bench allreduce" launch; do
    # shellcheck disable=SC2086
    phalanx $command --help
    if [ "$rc" -eq 0 ] && [ ! -s "$err" ] && grep -q '^Usage: phalanx' "$out" && ! grep -qE '.{101}' "$out"; then
        pass "phalanx $command --help"
    else
        fail "phalanx $command --help: exit code $rc, or a line above 100 columns"
    fi
done
phalanx trian
check "a misspelt command" sh -c '[ "$1" -eq 2 ] && grep -q "similar.*train" "$2"' - "$rc" "$err"

dir=$PHALANX_TMP/run
train "$dir" --ranks 2
check "a run in words" sh -c '[ "$1" -eq 0 ] && [ ! -s "$2" ] && grep -q "^  params_hash  [0-9a-f]\{64\}$" "$3"' - "$rc" "$err" "$out"
wanted=$(hash_of "$dir")
state() { find "$dir" -type f ! -name .lock -exec sha256sum {} + | sort; }
before=$(state)
train "$dir" --ranks 3
check "a finished run says so" sh -c '[ "$1" -eq 0 ] && grep -q "nothing to do" "$2" && grep -q "$3" "$2"' - "$rc" "$out" "$wanted"
train "$dir" --json
check "a finished run tells its summary as JSON" [ "$(json "$out" '["params_hash"]')" = "$wanted" ]
check "a finished run is left as it was" [ "$before" = "$(state)" ]

# The middle of nine, in milliseconds.
median_ms() {
    python3 - "$@" <<'PYTHON'
import statistics, subprocess, sys, time
def once():
    start = time.perf_counter()
    subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
    return 1e3 * (time.perf_counter() - start)
print(f"{statistics.median(once() for _ in range(9)):.1f}")
PYTHON
}
version=$(median_ms "$PHALANX" --version)
again=$(median_ms "$PHALANX" train "$digits" --out "$dir")
echo "times: phalanx --version $version ms, second run of a finished run $again ms"
check "a second run starts in less than 50 ms" python3 -c "assert $again < 50"

train "$PHALANX_TMP/json" --ranks 2 --json
check "--json prints one valid object a line, a summary last" python3 - "$out" <<'PYTHON'
import json, sys
kinds = [json.loads(line)["kind"] for line in open(sys.argv[1])]
assert kinds[0] == "start" and kinds[-1] == "summary" and {"step", "epoch", "eval"} <= set(kinds), kinds
PYTHON
cp "$out" "$PHALANX_TMP/lines"
check "metrics.jsonl has the same lines" sh -c 'sed "\$d" "$1" | cmp - "$2"' - "$PHALANX_TMP/lines" "$PHALANX_TMP/json/metrics.jsonl"
train "$PHALANX_TMP/quiet" --quiet
check "--quiet prints nothing" sh -c '[ "$1" -eq 0 ] && [ ! -s "$2" ] && [ ! -s "$3" ]' - "$rc" "$out" "$err"
phalanx train "$digits" --json --quiet
check "--json and --quiet together are refused" [ "$rc" -eq 2 ]

"$PHALANX" train "$digits" --out "$PHALANX_TMP/pipe" --ranks 2 2>"$err" | head -n 1 >"$out"
rc=${PIPESTATUS[0]}
check "a closed pipe does not end the run" [ "$rc" -eq 0 ]
check "a closed pipe is no error" [ ! -s "$err" ]
same_bits "a closed pipe changes no bits" "$PHALANX_TMP/pipe" "$wanted"
"$PHALANX" train "$digits" --out "$PHALANX_TMP/closed" --max-steps 5 >&- 2>&-
check "closed standard output and error do not end the run" [ $? -eq 0 ]
"$PHALANX" train nothere.toml 2>&-
check "an error with nowhere to go keeps its exit code" [ $? -eq 2 ]

phalanx evaluate "$digits" --checkpoint "$dir" --json
check "evaluate agrees with the run's last evaluation" python3 - "$out" "$dir/summary.json" <<'PYTHON'
import json, sys
a, b = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))["eval"]
assert a == b, (a, b)
PYTHON
phalanx ledger verify "$dir" --json
check "ledger verify --json" [ "$(json "$out" '["whole_epochs"]')" = 15 ]

# A kill between the last checkpoint and the summary.
cp -r "$dir" "$PHALANX_TMP/late"
rm "$PHALANX_TMP/late/summary.json"
train "$PHALANX_TMP/late" --quiet
check "a lost summary is written again, evaluation included" python3 - "$PHALANX_TMP/late/summary.json" "$dir/summary.json" <<'PYTHON'
import json, sys
a, b = (json.load(open(p)) for p in sys.argv[1:])
for key in "status", "steps", "samples_seen", "train_loss", "eval", "params_hash", "buffers_hash":
    assert a[key] == b[key], (key, a[key], b[key])
PYTHON
finish
