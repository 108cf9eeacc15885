"""Deployments: the embedded runner and prefect.yaml offer the same, and the form says what each field does."""

import subprocess
from datetime import timedelta
from typing import Any

import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.deployments import DEPLOYMENTS, offering
from flows.housekeeping import housekeeping
from flows.warm_up import warm_up
from tests.processes import PYTHON, ROOT

FILE: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())


def test_the_file_and_the_embedded_runner_deploy_the_same() -> None:
    """Going from a laptop to a work pool must not change what runs when."""
    in_file = {each["name"]: each for each in FILE["deployments"]}
    assert set(in_file) == {each.name for each in DEPLOYMENTS}
    for deployed in DEPLOYMENTS:
        other = in_file[deployed.name]
        assert other["description"] == deployed.description
        assert tuple(other["tags"]) == deployed.tags
        schedules = [(timedelta(seconds=each["interval"]), each["slug"]) for each in other["schedules"]]
        assert schedules == ([(deployed.every, deployed.slug)] if deployed.every else [])
        only_one = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert other.get("concurrency_limit") == (only_one if deployed.one_at_a_time else None)
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


def test_the_warm_up_form_is_explained_and_offers_the_models() -> None:
    """One would have to know the name of a model by heart, and what happens to what serves."""
    schema = parameter_schema(warm_up)
    (definition,) = schema.definitions.values()
    assert set(definition["properties"]) == {"model_id", "target", "anew"}
    assert all(len(field["description"]) > 40 for field in definition["properties"].values())
    assert "Safe at any time" in definition["description"]
    (offered,) = offering(schema, ["cancer", "flights"]).definitions.values()
    assert offered["properties"]["model_id"]["enum"] == ["cancer", "flights"]
    assert "enum" not in offered["properties"]["target"]  # versions come and go faster than forms
    assert "enum" not in definition["properties"]["model_id"]
    (free,) = offering(schema, []).definitions.values()
    assert free == definition


def test_flow_modules_import_neither_mlflow_nor_sklearn() -> None:
    """Every run would wait seconds for them before its first line."""
    code = "import sys, flows.deployments; print(sorted({'mlflow', 'sklearn', 'evidently'} & sys.modules.keys()))"
    ran = subprocess.run([PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
