"""Answers read once more from the log are those that were given, or none."""

import math
import struct
from typing import Any
from uuid import UUID

import orjson
import pytest

from serving.answer_reader import AnswerReader, read_again
from serving.answers import write_response
from serving.channel import Outcome
from serving.contracts import Encoding, Held, InferenceResponse, ModelKind, Parameters
from serving.stored_answer import AnswerBytes, StoredAnswer

PLAIN = Parameters(None, False, {})


def reader_of(kind: ModelKind, classes: list[Any], *, probabilities: bool = True) -> AnswerReader:
    """Of a version that is held."""
    return AnswerReader(Held("m", "1", "", kind, classes, probabilities, "sklearn", "", 0.0, [], 0.0))


def floats(rows: list[list[float]]) -> tuple[Outcome, bytes]:
    """An answer as a worker sends it."""
    body = b"".join(struct.pack(f"<{len(row)}d", *row) for row in rows)
    return Outcome(0.0, 0.0, 1, len(rows), len(rows[0]), Encoding.FLOATS), body


def both_ways(reader: AnswerReader, rows: list[list[float]], parameters: Parameters) -> tuple[Any, Any, Any]:
    """What was answered, and what is read again from the payload and from the logged rows; as JSON."""
    outcome, body = floats(rows)
    predictions, scores, logged = reader.read(outcome, body, parameters)
    answer = AnswerBytes(len(rows), Encoding.FLOATS, outcome.width, body)
    kept = read_again(reader, StoredAnswer(b"", b"", answer=answer), parameters, len(rows))
    retold = read_again(reader, StoredAnswer(b"", b"", rows=logged), parameters, len(rows))
    return tuple(None if each is None else orjson.dumps(each) for each in ((predictions, scores), kept, retold))  # type: ignore[return-value]


@pytest.mark.parametrize("classes", [[0, 1], ["no", "yes"], [False, True], [0.5, 1.5], ["1", 1]])
@pytest.mark.parametrize("threshold", [None, 0.1, 0.9])
def test_labels_keep_their_type_and_threshold(classes: list[Any], threshold: float | None) -> None:
    """A retry would be told 1.0 where the first answer said true, or the label that another threshold gives."""
    given, kept, retold = both_ways(
        reader_of(ModelKind.CLASSIFIER, classes), [[0, 0.7, 0.3], [1, 0.2, 0.8]], Parameters(threshold, False, {})
    )
    assert given == kept == retold


def test_probabilities_of_all_classes_come_from_the_payload_alone() -> None:
    """A retry would be told less than the first time."""
    given, kept, retold = both_ways(
        reader_of(ModelKind.CLASSIFIER, ["a", "b", "c"]), [[2, 0.1, 0.2, 0.7]], Parameters(None, True, {})
    )
    assert given == kept
    assert retold is None


def test_classes_that_the_log_writes_alike_are_not_guessed() -> None:
    """True would come back as 1."""
    given, kept, retold = both_ways(reader_of(ModelKind.CLASSIFIER, [1, True]), [[1, 0.1, 0.9]], PLAIN)
    assert given == kept
    assert retold is None


@pytest.mark.parametrize("rows", [[[1.5], [0.1 + 0.2], [-0.0], [1e308]], [[1.0, 2.0]], [[math.nan]], [[math.inf]]])
def test_numbers_come_back_to_the_last_bit_or_not_at_all(rows: list[list[float]]) -> None:
    """A regression's retry would be told a rounded number, or nothing where there were several."""
    given, kept, retold = both_ways(reader_of(ModelKind.REGRESSOR, [], probabilities=False), rows, PLAIN)
    assert given == kept
    plain = len(rows[0]) == 1 and all(math.isfinite(row[0]) for row in rows)
    assert retold == (given if plain else None)


def test_a_score_that_is_no_number_stays_null() -> None:
    """A score would appear where the model gave none."""
    given, kept, retold = both_ways(reader_of(ModelKind.CLASSIFIER, [0, 1]), [[0, math.nan, math.nan]], PLAIN)
    assert given == kept == retold


def test_what_this_version_cannot_have_said_is_not_read() -> None:
    """After a version was kept anew under its number, a retry would be a traceback or a wrong label."""
    reader = reader_of(ModelKind.CLASSIFIER, [0, 1])
    for rows, answer in (
        (1, AnswerBytes(1, Encoding.FLOATS, 3, struct.pack("<3d", 5, 0.1, 0.9))),  # a sixth class
        (2, AnswerBytes(1, Encoding.FLOATS, 3, struct.pack("<3d", 1, 0.1, 0.9))),  # of fewer rows
        (1, AnswerBytes(1, Encoding.FLOATS, 3, b"short")),
        (1, AnswerBytes(1, 7, 3, b"")),
    ):
        assert read_again(reader, StoredAnswer(b"", b"", answer=answer), PLAIN, rows) is None
    assert read_again(reader, StoredAnswer(b"", b"", rows=[(3.0, None, 0.5)]), PLAIN, 1) is None  # no class of ours
    assert read_again(reader, StoredAnswer(b"", b"", rows=[(1.0, None, 0.5)]), PLAIN, 2) is None  # half of it is stored


def test_an_answer_is_written_with_every_field_it_has() -> None:
    """A field that is added would be missing from what clients get: they are named one by one, for speed."""
    response = InferenceResponse(
        UUID(int=7), [{"label": "a", "probabilities": {"a": 0.5}}], [0.5, float("nan")], 0.001, "3", {"arm": None}
    )
    assert write_response(response) == orjson.dumps(response)
