#!/usr/bin/env python3
"""Measures `phalanx` beside PyTorch: the same work, one machine, one run.

usage: run.py [--rounds N] [--only GROUP,...] [--seconds S] [--python PYTHON] [--phalanx BINARY]
              [--json FILE] [--cold-build] [--update-results]

Groups: step (training steps on one thread), ranks (two data-parallel ranks of one thread), shards
(virtual shards on one rank), gemm, allreduce, start (start-up time and size of the binary).

The two sides take turns, round after round (A B A B ...), so that a machine that slows down slows both.
A figure is the median over the rounds; a ratio is formed within each round and printed with its
smallest and largest value. PyTorch gets the fastest of its settings (memory format, optimizer
implementation, oneDNN, static graph), which are tried before the first round.

`--python` (or PHALANX_PEERS_PYTHON) names a Python that has torch; without it bench/peers/.venv is
used, which bench/peers/setup.sh makes. `--cold-build` also times `cargo build --release` into an empty
folder. `--update-results` writes the table into bench/RESULTS.md. The exit code is 0 only when
everything could be measured; a figure that misses its mark is printed, and is not an error.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import results

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GROUPS = ("step", "ranks", "shards", "gemm", "allreduce", "start")
MODELS = {"mlp": "MLP 784-512-10", "lenet5": "LeNet-5"}
BATCH = 128
RANKS = 2
MESSAGE = 100_000_000
GEMM = (512, 1024, 2048)
# The marks of the project: a bound on the ratio to PyTorch, or on our own figure.
STEP_MARK = {"mlp": 1.4, "lenet5": 1.2}
EFFICIENCY_MARK = {"mlp": 0.90, "lenet5": 0.95}


class Failure(Exception):
    """A measurement that could not be made, with what the user needs to see."""


# ---------------------------------------------------------------------------- the two sides


class Phalanx:
    """Our side: one process for each measurement."""

    def __init__(self, binary):
        self.binary = binary

    def bench(self, *args):
        return measured([str(self.binary), "bench", *map(str, args), "--json"])


def measured(command):
    """The JSON object that a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Failure(f"{shlex.join(command)}: {e}") from e
    if done.returncode != 0:
        raise Failure(f"{shlex.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    try:
        return json.loads(done.stdout)
    except ValueError as e:
        raise Failure(f"{shlex.join(command)}: no JSON object on standard output: {e}") from e


class Torch:
    """The peer: persistent workers, one for single runs and a group of `RANKS` for distributed ones."""

    def __init__(self, python, seconds):
        self.python, self.seconds = python, seconds
        self.groups, self.best, self.version = {}, {}, ""
        self.folder = tempfile.TemporaryDirectory()

    def start(self, world):
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        workers = []
        for rank in range(world):
            command = [str(self.python), str(HERE / "torch_step.py")]
            if world > 1:
                store = f"{self.folder.name}/store-{world}"
                command += ["--rank", str(rank), "--world", str(world), "--store", store]
            try:
                workers.append(
                    subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
                    )
                )
            except OSError as e:
                raise Failure(f"{shlex.join(command)}: {e}") from e
        self.groups[world] = workers
        self.version = self.answers(workers)["torch"]

    def answers(self, workers):
        """The answer of the slowest worker; all answer, or the group is broken."""
        # Ranks wait for each other: when one died, the other is ended instead of waited for.
        deadline = threading.Timer(300, lambda: [w.kill() for w in workers])
        deadline.start()
        lines = [w.stdout.readline() for w in workers]
        deadline.cancel()
        if not all(lines):
            raise Failure("a PyTorch worker ended or gave no answer in 300 s; see its message above, and setup.sh")
        parsed = [json.loads(line) for line in lines]
        if isinstance(parsed[0], dict) and "samples_per_second" in parsed[0]:
            return min(parsed, key=lambda a: a["samples_per_second"])
        return parsed[0]

    def ask(self, world, **request):
        if world not in self.groups:
            self.start(world)
        for worker in self.groups[world]:
            try:
                worker.stdin.write(json.dumps(request) + "\n")
                worker.stdin.flush()
            except OSError as e:
                raise Failure(f"a PyTorch worker is gone: {e}") from e
        return self.answers(self.groups[world])

    def steps(self, model, world):
        """Samples a second of all ranks together, with the best settings."""
        key = (model, world)
        if key not in self.best:
            self.best[key] = self.choose(model, world)
        variant, steps = self.best[key]
        return self.ask(world, what="step", model=model, batch=BATCH, variant=variant, steps=steps)

    def choose(self, model, world):
        """The fastest settings, and how many steps with them take about the wanted time."""

        def speed(variant, steps):
            request = {"what": "step", "model": model, "batch": BATCH, "variant": variant, "steps": steps}
            return self.ask(world, **request)["samples_per_second"]

        def steps(rate, seconds):
            return max(10, round(seconds * rate / BATCH / world))

        tried = []
        for variant in self.ask(world, what="variants", model=model):
            rate = speed(variant, 10)
            tried.append((speed(variant, steps(rate, self.seconds / 4)), variant))
        # Settings lie close together: the best three run once more before one is chosen.
        tried.sort(key=lambda t: t[0], reverse=True)
        finals = [(speed(v, steps(rate, self.seconds)), v) for rate, v in tried[:3]]
        rate, variant = max(finals, key=lambda t: t[0])
        return variant, steps(rate, self.seconds)

    def close(self):
        for workers in self.groups.values():
            for worker in workers:
                worker.stdin.close()
            for worker in workers:
                try:
                    worker.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    worker.kill()
        self.folder.cleanup()


# ---------------------------------------------------------------------------- what is measured


def measures(ours, peer, groups):
    """The measurements of a round in order: (name, function that returns a dictionary of figures)."""
    todo = []

    def both(name, a, b):
        todo.extend([(f"{name}.ours", a), (f"{name}.peer", b)])

    for model in MODELS:
        arguments = ("step", "--model", model, "--batch", BATCH, "--threads", 1)
        # The efficiency of two ranks needs the speed of one, measured in the same round.
        if "step" in groups or "ranks" in groups:
            both(f"step.{model}", lambda a=arguments: ours.bench(*a), lambda m=model: peer.steps(m, 1))
        if "ranks" in groups:
            both(
                f"ranks.{model}",
                lambda a=arguments: ours.bench(*a, "--ranks", RANKS),
                lambda m=model: peer.steps(m, RANKS),
            )
    if "shards" in groups:
        arguments = ("step", "--model", "lenet5", "--batch", 256, "--threads", 1, "--virtual-shards")
        todo.extend((f"shards.{v}", lambda v=v: ours.bench(*arguments, v)) for v in (1, 8))
    if "gemm" in groups:
        for size in GEMM:
            # Repeats for about a second at 100 GFLOP/s.
            repeats = max(5, round(1e11 / (2 * size**3)))
            both(
                f"gemm.{size}",
                lambda s=size: ours.bench("gemm", "--m", s, "--n", s, "--k", s, "--threads", 1),
                lambda s=size, r=repeats: peer.ask(1, what="gemm", m=s, n=s, k=s, repeats=r),
            )
    if "allreduce" in groups:
        both(
            "allreduce",
            lambda: ours.bench("allreduce", "--bytes", MESSAGE, "--ranks", RANKS),
            lambda: peer.ask(RANKS, what="allreduce", bytes=MESSAGE, repeats=10),
        )
    if "start" in groups:
        todo.append(("start", lambda: start_up(ours.binary)))
    return todo


def start_up(binary):
    """Milliseconds from the start of the process to its end; the first of the runs is not counted."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        try:
            subprocess.run([str(binary), "--version"], stdout=subprocess.DEVNULL, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as e:
            raise Failure(f"{binary} --version: {e}") from e
        times.append(1e3 * (time.perf_counter() - start))
    return {"start_ms": statistics.median(times[1:])}


def cold_build():
    """Seconds of a release build into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["cargo", "build", "--release", "--locked", "--target-dir", folder]
        # What has to be downloaded is not the build's time.
        subprocess.run(["cargo", "fetch", "--locked"], cwd=ROOT, check=True)
        start = time.perf_counter()
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise Failure("cargo build --release failed")
        return time.perf_counter() - start


# ---------------------------------------------------------------------------- rows of the table


class Row:
    """A line of the table: a figure of ours per round, one of the peer's, and the mark to reach."""

    def __init__(self, title, unit, ours, peer=None, at_least=None, at_most=None, own_mark=False):
        self.title, self.unit, self.ours, self.peer = title, unit, ours, peer
        self.at_least, self.at_most = at_least, at_most
        self.own_mark = own_mark or peer is None
        self.ratios = [a / b for a, b in zip(ours, peer)] if peer else []

    def judged(self):
        """The figure that the mark is about."""
        return statistics.median(self.ours if self.own_mark else self.ratios)

    def mark(self):
        bound, sign = (self.at_least, "≥") if self.at_least is not None else (self.at_most, "≤")
        if bound is None:
            return ""
        met = self.judged() >= bound if self.at_least is not None else self.judged() <= bound
        return f"{sign} {bound:g} {'met' if met else 'MISSED'}"

    def cells(self):
        ratio = ""
        if self.ratios:
            ratio = f"{statistics.median(self.ratios):.2f} ({min(self.ratios):.2f}–{max(self.ratios):.2f})"
        spread = "" if len(self.ours) < 2 or self.peer else f" ({number(min(self.ours))}–{number(max(self.ours))})"
        peer = number(statistics.median(self.peer)) if self.peer else ""
        return [self.title, self.unit, number(statistics.median(self.ours)) + spread, peer, ratio, self.mark()]

    def as_json(self):
        return {
            "title": self.title,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "ratios": self.ratios,
            "mark": self.mark(),
        }


def number(x):
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.1f}" if abs(x) >= 20 else f"{x:.2f}"


def rows(taken, binary, build_seconds):
    """The table from what was taken: `taken[name]` is a list of figures, one dictionary a round."""
    table = []

    def series(name, key):
        return [figures[key] for figures in taken.get(name, [])]

    def pair(name, key):
        return series(f"{name}.ours", key), series(f"{name}.peer", key)

    for model, title in MODELS.items():
        one = pair(f"step.{model}", "samples_per_second")
        if all(one):
            table.append(Row(f"{title}, b{BATCH}, 1 thread", "images/s", *one, at_least=STEP_MARK[model]))
        two = pair(f"ranks.{model}", "samples_per_second")
        if all(two) and all(one):
            table.append(Row(f"{title}, b{BATCH} on each of {RANKS} ranks", "images/s", *two))
            efficiency = [[b / (RANKS * a) for a, b in zip(*side)] for side in zip(one, two)]
            table.append(
                Row(
                    f"{title}, efficiency of {RANKS} ranks",
                    "of ideal",
                    *efficiency,
                    at_least=EFFICIENCY_MARK[model],
                    own_mark=True,
                )
            )
    whole, split = (series(f"shards.{v}", "samples_per_second") for v in (1, 8))
    if whole and split:
        table.append(
            Row("LeNet-5, b256, time with 8 virtual shards", "× 1 shard", [a / b for a, b in zip(whole, split)], at_most=1.35)
        )
    for size in GEMM:
        gemm = pair(f"gemm.{size}", "gflops")
        if all(gemm):
            table.append(Row(f"GEMM {size}³, 1 thread", "GFLOP/s", *gemm))
    bus = pair("allreduce", "bus_bandwidth_gb_s")
    if all(bus):
        table.append(Row(f"all-reduce of {MESSAGE // 10**6} MB, {RANKS} ranks, bus", "GB/s", *bus))
        memory, copy = (series("allreduce.ours", k) for k in ("memory_bandwidth_gb_s", "copy_gb_s"))
        table.append(Row("its memory traffic", "of a copy's", [a / b for a, b in zip(memory, copy)], at_least=0.6))
    if taken.get("start"):
        table.append(Row("start-up (`--version`)", "ms", series("start", "start_ms"), at_most=50))
        table.append(Row("binary", "MB", [binary.stat().st_size / 1e6], at_most=10))
    if build_seconds is not None:
        table.append(Row("cold `cargo build --release`", "s", [build_seconds], at_most=90))
    return table


def heads(peer):
    return ["case", "unit", "phalanx", peer, "ratio (range)", "mark"]


def plain(table, peer="PyTorch"):
    cells = [heads(peer)] + [row.cells() for row in table]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in cells)


def markdown(title, table, note, peer="PyTorch"):
    lines = ["| " + " | ".join(heads(peer)) + " |", "| --- | --- | ---: | ---: | --- | --- |"]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in table]
    return f"## {title}\n\n{note}\n\n" + "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------- the run


def read_arguments(description, kind, names, *, rounds, seconds, python, json, flags=()):
    """The options of a script that measures in rounds, checked. `--only` picks some of `names`, each a `kind`, which
    `args.only_names` lists; `flags` are the script's own options, each with its help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", default=",".join(names), help=f"{kind}s, separated by commas: " + ", ".join(names))
    parser.add_argument("--seconds", type=float, default=2.0, help=seconds)
    parser.add_argument("--python", default=os.environ.get("PHALANX_PEERS_PYTHON"), help=python)
    parser.add_argument("--phalanx", default=ROOT / "target/release/phalanx", type=pathlib.Path)
    parser.add_argument("--json", default=ROOT / "target" / json, type=pathlib.Path, metavar="FILE")
    for flag, about in flags:
        parser.add_argument(flag, action="store_true", help=about)
    parser.add_argument("--update-results", action="store_true", help="write bench/RESULTS.md")
    args = parser.parse_args()
    args.only_names = [n for n in args.only.split(",") if n]
    if unknown := [n for n in args.only_names if n not in names]:
        parser.error(f"no {kind} `{unknown[0]}`; there are {', '.join(names)}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    args.python = args.python or HERE / ".venv/bin/python"
    args.phalanx = args.phalanx.resolve()
    if not args.phalanx.exists():
        parser.error(f"{args.phalanx} does not exist: run `cargo build --release` first")
    return args


def arguments():
    return read_arguments(
        "Phalanx beside PyTorch; see the top of this file.", "group", GROUPS, rounds=7, json="peers.json",
        seconds="length of one measurement of PyTorch's steps", python="a Python that has torch",
        flags=[("--cold-build", "time a release build from nothing")],
    )


def command_line(args):
    """The command that repeats this run, without what is true on this machine only."""
    parts = ["bench/peers/run.py", "--rounds", str(args.rounds)]
    if args.only_names != list(GROUPS):
        parts += ["--only", ",".join(args.only_names)]
    if args.cold_build:
        parts.append("--cold-build")
    return " ".join(parts)


def main():
    args = arguments()
    ours, peer = Phalanx(args.phalanx), Torch(args.python, args.seconds)
    taken, broken, build_seconds = {}, {}, None
    try:
        if args.cold_build:
            build_seconds = cold_build()
        todo = measures(ours, peer, args.only_names)
        for i in range(args.rounds):
            for name, measure in todo:
                if name in broken:
                    continue
                try:
                    taken.setdefault(name, []).append(measure())
                except Failure as e:
                    broken[name] = str(e)
                    taken.pop(name, None)
            print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    except Failure as e:
        broken["build"] = str(e)
    finally:
        peer.close()
    table = rows(taken, args.phalanx, build_seconds)
    settings = {f"{model}, {world} rank(s)": best[0] for (model, world), best in peer.best.items()}
    cpu, cores = results.machine()
    report = {
        "command": command_line(args),
        "cpu": cpu,
        "cores": cores,
        "python": platform.python_version(),
        "torch": peer.version,
        "torch_settings": settings,
        "rows": [row.as_json() for row in table],
        "rounds": taken,
        "broken": broken,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(plain(table))
    for case, variant in settings.items():
        print(f"PyTorch's best settings for {case}: {', '.join(f'{k}={v}' for k, v in variant.items())}")
    for name, why in broken.items():
        print(f"NOT MEASURED {name}: {why}")
    if args.update_results and not broken:
        version = f", PyTorch {peer.version.split('+')[0]}" if peer.version else ""
        note = results.provenance(command_line(args), f"{version}, medians of {args.rounds} rounds")
        results.put("peers", markdown("Beside PyTorch", table, note))
    elif args.update_results:
        print("bench/RESULTS.md is left as it was: not everything could be measured")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
