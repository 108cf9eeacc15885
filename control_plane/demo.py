"""`switchyard demo`: a house of its own, filled with real flights, and asked about the ones that came after."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from control_plane.client import Client
from control_plane.commands.listing import versions_table
from control_plane.commands.promote import SUCCEEDED, show, watch
from control_plane.errors import DemoFailed
from control_plane.settings import Settings, environment_of

CHECKOUT = Path(__file__).resolve().parents[1]
MODEL = "flights"
CHAMPION = ("--months", "1-3", "--alias", "champion")
# It has seen a summer's first month.
CHALLENGER = ("--months", "1-6", "--alias", "challenger")
MONTH, FLIGHTS = "April", 5_000


def require_checkout() -> None:
    """The training code is an example that users replace, so it is not part of the installed package.

    Raises:
        DemoFailed: this is not a checkout.
    """
    if not (CHECKOUT / "examples" / "flights").is_dir():
        raise DemoFailed("examples/flights is not here", "Run it from a checkout of the repository: make demo")


def fill(settings: Settings, console: Console) -> int:
    """Train a model and let it serve, replay real flights through it, then show what came of that.

    Returns 1 when a request failed, else 0.

    Raises:
        DemoFailed: a step did not work; what was done before stays.
        ApiError: the control plane refused something, or does not answer.
    """
    _train(settings, CHAMPION)
    with Client(settings.control_plane_url) as client:
        _let_serve(settings, client, console)
        found = _replay(settings)
        _train(settings, CHALLENGER)
        versions = client.versions(MODEL)["items"]
    console.print(versions_table(MODEL, versions))
    console.print(_results(found))
    for problem, count in found["problems"].items():
        console.print(f"{count} x {problem}", style="red", markup=False)
    console.print(_addresses(settings))
    return 1 if found["failed"] else 0


def _train(settings: Settings, arguments: tuple[str, ...]) -> None:
    # Trained pipelines are cached beside the demo's data folder: the second demo starts from an empty registry too.
    uri = settings.resolved_mlflow_uri
    command = ("train", *arguments, "--tracking-uri", uri, "--cache-folder", str(_cache(settings)))
    ran = subprocess.run(_example(*command), cwd=CHECKOUT, env=_environment(settings), check=False)  # noqa: S603 (our own)
    if ran.returncode != 0:
        raise DemoFailed(f"the training ended with status {ran.returncode}", "What it printed above says why.")


def _registered(settings: Settings, alias: str) -> str:
    """The version that the training let this alias name just now. In MLflow: once something serves, ours is another."""
    address = f"{settings.resolved_mlflow_uri}/api/2.0/mlflow/registered-models/alias"
    try:
        answer = httpx.get(address, params={"name": MODEL, "alias": alias}, timeout=settings.registry_timeout)
        return str(answer.raise_for_status().json()["model_version"]["version"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise DemoFailed(
            f"MLflow does not say which version is {alias} ({type(error).__name__})", f"Asked: {address}"
        ) from error


def _let_serve(settings: Settings, client: Client, console: Console) -> None:
    # The flights of 2013 keep their own time: drift, labels and tests go by when they were to depart.
    client.configure(MODEL, {"client_timestamps": True})
    wanted = {"target": _registered(settings, "champion"), "reason": "the demo's first model"}
    change = watch(client, client.promote(MODEL, wanted), console)
    show(change)
    if change["state"] != SUCCEEDED:
        raise DemoFailed(f"the promotion was {change['state']}", "What stands above says why.")


def _replay(settings: Settings) -> dict[str, Any]:
    """What the traffic came to, as `examples.flights replay --json` says it; its progress goes to the terminal."""
    command = ["replay", "--month", "4", "--limit", str(FLIGHTS), "--url", settings.data_plane_url, "--json"]
    command += ["--cache-folder", str(_cache(settings))]
    ran = subprocess.run(  # noqa: S603 (our own)
        _example(*command), cwd=CHECKOUT, env=_environment(settings), check=False, stdout=subprocess.PIPE
    )
    if ran.returncode not in (0, 1):
        raise DemoFailed(f"the replay ended with status {ran.returncode}", "What it printed above says why.")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _example(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.flights", *arguments]


def _environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, **environment_of(settings)}


def _cache(settings: Settings) -> Path:
    return settings.home.parent / "cache" / MODEL


def _results(found: dict[str, Any]) -> Table:
    """What the traffic came to. Every figure is of this very run."""
    title = f"{found['requests']:,} flights of {MONTH}, each asked about before it left"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    quality, latency = found["quality"], found["latency_ms"]
    failed, retried = f"{found['failed']:,} failed", f"{found['retried']:,} asked again"
    table.add_row("answers", f"{found['requests'] - found['failed']:,}, {failed}, {retried}")
    table.add_row("accuracy", f"{_figure(quality['accuracy'])} on the {quality['flights']:,} that arrived")
    table.add_row("ROC AUC", _figure(quality["roc_auc"]))
    table.add_row("Brier score", _figure(quality["brier"]))
    table.add_row("late", f"{_figure(quality['predicted_late'])} predicted, {_figure(quality['late'])} in truth")
    shown = (f"{name} {latency[name]:.1f} ms" for name in ("p50", "p95", "p99", "mean") if latency[name] is not None)
    table.add_row("latency", ", ".join(shown))
    table.add_row(
        "throughput", f"{found['requests_per_second']:,.0f} requests/s over {found['connections']} connections"
    )
    table.add_row("first prediction", f"{_seconds_since_start(found['started_at']):.0f} s after the command was given")
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _seconds_since_start(moment: float) -> float:
    return max(0.0, moment - psutil.Process().create_time())


def _addresses(settings: Settings) -> Table:
    """Where to look now; the table of the start has scrolled away."""
    table = Table(title="Look at it", title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    model = f"{settings.control_plane_url}/ml/models/{MODEL}"
    table.add_row("what serves", f"{model}/status")
    table.add_row("its versions", f"{model}/versions")
    table.add_row("ask it", f"{settings.data_plane_url}/ml/models/{MODEL}/predict")
    table.add_row("the API", f"{settings.control_plane_url}/docs")
    table.add_row("its runs and metrics", f"{settings.resolved_mlflow_uri}/#/models/{MODEL}")
    table.add_row("flows", f"{settings.resolved_prefect_api_url.removesuffix('/api')}/v2/deployments")
    return table
