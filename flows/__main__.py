"""`python -m flows`: the embedded runner. It registers every deployment and runs what Prefect schedules."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from prefect.runner import Runner

from control_plane.client import Client
from control_plane.errors import ApiError
from control_plane.settings import Settings, load_settings
from flows.deployments import DEPLOYMENTS, Deployed, for_runner, offer_models
from serving.errors import SwitchyardError
from serving.logs import configure_logging, logger

log = logger(__name__)

_OFFER_SECONDS = 20.0


async def run(settings: Settings) -> None:
    """Serve until told to end. The file `run/flows.ready` tells that every deployment is registered."""
    # Schedules outlive a restart of ours: pausing them would leave models unwatched until somebody noticed.
    runner = Runner(
        name="switchyard",
        limit=settings.flow_concurrency,
        query_seconds=2,
        pause_on_shutdown=False,
        heartbeat_seconds=30,
    )
    known = {deployed: await runner.aadd_deployment(await for_runner(deployed)) for deployed in DEPLOYMENTS}
    ready = settings.home / "run" / "flows.ready"
    ready.parent.mkdir(parents=True, exist_ok=True)
    _write(ready, str(os.getpid()))
    log.info("deployments registered", deployments=[each.name for each in DEPLOYMENTS])
    offering = asyncio.create_task(_keep_offering(settings, known))
    try:
        await _until_told(runner)
    finally:
        offering.cancel()
        with suppress(asyncio.CancelledError):
            await offering
        ready.unlink(missing_ok=True)


async def _keep_offering(settings: Settings, known: dict[Deployed, UUID]) -> None:
    """Let forms offer the models there are, for as long as the runner runs. A new model appears within a minute.

    With Prefect or the control plane away, forms offer what they did, and it is tried again.
    """
    offered: list[str] = []
    while True:
        try:
            models = await asyncio.to_thread(_models, settings)
            if models and models != offered:
                for deployed, identifier in known.items():
                    if deployed.names_models:
                        await offer_models(identifier, deployed, models)
                offered = models
        except Exception as error:  # noqa: BLE001 - choices are a comfort; what is scheduled has to run
            log.warning("the models to choose from could not be brought up to date", problem=str(error))
        await asyncio.sleep(_OFFER_SECONDS)


def _models(settings: Settings) -> list[str]:
    """The models there are; none where that is not known for sure.

    Asked of the control plane: its own look at database and registry would cost this process 150 MB of MLflow.
    """
    try:
        with Client(settings.control_plane_url, timeout=10.0) as client:
            found = client.models()
    except ApiError as error:
        log.debug("the models there are are not known", problem=error.detail)
        return []
    return [] if found["unavailable"] else sorted(each["model_id"] for each in found["items"])


async def _until_told(runner: Runner) -> None:
    """Run until SIGTERM or SIGINT, then cancel the runs under way, so that none shows as running for ever.

    The runner's own handler for SIGTERM exits without doing that: it starts a coroutine and never awaits it.
    """
    serving = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # it installs its handler in its first step; ours come after it
    told = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, told.set)
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not serving.done():
        await runner.astop()
    await serving


def _write(path: Path, text: str) -> None:
    """Whole or not at all: who waits for it reads it at once."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def main() -> int:
    """2 for wrong settings."""
    try:
        settings = load_settings()
    except SwitchyardError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 2
    configure_logging("flows", settings.log_level)
    asyncio.run(run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
