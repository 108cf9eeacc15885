"""The catalogue of an HTTP process, and its admission."""

import time
from typing import Any

import pytest

from serving.catalogue import Admission, Catalogue
from serving.errors import ModelNotFound, NotReady, TooManyRequests, VersionNotLoaded
from serving.routing import RoutingTable


def _table(generation: int = 1, **config: Any) -> RoutingTable:
    version = {
        "digest": "d3",
        "signature": {"inputs": [{"name": "temp", "type": "double", "required": True}]},
        "slot": 0,
    }
    model = {
        "revision": 1,
        "config": config,
        "routes": [{"version": "3", "weight": 1.0}],
        "versions": {"3": version, "10": {**version, "digest": "d10", "slot": 1}},
    }
    idle = {"revision": 0, "config": {}, "routes": [], "versions": {}}
    return RoutingTable.from_json({"generation": generation, "models": {"flights": model, "idle": idle}})


def test_before_the_first_table_nothing_is_unknown() -> None:
    """A replica that has just started would tell clients that their model does not exist."""
    catalogue = Catalogue()
    with pytest.raises(NotReady):
        catalogue.get("flights")
    catalogue.apply(_table())
    with pytest.raises(ModelNotFound) as raised:
        catalogue.get("flight")
    assert raised.value.known == ["flights", "idle"]


def test_a_model_without_routes_says_so() -> None:
    """Whoever registered a model and did not promote it would look for the fault elsewhere."""
    catalogue = Catalogue()
    catalogue.apply(_table())
    with pytest.raises(NotReady, match="promote"):
        catalogue.get("idle").choose("u")


def test_versions_are_found_by_number_and_named_in_order() -> None:
    """A caller of one version would not learn which there are."""
    catalogue = Catalogue()
    catalogue.apply(_table())
    assert catalogue.get("flights").named("10").entry.digest == "d10"
    with pytest.raises(VersionNotLoaded) as raised:
        catalogue.get("flights").named("4")
    assert raised.value.known == ["3", "10"]


def test_a_new_table_keeps_what_did_not_change() -> None:
    """Each poll of the database would compile every schema again, and forget what is under way."""
    catalogue = Catalogue()
    catalogue.apply(_table())
    schema = catalogue.get("flights").named("3").schema
    catalogue.get("flights").admission.enter("flights")
    catalogue.apply(_table(2, max_concurrent_requests=1))
    assert catalogue.get("flights").named("3").schema is schema
    with pytest.raises(TooManyRequests) as raised:
        catalogue.get("flights").admission.enter("flights")
    assert (raised.value.limit, raised.value.retry_after) == (1, 1)
    catalogue.get("flights").admission.leave()
    catalogue.get("flights").admission.enter("flights")


def test_retry_after_follows_the_pace_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients would come back to a queue that has not moved, or stay away for nothing."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    admission = Admission(limit=50)
    for _ in range(50):
        admission.enter("m")
    for _ in range(10):  # ten a second
        clock[0] += 0.1
        admission.leave()
        admission.enter("m")
    with pytest.raises(TooManyRequests) as raised:
        admission.enter("m")
    assert 4 <= raised.value.retry_after <= 6
