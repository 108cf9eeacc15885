"""Figures in documentation pages: sections between markers, rewritten by the commands that measure them."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

DOCS = Path(__file__).resolve().parents[1] / "docs"


def read_section(page: Path, name: str) -> str:
    """What stands between the markers of `name`; empty where there is no such section."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    _, found, rest = page.read_text(encoding="utf-8").partition(begin)
    return rest.partition(end)[0] if found else ""


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name`; the rest of the page stays as it is.

    Raises:
        ValueError: the page does not have exactly one such section.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = page.read_text(encoding="utf-8")
    section = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    new, count = section.subn(lambda _: f"{begin}\n\n{text.strip()}\n\n{end}", old)
    if count != 1:
        raise ValueError(f"{page.name} has {count} sections between {begin} and {end}; there must be one")
    beside = page.with_suffix(".new")
    beside.write_text(new, encoding="utf-8")
    beside.replace(page)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, figures to the right."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def measured_on(module: str, arguments: Sequence[str]) -> str:
    """When, on what machine and with which command, in one sentence that names no machine."""
    command = shlex.join(["python", "-m", module, *arguments])
    return f"Measured on {datetime.now(UTC):%Y-%m-%d} with `{command}` on {_machine()}."


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}"
    return f"{cores} cores, {memory:.0f} GiB of memory, {system}, Python {platform.python_version()}"
