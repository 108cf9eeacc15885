"""Where the time goes: py-spy looks at every process of the data plane while it is saturated.

    python -m benchmarks.serving.profile [--seconds N] [--model NAME ...] [--write]

Samples are counted by layer, and turned into microseconds of processor time a request. Waiting is not counted. With
--write the tables go into docs/performance.md. Status 1 when py-spy may not look, which it says itself: it needs ptrace.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import pages
from benchmarks.serving.candidates import Running
from benchmarks.serving.layers import PARTS, layers, parse
from benchmarks.serving.load import run_closed
from benchmarks.serving.measure import Generator, be_quiet, ready
from benchmarks.serving.models import MODELS, BenchModel
from benchmarks.serving.ours import switchyard
from benchmarks.serving.outcome import Load
from benchmarks.serving.wrk import find_wrk, run_wrk
from benchmarks.waiting import interruptible

_PAGE = pages.DOCS / "performance.md"
_RATE = 25  # samples a second of each process; at 200 py-spy takes more of the machine than what it looks at
_CONNECTIONS = 32
_MARGIN_SECONDS = 3.0  # of load around the time that is looked at
_GUARD = 60.0
_HEAD = ("part", "layer", "us/request", "share of the part")


class NotAllowed(Exception):
    """py-spy may not look into other processes here, or is not there; in its own words."""


@dataclass(frozen=True)
class Profile:
    """One model's."""

    title: str
    load: Load
    seconds: float  # that were looked at
    samples: dict[tuple[str, str], int]  # part, layer -> samples

    def microseconds(self, count: int) -> float:
        """Processor time a request that so many samples stand for."""
        return count / _RATE / (self.load.rate * self.seconds) * 1e6


def main(arguments: Sequence[str]) -> int:
    """Look, print, perhaps write the page; the exit status."""
    options = _options(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        with interruptible():
            profiles = [_profile(MODELS[name](), options.seconds) for name in options.model]
    except NotAllowed as problem:
        console.print(f"no profile: {problem}", markup=False)
        return 1
    text = _section(profiles, arguments)
    console.print(text, markup=False)
    if options.write:
        pages.write_section(_PAGE, "profile", text)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.profile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="that are looked at, for each model (default: 20)")
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=["logistic", "flights"])
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    return parser.parse_args(arguments)


def _profile(model: BenchModel, seconds: float) -> Profile:
    generator: Generator = run_wrk if find_wrk() else run_closed
    with tempfile.TemporaryDirectory() as folder, ready(switchyard(), model, generator) as server:
        be_quiet(server)
        file = Path(folder) / "stacks.txt"
        spy = _look(server, seconds, file)
        try:
            load = generator(server.target, _CONNECTIONS, seconds + _MARGIN_SECONDS)
            said, _ = spy.communicate(timeout=_GUARD)
        finally:
            if spy.poll() is None:
                spy.kill()
                spy.communicate()
        if spy.returncode or not file.exists():
            raise NotAllowed(" ".join(said.split())[-400:])
        return Profile(model.title, load, seconds, layers(parse(file.read_text().splitlines())))


def _look(server: Running, seconds: float, file: Path) -> "subprocess.Popen[str]":
    command = [
        str(Path(sys.executable).with_name("py-spy")), "record", "--subprocesses", "--nonblocking", "--full-filenames",
        "--pid", str(server.process.pid), "--rate", str(_RATE), "--duration", str(round(seconds)),
        "--format", "raw", "--output", str(file),
    ]  # fmt: skip
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as problem:
        raise NotAllowed(str(problem)) from problem


def _section(profiles: Sequence[Profile], arguments: Sequence[str]) -> str:
    parts = [
        pages.measured_on("benchmarks.serving.profile", arguments),
        f"py-spy, {_RATE} samples a second of every process of the data plane, {_CONNECTIONS} connections, everything "
        "on and traffic split between two versions; waiting is not counted. A library counts for the layer that called "
        "it. Being looked at costs time too: compare shares, and take the throughput from the tables above.",
    ]
    for each in profiles:
        parts += [f"### {each.title}, at {each.load.rate:,.0f} requests/s", pages.table(_HEAD, list(_rows(each)))]
    return "\n\n".join(parts)


def _rows(profile: Profile) -> Iterator[tuple[str, str, str, str]]:
    for part in PARTS:
        found = {layer: count for (of, layer), count in profile.samples.items() if of == part}
        whole = sum(found.values())
        if not whole:
            continue
        core = whole / _RATE / profile.seconds
        yield f"**{part}**", f"{core:.2f} of a core", f"**{profile.microseconds(whole):.1f}**", ""
        for layer, count in sorted(found.items(), key=lambda each: -each[1]):
            yield "", layer, f"{profile.microseconds(count):.1f}", f"{count / whole:.0%}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
