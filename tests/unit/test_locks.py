"""The locks: everything with hashes, nothing with an address, and what pyproject.toml asks for."""

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from serving.engines import _KNOWN_PACKAGES
from tests.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, list[str]]:
    """Package -> versions (several where they depend on the Python), each seen with at least one hash."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text()):
        if pinned := re.match(r"([a-z0-9._-]+)(?:\[[^\]]*\])?==([^ \\]+)", block):
            assert "--hash=sha256:" in block, block
            found.setdefault(pinned[1], []).append(pinned[2])
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_every_package_has_hashes_and_no_address(name: str) -> None:
    """What is downloaded is what was proven, from whichever index the user has."""
    assert len(locked(name)) > 150
    text = (ROOT / name).read_text()
    assert not re.search(r"https?:|file:|--index|--extra-index|--find-links| @ ", text)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_the_lock_is_what_the_project_asks_for(name: str) -> None:
    """A cap that was lifted without `make lock`, or the other way round, would be a lie."""
    pins = locked(name)
    for line in PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["examples"]:
        needed = Requirement(line)
        versions = pins[needed.name]
        assert all(needed.specifier.contains(version) for version in versions), (line, versions)


def test_the_development_lock_changes_nothing_of_the_other() -> None:
    """Tests must run on the very versions that users get."""
    run, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {name: dev.get(name) for name in run} == run


def test_every_kind_of_model_with_an_engine_of_its_own_can_be_loaded() -> None:
    """A LightGBM model would be refused by what `make up` installs, and served by what the tests run in."""
    wanted = {{"sklearn": "scikit-learn"}.get(each.rstrip("."), each.rstrip(".")) for each in _KNOWN_PACKAGES}
    assert wanted <= {Requirement(line).name for line in PROJECT["project"]["dependencies"]}
    assert wanted <= locked("requirements.lock").keys()


def test_nothing_waits_for_packages_of_models_that_are_not_there() -> None:
    """Every worker would take their time and memory at each start."""
    code = "import sys, serving.server, serving.worker_process; sys.exit('lightgbm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
