"""The run as a picture: everybody's requests per second, and our latency as the load grows."""

import re
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving.candidates import OURS
from benchmarks.serving.results import Closed, OpenLoops, Results

_OURS_COLOUR, _PEER_COLOUR, _CEILING_COLOUR = "#2a6f97", "#9aa5b1", "#d5dbe1"
_CONNECTIONS = 32


def draw(results: Results, file: Path) -> bool:
    """Write an SVG; whether there was anything to draw."""
    closed = next((each for each in results.closed if each.model == "logistic" and each.found), None)
    count = int(closed is not None) + int(bool(results.open))
    if not count:
        return False
    import matplotlib as mpl  # comes with MLflow; slow to import

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "switchyard"  # the same figures, the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(6.2 * count, 4.2), squeeze=False, layout="constrained")
    free = list(axes[0])
    if closed is not None:
        _bars(free.pop(0), closed)
    if results.open:
        _curves(free.pop(0), results.open)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
    file.write_text(re.sub(r"[ \t]+$", "", file.read_text(), flags=re.MULTILINE))
    return True


def _bars(axes: Any, closed: Closed) -> None:
    rates = {
        name: median(each.load.rate for each in rounds.values())
        for (name, connections), rounds in closed.found.items()
        if connections == _CONNECTIONS
    }
    names = sorted(rates, key=rates.__getitem__)
    colours = [
        _OURS_COLOUR if name == OURS else _CEILING_COLOUR if name in closed.ceilings else _PEER_COLOUR for name in names
    ]
    bars = axes.barh([closed.titles[name] for name in names], [rates[name] for name in names], color=colours)
    axes.bar_label(bars, [f"{rates[name]:,.0f}" for name in names], padding=3, fontsize=8)
    axes.set_title(f"Logistic regression, {_CONNECTIONS} connections: requests/s", fontsize=10, loc="left")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _curves(axes: Any, loops: list[OpenLoops]) -> None:
    for number, each in enumerate(loops):
        shares = sorted(each.shares)
        colour = f"C{number}"
        name = each.title.split(",", 1)[0].split(":", 1)[0]
        for line, of in (("-", "p50"), (":", "p99")):
            times = [getattr(each.shares[share].load, of) * 1e3 for share in shares]
            axes.plot(
                [share * 100 for share in shares], times, line, color=colour, marker="o", ms=3, label=f"{name}, {of}"
            )
    axes.set_yscale("log")
    axes.set_title("Switchyard, open loop: ms by % of its maximum", fontsize=10, loc="left")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
