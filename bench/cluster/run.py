#!/usr/bin/env python3
"""Measures ranks as processes: on two Slurm nodes beside PyTorch DDP, on one machine beside a bare MPI_Allreduce.

usage: run.py [--rounds N] [--only GROUP,...] [--rates RATE,...] [--seconds S] [--more=ARGUMENTS]
              [--python PYTHON] [--phalanx BINARY] [--json FILE] [--update-results]

Groups: links (training steps on two nodes over a link of each rate), allreduce (2 and 4 ranks by mpirun), ranks
(the efficiency of two ranks by mpirun).

The two nodes are those of tests/cluster, which this starts and removes unless SLURM_CONF is set already. All
sides take turns, round after round, as in bench/peers/run.py, which also says what rounds, ratios and marks are.

What a step over a link is measured against: the larger of two times. One is the compute of a rank alone (both
nodes at once, no communication) plus an all-reduce of as many bytes over the unlimited link, which is the processor
time that communication costs. The other is the bytes on the wire by the rate of the link.

`--phalanx` is the binary with the feature `mpi`: CARGO_TARGET_DIR=target/mpi cargo build --release -p phalanx
--features mpi. `--python` (or PHALANX_PEERS_PYTHON) names a Python that has torch; see bench/peers/setup.sh.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# `peers.run` is bench/peers/run.py; it finds `results` beside itself.
sys.path += [str(HERE.parent), str(HERE.parent / "peers")]
import results  # noqa: E402
from peers.run import Failure, Row, Torch, markdown, measured, plain  # noqa: E402

GROUPS = ("links", "allreduce", "ranks")
NODES = 2
BATCH = 128
# Bits a second of the link, by the name that tc has for it.
RATES = {"1gbit": 1e9, "2500mbit": 2.5e9, "5gbit": 5e9}
SIZES = {1_000: "1 KB", 64_000: "64 KB", 4_000_000: "4 MB", 32_000_000: "32 MB", 100_000_000: "100 MB"}
WORLDS = (2, 4)
LARGE = 4_000_000
SMALL = 1_000
# The marks of the project.
BOUND_MARK, SPEEDUP_MARK = 1.15, 1.2
LARGE_MARK, SMALL_MARK_US = 0.95, 20
EFFICIENCY_MARK = {"mlp": 0.80, "lenet5": 0.95}
# Root may start Open MPI's ranks, and several may share a core.
MPIRUN_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of both sides: how `phalanx bench step` is told of it, and how large its gradients are."""

    title: str
    arguments: tuple
    parameters: int

    @property
    def bytes(self):
        return 4 * self.parameters


LINK_MODELS = {
    "mlp": Model("MLP 784-512-10", ("--model", "mlp"), 407_050),
    "mlp11m": Model("MLP of 11 M", ("--model", "mlp", "--hidden", "2048,2048,2048,512"), 11_054_602),
}
RANK_MODELS = {"mlp": "MLP 784-512-10", "lenet5": "LeNet-5"}


# ---------------------------------------------------------------------------- how things are started


def rate(name):
    """Limits what each node sends to `name`, or to nothing by `off`."""
    script = f". tests/cluster/lib.sh && for n in $(seq {NODES}); do rate $n {name} || exit 1; done"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"the links cannot be limited to {name}: {done.stderr.strip()}")


def srun(nodes, *options):
    """The words that start one rank on each of the nodes, which are numbered from 1."""
    names = ",".join(f"phx{n}" for n in nodes)
    return ["srun", f"--nodelist={names}", f"--nodes={len(nodes)}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", *options]


def bench(binary, *arguments):
    return [str(binary), "bench", *map(str, arguments), "--json"]


class Nodes:
    """Our side on the two nodes."""

    def __init__(self, binary, seconds, more):
        self.binary, self.seconds, self.more = binary, seconds, more
        self.all = range(1, NODES + 1)

    def step_words(self, model, *options):
        arguments = LINK_MODELS[model].arguments + ("--batch", BATCH, "--threads", 1, "--seconds", self.seconds)
        return bench(self.binary, "step", *arguments, *options, *self.more)

    def step(self, model, *options):
        """A data-parallel step over the link."""
        return measured(srun(self.all, "--mpi=pmix") + self.step_words(model, *options))

    def alone(self, model):
        """A step without communication, on every node at once: the slower one."""
        with concurrent.futures.ThreadPoolExecutor(NODES) as pool:
            lines = [srun([n], "--mpi=pmix") + self.step_words(model) for n in self.all]
            return max(pool.map(measured, lines), key=lambda r: r["step_ms_p50"])

    def all_reduce(self, size):
        return measured(srun(self.all, "--mpi=pmix") + bench(self.binary, "allreduce", "--bytes", size))


class Ddp:
    """PyTorch on the two nodes: one step of Slurm that stays, and measures on request."""

    def __init__(self, python, seconds):
        self.python, self.seconds, self.process, self.version = python, seconds, None, ""
        self.local, self.best = {}, {}

    def start(self):
        command = srun(range(1, NODES + 1), "--mpi=none", str(self.python), str(HERE / "ddp.py"), "--meet", "phx1:29400")
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
            )
        except OSError as e:
            raise Failure(f"{shlex.join(command)}: {e}") from e
        self.version = self.answer()["torch"]

    def answer(self):
        deadline = threading.Timer(300, self.process.kill)
        deadline.start()
        line = self.process.stdout.readline()
        deadline.cancel()
        if not line:
            raise Failure("PyTorch DDP ended or gave no answer in 300 s; see its message above, and bench/peers/setup.sh")
        return json.loads(line)

    def ask(self, **request):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError as e:
            raise Failure(f"PyTorch DDP is gone: {e}") from e
        return self.answer()

    def timed(self, model, variant, steps):
        return self.ask(what="step", model=model, batch=BATCH, variant=variant, steps=steps)

    def prefer(self, model):
        """To be called while the link is unlimited: the fastest optimizer and kernels. The others need no second look."""
        variants = self.ask(what="variants", model=model)
        first = [v for v in variants if not v["static_graph"] and v["bucket_mb"] == variants[0]["bucket_mb"]]
        fastest = min(first, key=lambda v: self.timed(model, v, 10)["step_ms_p50"])
        same = ("optimizer", "onednn", "channels_last")
        self.local[model] = [v for v in variants if all(v[k] == fastest[k] for k in same)]
        self.ask(what="forget")

    def plain_step(self, model):
        """A step as most scripts have it, with nothing chosen."""
        plain = {"optimizer": "foreach", "onednn": True, "channels_last": False, "static_graph": False, "bucket_mb": 25}
        return self.timed(model, plain, 20)

    def step(self, model, link):
        """A step over the link as it is now, with what is best at that rate: size of a bucket, static graph."""
        if (model, link) not in self.best:
            tried = [(self.timed(model, v, 10), v) for v in self.local[model]]
            took, variant = min(tried, key=lambda t: t[0]["step_ms_p50"])
            self.best[model, link] = variant, max(10, round(self.seconds * 1e3 / took["step_ms_p50"]))
            self.ask(what="forget")
        variant, steps = self.best[model, link]
        return self.timed(model, variant, steps)

    def close(self):
        if self.process is None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class OneMachine:
    """Our side and the bare program under mpirun."""

    def __init__(self, binary, seconds):
        self.binary, self.seconds, self.bare = binary, seconds, ROOT / "target" / "allreduce"
        os.environ.update(MPIRUN_ENVIRONMENT)

    def build(self):
        command = ["mpicc.openmpi", "-O2", "-o", str(self.bare), str(HERE / "allreduce.c")]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            raise Failure(f"{shlex.join(command)}: {e}") from e

    def mpirun(self, ranks, words):
        return measured(["mpirun.openmpi", "-n", str(ranks), *words])

    @staticmethod
    def rounds(size):
        """As many as take a second or two."""
        return max(11, min(2000, round(1e9 / size)))

    def bare_all_reduce(self, ranks, size):
        return self.mpirun(ranks, [str(self.bare), str(size), str(self.rounds(size))])

    def all_reduce(self, ranks, size):
        return self.mpirun(ranks, bench(self.binary, "allreduce", "--bytes", size, "--rounds", self.rounds(size)))

    def step(self, ranks, model):
        arguments = ("step", "--model", model, "--batch", BATCH, "--threads", 1, "--seconds", self.seconds)
        return self.mpirun(ranks, bench(self.binary, *arguments))


# ---------------------------------------------------------------------------- what is measured


def measures(args, nodes, ddp, machine, torch):
    """The measurements of a round in order: (name, function that returns a dictionary of figures)."""
    todo = []
    if "links" in args.groups:
        link_measures(args, nodes, ddp, todo)
    if "allreduce" in args.groups:
        for ranks in WORLDS:
            for size in SIZES:
                name = f"allreduce.{ranks}.{size}"
                todo.append((f"{name}.peer", lambda r=ranks, s=size: machine.bare_all_reduce(r, s)))
                todo.append((f"{name}.ours", lambda r=ranks, s=size: machine.all_reduce(r, s)))
    if "ranks" in args.groups:
        for model in RANK_MODELS:
            for ranks in (1, 2):
                todo.append((f"ranks.{model}.{ranks}.ours", lambda r=ranks, m=model: machine.step(r, m)))
                todo.append((f"ranks.{model}.{ranks}.peer", lambda r=ranks, m=model: torch.steps(m, r)))
    return todo


def link_measures(args, nodes, ddp, todo):
    def at(link, measure):
        rate(link)
        return measure()

    for model in LINK_MODELS:
        size = LINK_MODELS[model].bytes
        todo.append((f"alone.{model}", lambda m=model: at("off", lambda: nodes.alone(m))))
        todo.append((f"cpu.{model}", lambda s=size: at("off", lambda: nodes.all_reduce(s))))
        for link in args.rates:
            todo.append((f"link.{model}.{link}.ours", lambda m=model, r=link: at(r, lambda: nodes.step(m))))
            narrow = ("--wire", "bf16")
            todo.append((f"link.{model}.{link}.narrow", lambda m=model, r=link: at(r, lambda: nodes.step(m, *narrow))))
            todo.append((f"link.{model}.{link}.peer", lambda m=model, r=link: at(r, lambda: ddp.step(m, r))))
            todo.append((f"link.{model}.{link}.plain", lambda m=model, r=link: at(r, lambda: ddp.plain_step(m))))


def take(args, todo, prepare):
    """All rounds: what was measured by name, and why what could not be."""
    taken, broken = {}, {}
    try:
        prepare()
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
        broken["preparation"] = str(e)
    return taken, broken


# ---------------------------------------------------------------------------- tables


def tables(args, taken):
    """Of each group that was measured: title, the peer's name, and rows."""

    def series(name, key):
        return [figures[key] for figures in taken.get(name, [])]

    found = []
    if links := link_rows(args, series):
        found.append(("Two Slurm nodes over a shaped link", "PyTorch DDP", links))
    if reduced := all_reduce_rows(series):
        found.append(("All-reduce on one machine, by mpirun", "MPI_Allreduce", reduced))
    if ranks := rank_rows(series):
        found.append(("Two ranks on two cores, by mpirun", "PyTorch DDP", ranks))
    return found


def link_rows(args, series):
    rows = []
    for model, about in LINK_MODELS.items():
        alone = series(f"alone.{model}", "step_ms_p50")
        cpu = [1e3 * s for s in series(f"cpu.{model}", "seconds_p50")]
        if alone and cpu:
            rows.append(Row(f"{about.title}, b{BATCH}: compute alone", "ms", alone))
            rows.append(Row(f"{about.title}: all-reduce, link unlimited", "ms", cpu))
        for link in args.rates:
            name = f"link.{model}.{link}"
            title = f"{about.title}, b{BATCH}, {RATES[link] / 1e9:g} Gbit/s"
            ours, peer, default = (series(f"{name}.{side}", "samples_per_second") for side in ("ours", "peer", "plain"))
            if ours and peer:
                rows.append(Row(title, "images/s", ours, peer, at_least=SPEEDUP_MARK))
            if ours and default:
                rows.append(Row(f"{title}, DDP with its defaults", "images/s", ours, default))
            narrow = series(f"{name}.narrow", "samples_per_second")
            if narrow and peer:
                rows.append(Row(f"{title}, ours with bf16 on the wire", "images/s", narrow, peer))
            if ours:
                rows.append(Row(f"{title}: CPU time of a step", "ms", series(f"{name}.ours", "cpu_ms")))
            steps = series(f"{name}.ours", "step_ms_p50")
            if steps and alone and cpu:
                # A rank sends and receives 2 (W − 1) / W of its bytes.
                wire = 2 * (NODES - 1) / NODES * about.bytes * 8e3 / RATES[link]
                bounds = [max(a + c, wire) for a, c in zip(alone, cpu)]
                bounded = [s / b for s, b in zip(steps, bounds)]
                rows.append(Row(f"{title}: step ÷ max(compute + communication, wire)", "", bounded, at_most=BOUND_MARK))
    return rows


def all_reduce_rows(series):
    rows = []
    for ranks in WORLDS:
        for size, title in SIZES.items():
            name = f"allreduce.{ranks}.{size}"
            bus = [series(f"{name}.{side}", "bus_bandwidth_gb_s") for side in ("ours", "peer")]
            times = [series(f"{name}.{side}", "seconds_p50") for side in ("ours", "peer")]
            if not all(times):
                continue
            if size >= LARGE:
                rows.append(Row(f"{title}, {ranks} ranks, bus", "GB/s", *bus, at_least=LARGE_MARK))
                continue
            micro = [[1e6 * s for s in side] for side in times]
            rows.append(Row(f"{title}, {ranks} ranks, time", "µs", *micro))
            if size == SMALL:
                above = [a - b for a, b in zip(*micro)]
                rows.append(Row(f"{title}, {ranks} ranks, above the peer", "µs", above, at_most=SMALL_MARK_US))
    return rows


def rank_rows(series):
    rows = []
    for model, title in RANK_MODELS.items():
        speeds = [
            [series(f"ranks.{model}.{ranks}.{side}", "samples_per_second") for ranks in (1, 2)] for side in ("ours", "peer")
        ]
        if all(all(side) for side in speeds):
            efficiency = [[b / (2 * a) for a, b in zip(*side)] for side in speeds]
            mark = EFFICIENCY_MARK[model]
            rows.append(Row(f"{title}, b{BATCH} each, efficiency", "of ideal", *efficiency, at_least=mark, own_mark=True))
    return rows


# ---------------------------------------------------------------------------- the run


def arguments():
    parser = argparse.ArgumentParser(description="Ranks as processes; see the top of this file.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, separated by commas: " + ", ".join(GROUPS))
    parser.add_argument("--rates", default=",".join(RATES), help="of the link, separated by commas: " + ", ".join(RATES))
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement of steps")
    parser.add_argument("--more", default="", metavar="ARGUMENTS", help="for our steps over the link, as '--wire bf16'")
    parser.add_argument("--python", default=os.environ.get("PHALANX_PEERS_PYTHON"), help="a Python that has torch")
    parser.add_argument(
        "--phalanx", default=os.environ.get("PHALANX_MPI", ROOT / "target/mpi/release/phalanx"), type=pathlib.Path
    )
    parser.add_argument("--json", default=ROOT / "target/cluster.json", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--update-results", action="store_true", help="write bench/RESULTS.md")
    args = parser.parse_args()
    args.groups = [g for g in args.only.split(",") if g]
    args.rates = [r for r in args.rates.split(",") if r]
    for given, known, what in ((args.groups, GROUPS, "group"), (args.rates, RATES, "rate")):
        if unknown := [g for g in given if g not in known]:
            parser.error(f"no {what} `{unknown[0]}`; there are {', '.join(known)}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    args.python = args.python or HERE.parent / "peers/.venv/bin/python"
    args.phalanx = args.phalanx.resolve()
    if not args.phalanx.exists():
        parser.error(f"{args.phalanx} does not exist; the top of this file says how it is built")
    return args


def command_line(args):
    """The command that repeats this run, without what is true on this machine only."""
    parts = ["bench/cluster/run.py", "--rounds", str(args.rounds)]
    if args.groups != list(GROUPS):
        parts += ["--only", ",".join(args.groups)]
    if args.rates != list(RATES):
        parts += ["--rates", ",".join(args.rates)]
    if args.more:
        parts.append(f"--more={shlex.quote(args.more)}")
    return " ".join(parts)


def with_cluster(args):
    """Becomes the same command inside a cluster, unless it needs none or has one."""
    if "links" in args.groups and "SLURM_CONF" not in os.environ:
        wrapper = str(ROOT / "tests/cluster/with")
        os.execv(wrapper, [wrapper, sys.executable, *sys.argv])


def main():
    args = arguments()
    with_cluster(args)
    nodes, ddp = Nodes(args.phalanx, args.seconds, shlex.split(args.more)), Ddp(args.python, args.seconds)
    machine, torch = OneMachine(args.phalanx, args.seconds), Torch(args.python, args.seconds)

    def prepare():
        if "allreduce" in args.groups:
            machine.build()
        if "links" in args.groups:
            rate("off")
            for model in LINK_MODELS:
                ddp.prefer(model)

    try:
        taken, broken = take(args, measures(args, nodes, ddp, machine, torch), prepare)
    finally:
        ddp.close()
        torch.close()
    found = tables(args, taken)
    settings = {f"{model} at {link}": variant for (model, link), (variant, _) in ddp.best.items()}
    cpu, cores = results.machine()
    version = ddp.version or torch.version
    report = {
        "command": command_line(args),
        "cpu": cpu,
        "cores": cores,
        "python": platform.python_version(),
        "torch": version,
        "torch_settings": settings,
        "tables": {title: [row.as_json() for row in rows] for title, _, rows in found},
        "rounds": taken,
        "broken": broken,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for title, peer, rows in found:
        print(f"{title}\n{plain(rows, peer)}\n")
    for case, variant in settings.items():
        print(f"PyTorch's best settings for {case}: {', '.join(f'{k}={v}' for k, v in variant.items())}")
    for name, why in broken.items():
        print(f"NOT MEASURED {name}: {why}")
    if args.update_results and not broken:
        extra = f", PyTorch {version.split('+')[0]}" if version else ""
        note = results.provenance(command_line(args), f"{extra}, medians of {args.rounds} rounds")
        results.put("cluster", "\n".join(markdown(title, rows, note, peer) for title, peer, rows in found))
    elif args.update_results:
        print("bench/RESULTS.md is left as it was: not everything could be measured")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
