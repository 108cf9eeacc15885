"""Keys of predictions."""

import os
import pickle
import time
from itertools import pairwise
from uuid import RFC_4122, UUID

import pytest

from serving.ids import PredictionIds, first_id, time_of, to_text, to_uuid
from serving.store.keys import first_key


def test_ids_are_version_7_uuids_of_now() -> None:
    """Tools that read the key's time, and PostgreSQL's, would show nonsense."""
    before = time.time_ns() // 1_000_000
    made = PredictionIds()()
    assert before <= time_of(made) <= time.time_ns() // 1_000_000
    as_uuid = UUID(to_text(made))
    assert (as_uuid.version, as_uuid.variant, as_uuid.bytes) == (7, RFC_4122, made)


def test_a_uuid_is_as_python_makes_it() -> None:
    """It skips Python's checks: it must not differ in anything that somebody may ask of it."""
    made = PredictionIds()()
    ours, pythons = to_uuid(made), UUID(bytes=made)
    assert (ours, hash(ours), str(ours), repr(ours)) == (pythons, hash(pythons), str(pythons), repr(pythons))
    assert (ours.bytes, ours.version, ours.is_safe) == (made, 7, pythons.is_safe)
    assert pickle.loads(pickle.dumps(ours)) == pythons


def test_ids_grow() -> None:
    """A repeated key loses a prediction; unordered keys make the log ten times slower."""
    ids = PredictionIds()
    made = [ids() for _ in range(20_000)]
    assert all(one < next_one for one, next_one in pairwise(made))
    assert time_of(made[-1]) <= time.time_ns() // 1_000_000 + 5


def test_ids_grow_while_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set would have a process repeat its own keys."""
    ids = PredictionIds()
    before = ids()
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    assert before < ids() < ids()


def test_a_window_of_time_is_a_range_of_keys() -> None:
    """Retention would remove too much, or windows would miss their edges."""
    made = PredictionIds()()
    assert first_id(time_of(made)) <= made < first_id(time_of(made) + 1)
    assert first_key(123) == first_id(123)


def test_forked_processes_give_other_ids() -> None:
    """Two HTTP processes with the same randomness would overwrite each other's predictions."""
    ids = PredictionIds()
    ids()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"".join(ids()[8:] for _ in range(600)))
        os._exit(0)
    os.close(writing)
    ours = {ids()[8:] for _ in range(600)}
    with os.fdopen(reading, "rb") as file:
        theirs = file.read()
    os.waitpid(child, 0)
    assert len(theirs) == 4800
    assert not ours & {theirs[at : at + 8] for at in range(0, 4800, 8)}
