"""PyTorch DDP between the nodes of a Slurm step, measured on request: the peer of run.py.

usage: srun -N2 --ntasks-per-node=1 ddp.py --meet HOST:PORT [--interface NAME]

Every task is a rank of one thread. They meet at a free port of rank 0's host, and Gloo uses the interface named. srun gives each its standard
input: one request a line, JSON; rank 0 answers with one line, JSON. The figures are those of the slowest rank.

    {"what": "step", "model": "mlp"|"mlp11m", "batch": N, "variant": {...}, "steps": N}
    {"what": "variants", "model": NAME}      those of ../peers/torch_step.py, with the size of a bucket
    {"what": "forget"}                       networks and batches of earlier requests

The work is that of ../peers/torch_step.py: forward, cross-entropy, backward and SGD with momentum, with the
batch in memory. The end of the input ends it.
"""

import argparse
import json
import os
import pathlib
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import torch_step  # noqa: E402

# DDP's own size is 25 MB; smaller ones start earlier and overlap better on a slow link.
BUCKETS_MB = (25, 5)


def mlp11m():
    """784-2048-2048-2048-512-10: 11.05 million parameters, 44 MB of gradients."""
    widths = [784, 2048, 2048, 2048, 512]
    layers = [nn.Flatten()]
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], torch_step.CLASSES))


torch_step.MODELS["mlp11m"] = mlp11m


def variants(request):
    # The memory format is nothing to a network without convolutions.
    plain = [v for v in torch_step.variants(request["model"]) if not v["channels_last"]]
    return [{**v, "bucket_mb": size} for v in plain for size in BUCKETS_MB]


def step(request):
    mine = torch_step.step(request)
    slowest = torch.tensor([mine["step_ms_p50"], -mine["samples_per_second"]], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return {"step_ms_p50": slowest[0].item(), "samples_per_second": -slowest[1].item()}


def forget(_):
    torch_step.READY.clear()
    return {}


def main():
    parser = argparse.ArgumentParser(description="DDP worker of run.py; see the top of this file.")
    parser.add_argument("--meet", required=True, metavar="HOST:PORT")
    parser.add_argument("--interface", default="eth0", help="the network between the nodes")
    args = parser.parse_args()
    # Said once a process by the switch of oneDNN; about graphics cards.
    warnings.filterwarnings("ignore", message=".*TF32 acceleration.*")
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = args.interface
    rank, world = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    dist.init_process_group("gloo", init_method=f"tcp://{args.meet}", rank=rank, world_size=world)
    answer = {"variants": variants, "step": step, "forget": forget}

    def say(what):
        if rank == 0:
            print(json.dumps(what), flush=True)

    say({"torch": torch.__version__, "ranks": world})
    for line in sys.stdin:
        request = json.loads(line)
        say(answer[request["what"]](request))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
