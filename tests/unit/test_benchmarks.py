"""The benchmarks as `make bench` calls them: one set of arguments for all."""

import importlib
import re
from pathlib import Path

import pytest

from benchmarks import pages, startup
from benchmarks.stack import PARTS

RECIPE = re.search(r"^bench:.*\n((?:\t.*\n)+)", (pages.DOCS.parent / "Makefile").read_text(), re.MULTILINE)
MODULES = re.findall(r"-m (\S+)", RECIPE[1] if RECIPE else "")


def test_make_bench_measures_something() -> None:
    """The test below would hold of nothing at all."""
    assert {"benchmarks.startup", "benchmarks.serving"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_can_write_its_page(module: str) -> None:
    """`make bench ARGS=--write` ended at the first one that did not know the word."""
    name = module if module == "benchmarks.startup" else f"{module}.__main__"
    options = importlib.import_module(name)._options
    assert options(["--write", "--quick", "--only", "startup"]).write
    assert not options([]).write


def test_start_up_touches_its_page_only_when_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A look at the figures of a busy machine would replace those of a quiet one."""
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- startup:begin -->\nof yesterday\n<!-- startup:end -->\nafter\n")
    start = startup.Start(6.5, dict.fromkeys(PARTS, 2.0), 1.5)
    monkeypatch.setattr(startup, "_PAGE", page)
    monkeypatch.setattr(startup, "_measure", lambda *_, **__: (start, {}))
    assert startup.main(["--runs", "1"]) == 0
    assert "of yesterday" in page.read_text()
    assert startup.main(["--runs", "1", "--write"]) == 0
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "| command to table, everything ready | 6.5 | 6.5 | 6.5 | 6.5 |" in written
    assert "of yesterday" not in written
