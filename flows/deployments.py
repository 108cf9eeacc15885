"""Every deployment, as facts: the embedded runner serves them, prefect.yaml deploys them, a test holds the two equal."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Interval
from prefect.utilities.callables import ParameterSchema, parameter_schema

from flows.housekeeping import housekeeping
from flows.warm_up import warm_up


@dataclass(frozen=True)
class Deployed:
    """One deployment of a flow."""

    flow: Flow[Any, Any]
    name: str
    description: str
    tags: tuple[str, ...]
    every: timedelta | None = None  # None: only when somebody starts it
    slug: str = ""  # of the schedule
    one_at_a_time: bool = True  # a second run while one is under way is left out, not queued
    names_models: bool = False  # whether a field `model_id` of its form offers the models there are


DEPLOYMENTS = (
    Deployed(
        flow=housekeeping,
        name="housekeeping",
        description="Proves every kept model to the byte, removes what is left over, brings MLflow's aliases up to date.",
        every=timedelta(minutes=15),
        slug="every-15-minutes",
        tags=("switchyard", "housekeeping"),
    ),
    Deployed(
        flow=warm_up,
        name="warm-up",
        description="Loads and warms a version on every replica and records the timings. Moves no traffic.",
        tags=("switchyard", "warm-up"),
        one_at_a_time=False,
        names_models=True,
    ),
)


async def for_runner(deployed: Deployed) -> RunnerDeployment:
    """The deployment as the embedded runner takes it."""
    only_one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    return await deployed.flow.ato_deployment(
        name=deployed.name,
        description=deployed.description,
        schedules=[Interval(deployed.every, slug=deployed.slug)] if deployed.every else [],
        tags=list(deployed.tags),
        concurrency_limit=only_one if deployed.one_at_a_time else None,
    )


def offering(schema: ParameterSchema, models: Sequence[str]) -> ParameterSchema:
    """The form with these models to choose from in each field `model_id`; with none, any text may be given."""
    offered = deepcopy(schema)
    for definition in offered.definitions.values():
        field = definition["properties"].get("model_id")
        if field is not None and models:
            field["enum"] = list(models)
    return offered


async def offer_models(deployment_id: UUID, deployed: Deployed, models: Sequence[str]) -> None:
    """Let the form of a deployment that Prefect knows offer these models. All else of it stays as it is.

    Raises:
        httpx.HTTPError, PrefectException: Prefect does not answer, or has no such deployment any more.
    """
    schema = offering(parameter_schema(deployed.flow), models).model_dump_for_openapi()
    async with get_client() as client:
        await client.update_deployment(deployment_id, DeploymentUpdate(parameter_openapi_schema=schema))
