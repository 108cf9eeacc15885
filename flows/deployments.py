"""Every deployment, as facts: the embedded runner serves them, prefect.yaml deploys them, a test holds the two equal."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Interval

from flows.housekeeping import housekeeping


@dataclass(frozen=True)
class Deployed:
    """One deployment of a flow."""

    flow: Flow[Any, Any]
    name: str
    description: str
    every: timedelta
    slug: str
    tags: tuple[str, ...]


DEPLOYMENTS = (
    Deployed(
        flow=housekeeping,
        name="housekeeping",
        description="Proves every kept model to the byte, removes what is left over, brings MLflow's aliases up to date.",
        every=timedelta(minutes=15),
        slug="every-15-minutes",
        tags=("switchyard", "housekeeping"),
    ),
)


async def for_runner(deployed: Deployed) -> RunnerDeployment:
    """The deployment as the embedded runner takes it. A second run while one is under way is left out, not queued."""
    return await deployed.flow.ato_deployment(
        name=deployed.name,
        description=deployed.description,
        schedules=[Interval(deployed.every, slug=deployed.slug)],
        tags=list(deployed.tags),
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
    )
