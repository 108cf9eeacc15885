"""What a worker answered, as it goes to the client and as it is logged. Prepared once for each version."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import orjson

from serving.channel import Outcome
from serving.contracts import Encoding, Held, ModelKind, Parameters
from serving.stored_answer import StoredAnswer

LoggedRow = tuple[float | None, str | None, float | None]
"""Value, label where it is no number, and the probability of that label."""

Read = tuple[list[dict[str, Any]], list[float], list[LoggedRow]]
"""Predictions and scores as they are answered, and rows as they are logged."""


class AnswerReader:
    """Reads the answers of one version."""

    def __init__(self, held: Held) -> None:
        """`held`: what the workers say of the version."""
        self.held = held
        self.classifier = held.kind is ModelKind.CLASSIFIER
        self.binary = self.classifier and len(held.classes) == 2 and held.probabilities
        self._names = [_class_name(each) for each in held.classes]
        self._logged = [_logged(each) for each in held.classes]
        self._line = struct.Struct(f"<{1 + len(held.classes)}d")

    def read(self, outcome: Outcome, body: bytes, parameters: Parameters) -> Read:
        """All rows of one answer."""
        if outcome.encoding is Encoding.JSON:
            values = orjson.loads(body)
            return [{"value": value} for value in values], [], [_logged(value) for value in values]
        if self.classifier:
            return self._classes(self._lines(outcome, body), parameters)
        lines = self._lines(outcome, body)
        values = [line[0] for line in lines] if outcome.width == 1 else [list(line) for line in lines]
        return [{"value": value} for value in values], [], [_logged(value) for value in values]

    def retell(
        self, rows: Sequence[LoggedRow], parameters: Parameters
    ) -> tuple[list[dict[str, Any]], list[float]] | None:
        """Predictions and scores once more, from what was logged of them; None where that does not hold all of it.

        A row has its label's score but not the other classes', and no word for what is neither a number nor a text.
        """
        if self.held.kind is ModelKind.REGRESSOR:
            values = [value for value, _, _ in rows]
            return None if None in values else ([{"value": value} for value in values], [])
        if not self.classifier or (parameters.return_probabilities and self.held.probabilities):
            return None
        places = {logged[:2]: index for index, logged in enumerate(self._logged)}
        labels = [places.get((value, label)) for value, label, _ in rows]
        if len(places) < len(self._logged) or None in labels:  # classes that a row cannot tell apart
            return None
        scores = [score if score is not None else math.nan for _, _, score in rows] if self.held.probabilities else []
        return [{"label": self.held.classes[index]} for index in labels if index is not None], scores

    def _lines(self, outcome: Outcome, body: bytes) -> list[tuple[float, ...]]:
        width = outcome.width
        if outcome.rows == 1:
            line = self._line if self._line.size == len(body) else struct.Struct(f"<{width}d")
            return [line.unpack(body)]
        numbers = struct.unpack(f"<{len(body) // 8}d", body)
        return [numbers[at : at + width] for at in range(0, outcome.rows * width, width)]

    def _classes(self, lines: list[tuple[float, ...]], parameters: Parameters) -> Read:
        threshold, with_all = parameters.threshold, parameters.return_probabilities
        names, classes = self._names, self.held.classes
        predictions: list[dict[str, Any]] = []
        scores: list[float] = []
        logged: list[LoggedRow] = []
        for line in lines:
            index = int(line[0]) if threshold is None else int(line[2] >= threshold)
            prediction: dict[str, Any] = {"label": classes[index]}
            score = None
            if self.held.probabilities:
                score = line[1 + index]
                scores.append(score)
                if with_all:
                    prediction["probabilities"] = dict(zip(names, line[1:], strict=True))
            predictions.append(prediction)
            value, text, _ = self._logged[index]
            logged.append((value, text, score if score == score else None))  # NaN is no score
        return predictions, scores, logged


def read_again(
    reader: AnswerReader, stored: StoredAnswer, parameters: Parameters, size: int
) -> tuple[list[dict[str, Any]], list[float]] | None:
    """What was answered to a request of `size` rows; None where what is stored does not hold all of it."""
    answer = stored.answer
    if answer is None:
        return reader.retell(stored.rows, parameters) if len(stored.rows) == size else None
    if answer.rows != size:
        return None
    try:
        outcome = Outcome(0.0, 0.0, size, size, answer.width, Encoding(answer.encoding))
        predictions, scores, _ = reader.read(outcome, answer.body, parameters)
    except (ValueError, IndexError, struct.error):  # not what this version says today, so it was another one then
        return None
    return predictions, scores


def _class_name(label: Any) -> str:
    """As a key of JSON: true, not Python's True."""
    return label if isinstance(label, str) else orjson.dumps(label).decode()


def _logged(value: Any) -> LoggedRow:
    if isinstance(value, bool | int | float):
        number = float(value)
        return (number if number - number == 0 else None), None, None  # neither NaN nor infinite
    return None, value if isinstance(value, str) else None, None
