#!/usr/bin/env python3
"""Puts a measured section into bench/RESULTS.md.

usage: results.py SECTION < section.md

The section stands between `<!-- SECTION:begin -->` and `<!-- SECTION:end -->`, which are added at the
end of the file when they are missing. What stands outside of them is left alone.
"""

import datetime
import os
import pathlib
import sys

FILE = pathlib.Path(__file__).resolve().parents[1] / "RESULTS.md"
HEAD = "# Measured results\n\nEach section is written by the command that it names. Ratios are from one run; absolute\nfigures drift from day to day.\n"


def machine():
    """The processor's name and the number of cores this process may use."""
    cpu = "unknown processor"
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cpu, cores


def provenance(command, extra=""):
    """The line that says when, where and how a section was measured."""
    cpu, cores = machine()
    return f"{datetime.date.today().isoformat()}, {cpu}, {cores} cores{extra}; `{command}`"


def put(section, text):
    """Replaces the section of that name, or appends it."""
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    old = FILE.read_text() if FILE.exists() else HEAD
    block = f"{begin}\n{text.strip()}\n{end}"
    if begin in old and end in old:
        head, rest = old.split(begin, 1)
        tail = rest.split(end, 1)[1]
        new = head + block + tail
    else:
        new = old.rstrip() + "\n\n" + block + "\n"
    FILE.write_text(new)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    put(sys.argv[1], sys.stdin.read())
