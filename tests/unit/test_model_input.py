"""Rows as a model is given them: what one client sends never changes what the model sees of another's."""

from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from serving.batch_runner import run_batch
from serving.batching import Batch, Waiting
from serving.channel import Decoder, Kind, Outcome, Question
from serving.contracts import Encoding, Held, ModelKind
from serving.loader import LoadedModel, piece
from serving.model_files import words_of
from serving.model_input import Column, ModelInput

WIDE = 2**53 + 1


class Shows:
    """Answers each row with the dtype that its first column has, and its value."""

    def predict(self, features: Any, params: dict[str, Any] | None) -> Any:
        del params
        column = features.iloc[:, 0]
        return [f"{column.dtype}: {each}" for each in column]


class Fails(Shows):
    """Raises what it was made with."""

    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    def predict(self, features: Any, params: dict[str, Any] | None) -> Any:
        del features, params
        raise self._problem


def loaded(engine: Any, *columns: Column, batch_size: int = 64) -> LoadedModel:
    held = Held("m", "1", "d", ModelKind.GENERIC, [], False, "shows", "", 0.1, [], 1.0)
    return LoadedModel(held, engine, ModelInput(columns), arrays=False, batch_size=batch_size)


def asked(model: LoadedModel, *bodies: list[list[Any]], variant: bytes = b"") -> list[Any]:
    """What each of these requests is answered in one batch, in their order; of a failure what it says."""
    waiting = [
        Waiting(
            number, number, Question(b"m", len(rows), Encoding.JSON, float("inf"), solo=False), orjson.dumps(rows), 0.0
        )
        for number, rows in enumerate(bodies)
    ]
    found: dict[int, Any] = {}
    for sender, frame in run_batch(Batch(b"m", Encoding.JSON, waiting, []), model, variant, lambda: None):
        (read,) = Decoder().feed(frame)
        is_answer = read.kind is Kind.ANSWER
        found[sender] = orjson.loads(Outcome.unpack(read.payload)[1] if is_answer else read.payload)
    return [found[number] for number in range(len(bodies))]


@pytest.mark.parametrize(
    ("type_", "value", "alone"), [("long", WIDE, f"int64: {WIDE}"), ("boolean", True, "bool: True")]
)
def test_a_gap_of_another_request_changes_nothing(type_: str, value: Any, alone: str) -> None:
    """Under load a client would get another answer than alone, depending on who else asks."""
    model = loaded(Shows(), Column("a", type_, required=False), Column("b", "string", required=True))
    with_gap = asked(model, [[None, "x"]])
    assert asked(model, [[value, "x"]], [[None, "x"]], [[value, "y"]]) == [[alone], *with_gap, [alone]]


def test_kinds_of_another_request_change_nothing_without_a_signature() -> None:
    """There a column is whatever it is filled with."""
    model = loaded(Shows())
    variant = orjson.dumps({"columns": ["a"]})
    bodies: list[list[list[Any]]] = [[[WIDE]], [[0.5]], [["z"]], [[None]]]
    alone = [asked(model, each, variant=variant)[0] for each in bodies]
    assert asked(model, *bodies, variant=variant) == alone
    assert alone[0] == [f"int64: {WIDE}"]


def test_a_gap_among_whole_numbers_stays_one_in_an_array() -> None:
    """As the smallest number there is it would be answered as if somebody had meant it."""
    columns = [Column("a", "long", required=False), Column("b", "integer", required=True)]
    array = ModelInput(columns).to_array(np.array([[np.nan, 1.0], [2.0, 3.0]]))
    assert np.isnan(array[0, 0])
    assert array[1].tolist() == [2.0, 3.0]
    assert ModelInput([Column("a", "long", required=True)]).to_array(np.array([[2.0]])).dtype == np.int64


@pytest.mark.parametrize("said", ["\udc80 bad", "plain"])
def test_whatever_an_exception_says_can_be_told(said: str) -> None:
    """A text that is none ended the worker, and then the one that was asked again."""
    (failure,) = asked(loaded(Fails(ValueError(said)), Column("a", "long", required=True)), [[1]])
    assert (failure["error"], failure["exception"]) == ("ModelError", "ValueError")
    assert failure["problem"] in ("? bad", "plain")


def test_an_exception_that_cannot_speak_is_told_by_its_class() -> None:
    """Its own fault would end the worker."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert words_of(MuteError()) == ""
    (failure,) = asked(loaded(Fails(MuteError()), Column("a", "long", required=True)), [[1]])
    assert (failure["exception"], failure["problem"]) == ("MuteError", "")


def test_each_call_of_a_long_request_is_announced() -> None:
    """A worker that answers a large request in many calls would be taken for one that hangs, and killed."""
    said: list[int] = []
    model = loaded(Shows(), Column("a", "long", required=True), batch_size=2)
    model.answer_rows([[1], [2], [3], [4], [5]], b"", lambda: said.append(1))
    assert len(said) == 3


def test_answers_that_json_has_no_word_for() -> None:
    """They would come as Python prints them, long ones with dots in the middle."""
    probabilities = np.arange(4000.0).reshape(2, 2000).T
    answers = [next(iter(probabilities.T)), pd.NaT, pd.NA, pd.Timestamp("2013-04-01"), b"a", np.float32(0.5)]
    assert orjson.loads(piece(answers).body) == [
        list(range(2000)), None, None, "2013-04-01 00:00:00", "YQ==", 0.5,
    ]  # fmt: skip
    with pytest.raises(TypeError, match="Shows"):
        piece([Shows()])
