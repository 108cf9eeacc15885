"""`switchyard demo`: a house of its own, filled with real flights."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from control_plane.errors import DemoFailed
from control_plane.settings import Settings, environment_of

CHECKOUT = Path(__file__).resolve().parents[1]
MODEL = "flights"
# What is trained, in this order: the champion, and the challenger that has seen a summer's first month.
TRAININGS = (("--months", "1-3", "--alias", "champion"), ("--months", "1-6", "--alias", "challenger"))


def require_checkout() -> None:
    """The training code is an example that users replace, so it is not part of the installed package.

    Raises:
        DemoFailed: this is not a checkout.
    """
    if not (CHECKOUT / "examples" / "flights").is_dir():
        raise DemoFailed("examples/flights is not here", "Run it from a checkout of the repository: make demo")


def fill(settings: Settings, console: Console) -> int:
    """Train and register both models, then show what the control plane makes of it.

    Raises:
        DemoFailed: a step did not work; what was done before stays.
    """
    for training in TRAININGS:
        _train(settings, training)
    console.print(_versions_table(_get(f"{settings.control_plane_url}/ml/models/{MODEL}/versions")))
    console.print(_addresses(settings))
    return 0


def _train(settings: Settings, arguments: tuple[str, ...]) -> None:
    # Trained pipelines are cached beside the demo's data folder: the second demo starts from an empty registry too.
    cache = settings.home.parent / "cache" / MODEL
    uri = settings.resolved_mlflow_uri
    command = [sys.executable, "-m", "examples.flights", "train", *arguments]
    command += ["--tracking-uri", uri, "--cache-folder", str(cache)]
    ran = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **environment_of(settings)}, check=False)  # noqa: S603 (our own)
    if ran.returncode != 0:
        raise DemoFailed(f"the training ended with status {ran.returncode}", "What it printed above says why.")


def _get(url: str) -> list[dict[str, object]]:
    answer = httpx.get(url, timeout=30)
    if answer.status_code != 200:
        raise DemoFailed(f"{url} answers {answer.status_code}", answer.text[:300])
    items: list[dict[str, object]] = answer.json()["items"]
    return items


def _versions_table(versions: list[dict[str, object]]) -> Table:
    table = Table(
        title=f"Versions of {MODEL}, as the control plane lists them", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("version", "alias", "state", "ROC AUC", "Brier", "size", "registered (UTC)"):
        table.add_column(column, no_wrap=True)
    for each in versions:
        table.add_row(*_cells(each))
    return table


def _cells(version: dict[str, object]) -> list[str]:
    metrics, aliases, size = version["metrics"], version["aliases"], version["size_bytes"]
    assert isinstance(metrics, dict)  # noqa: S101 (the API's shape, held by its tests)
    assert isinstance(aliases, list)  # noqa: S101
    return [
        str(version["version"]),
        ", ".join(aliases),
        str(version["state"]),
        _figure(metrics.get("roc_auc")),
        _figure(metrics.get("brier")),
        f"{size / 1000:,.0f} kB" if isinstance(size, int) else "",
        str(version["created_at"])[:16].replace("T", " "),
    ]


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""


def _addresses(settings: Settings) -> Table:
    """Where to look now; the table of the start has scrolled away."""
    table = Table(title="Look at it", title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_row("the model's versions", f"{settings.control_plane_url}/ml/models/{MODEL}/versions")
    table.add_row("the API", f"{settings.control_plane_url}/docs")
    table.add_row("its runs and metrics", f"{settings.resolved_mlflow_uri}/#/models/{MODEL}")
    table.add_row("scheduled work", f"{settings.resolved_prefect_api_url.removesuffix('/api')}/v2/deployments")
    return table
