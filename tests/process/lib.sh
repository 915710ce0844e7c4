# Helpers of the process tests; sourced, not run. $PHALANX is the binary, $PHALANX_TMP an empty folder.
set -uo pipefail
: "${PHALANX:?the path of the release binary; tests/run sets it}"
: "${PHALANX_TMP:=$(mktemp -d)}"
export PHALANX_TMP

digits=configs/digits.toml
failures=0
out=$PHALANX_TMP/out # standard output and
err=$PHALANX_TMP/err # standard error of the last `phalanx`
rc=0

pass() { echo "PASS $*"; }
fail() {
    echo "FAIL $*"
    failures=$((failures + 1))
    sed 's/^/    out: /' "$out" 2>/dev/null | tail -n 5
    sed 's/^/    err: /' "$err" 2>/dev/null | tail -n 5
}

# check NAME COMMAND...: PASS when the command succeeds.
check() {
    local name=$1
    shift
    if "$@"; then pass "$name"; else fail "$name ($*)"; fi
}

# phalanx ARGUMENT...: runs the binary, sets rc, out and err. A run takes a second or two; a minute is for
# a machine that others use as well.
phalanx() {
    timeout 60 "$PHALANX" "$@" >"$out" 2>"$err"
    rc=$?
}

# train DIR ARGUMENT...: a run of the digits into DIR.
train() {
    local dir=$1
    shift
    phalanx train "$digits" --out "$dir" "$@"
}

# refused NAME CODE TEXT COMMAND...: the command ends with the code and says TEXT (a regular expression)
# on standard error, once, in one or two lines, without a backtrace.
refused() {
    local name=$1 code=$2 text=$3
    shift 3
    "$@"
    if [ "$rc" -ne "$code" ]; then
        fail "$name: exit code $rc, not $code"
    elif [ "$(grep -cE -- "$text" "$err")" -ne 1 ]; then
        fail "$name: standard error does not say once: $text"
    elif [ "$(wc -l <"$err")" -gt 2 ] || grep -qiE 'backtrace|panicked at|Err\(|Some\(' "$err"; then
        fail "$name: standard error is no short message for people"
    else
        pass "$name: $(head -n 1 "$err" | sed "s|$PHALANX_TMP|TMP|g" | cut -c 1-180)"
    fi
}

json() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))'"$2"')' "$1"; }
hash_of() { json "$1/summary.json" '["params_hash"]'; }
steps_of() { json "$1/summary.json" '["steps"]'; }
newest() { find "$1/checkpoints" -maxdepth 1 -name 'step-????????' | sort | tail -n 1; }
no_litter() { [ -z "$(find "$1" -name '*.tmp')" ]; }

# same_bits NAME DIR WANTED: the finished run in DIR has the wanted hash, a good ledger and no litter.
same_bits() {
    local name=$1 dir=$2 wanted=$3 proof
    if [ "$(hash_of "$dir")" != "$wanted" ]; then
        fail "$name: the parameters differ from those of the undisturbed run"
    elif ! proof=$("$PHALANX" ledger verify "$dir" 2>&1); then
        fail "$name: $proof"
    elif ! no_litter "$dir"; then
        fail "$name: $(find "$dir" -name '*.tmp') is left"
    else
        pass "$name"
    fi
}

# ------------------------------------------------------------------ ranks as processes

# Open MPI: root may start it, several ranks may share a core, and its files go where they can be counted.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
case ${0##*/} in
    mpi* | slurm*)
        : "${PHALANX_MPI:?the release binary with the feature mpi; tests/run sets it}"
        export TMPDIR=$PHALANX_TMP/t
        mkdir -p "$TMPDIR"
        . "$(dirname "${BASH_SOURCE[0]}")/../cluster/lib.sh"
        ;;
esac
case ${0##*/} in
    slurm*) : "${SLURM_CONF:?the configuration of the two-node Slurm; tests/run and tests/cluster/with set it}" ;;
esac

# by_mpirun N: sets `line` to the launcher's words for N ranks on this machine; by_srun N, for N ranks on the two
# nodes, half of them on each. To be followed by a program: "${line[@]}" "$PHALANX_MPI" train …
by_mpirun() {
    local launcher=mpirun.openmpi
    case ${0##*/} in mpich*) launcher=mpirun.mpich ;; esac
    line=(timeout 120 "$launcher" -n "$1")
}
by_srun() {
    line=(timeout 120 srun --nodes="$(($1 > 1 ? 2 : 1))" --ntasks="$1" --ntasks-per-node="$((($1 + 1) / 2))"
        --mpi=pmix --kill-on-bad-exit=1)
}

# ranks ARGUMENT...: `phalanx ARGUMENT...` as `line` says; sets rc, out and err.
ranks() {
    "${line[@]}" "$PHALANX_MPI" "$@" >"$out" 2>"$err"
    rc=$?
}

# ------------------------------------------------------------------ data and time

# idx DIR TRAIN TEST [SAMPLE]: an IDX data set of random 8x8 images; training sample SAMPLE has label 200.
idx() {
    python3 - "$@" <<'PYTHON'
import os, random, struct, sys
folder, train, test = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
bad = int(sys.argv[4]) if len(sys.argv) > 4 else None
os.makedirs(folder)
open(f"{folder}/classes.txt", "w").writelines(f"{k}\n" for k in range(10))
r = random.Random(1)
for stem, n in ("train", train), ("t10k", test):
    with open(f"{folder}/{stem}-images-idx3-ubyte", "wb") as f:
        f.write(struct.pack(">IIII", 0x803, n, 8, 8) + r.randbytes(64 * n))
    labels = bytearray(r.randrange(10) for _ in range(n))
    if bad is not None and stem == "train":
        labels[bad] = 200
    with open(f"{folder}/{stem}-labels-idx1-ubyte", "wb") as f:
        f.write(struct.pack(">II", 0x801, n) + labels)
PYTHON
}

# wait_for COMMAND...: until it succeeds, at most 20 seconds.
wait_for() {
    for _ in $(seq 1000); do
        "$@" && return 0
        sleep 0.02
    done
    return 1
}

finish() {
    [ "$failures" -eq 0 ]
    exit
}
