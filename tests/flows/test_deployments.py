"""Deployments: the embedded runner and prefect.yaml offer the same, and the form says what each field does."""

from datetime import timedelta
from typing import Any

import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.deployments import DEPLOYMENTS
from flows.housekeeping import housekeeping
from tests.processes import ROOT

FILE: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())


def test_the_file_and_the_embedded_runner_deploy_the_same() -> None:
    """Going from a laptop to a work pool must not change what runs when."""
    in_file = {each["name"]: each for each in FILE["deployments"]}
    assert set(in_file) == {each.name for each in DEPLOYMENTS}
    for deployed in DEPLOYMENTS:
        other = in_file[deployed.name]
        assert other["description"] == deployed.description
        assert tuple(other["tags"]) == deployed.tags
        (schedule,) = other["schedules"]
        assert (timedelta(seconds=schedule["interval"]), schedule["slug"]) == (deployed.every, deployed.slug)
        assert other["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert load_flow_from_entrypoint(other["entrypoint"]).name == deployed.flow.name


def test_the_file_names_the_locked_prefect() -> None:
    """Prefect reads it to understand the rest."""
    assert f"prefect=={FILE['prefect-version']} " in (ROOT / "requirements.lock").read_text()


def test_every_field_of_a_form_is_explained() -> None:
    """A tired person decides by what stands under the field."""
    (definition,) = parameter_schema(housekeeping).definitions.values()
    assert set(definition["properties"]) == {"verify_artifacts", "discard_unused", "unused_for_hours"}
    assert all(len(field["description"]) > 40 and "default" in field for field in definition["properties"].values())
    assert "safe at any time" in definition["description"]
