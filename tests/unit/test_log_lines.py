"""What becomes of a line that a process prints."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.supervision.log_lines import HELD_SECONDS, MAX_LINE_BYTES, QUIET_SECONDS, Assembler, guess

TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    run()
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
    raise ValueError("y")
ValueError: y
"""


def assembled(text: str | bytes) -> list[dict[str, Any]]:
    assembler = Assembler("mlflow", lambda: "2026-01-02T03:04:05Z")
    data = text.encode() if isinstance(text, str) else text
    return [json.loads(each) for each in [*assembler.feed(data, 0.0), *assembler.close(0.0)]]


def test_own_lines_pass_through_unchanged() -> None:
    """Our ids and facts would end up as text inside text."""
    line = b'{"event": "x", "level": "info",  "time": "2026-01-01T00:00:00Z", "request_id": "r"}'
    assert Assembler("data-plane", str).feed(line + b"\n", 0.0) == [line]


def test_other_json_is_wrapped() -> None:
    """A library's own JSON without our keys would break whoever reads the log."""
    [line] = assembled('{"message": "x"}\n')
    assert line["event"] == '{"message": "x"}'
    assert line["part"] == "mlflow"


@pytest.mark.parametrize(
    ("line", "level", "event"),
    [
        ("2026/11/23 21:31:21 INFO mlflow.store.db.utils: Updating", "info", "mlflow.store.db.utils: Updating"),
        ("2026/11/23 21:31:21 INFO:     Started server process [7]", "info", "Started server process [7]"),
        ("21:31:18.123 | WARNING | prefect.server - late", "warning", "prefect.server - late"),
        ("INFO:     127.0.0.1:1 - GET /health", "info", "127.0.0.1:1 - GET /health"),
        ("[2026-01-01 10:00:00,123] [CRITICAL] gone", "critical", "gone"),
        ("2026-01-01T10:00:00.1Z ERROR boom", "error", "boom"),
        ("x.py:23: StarletteDeprecationWarning: old", "warning", "x.py:23: StarletteDeprecationWarning: old"),
        ("sqlalchemy.exc.OperationalError: locked", "error", "sqlalchemy.exc.OperationalError: locked"),
        ("something ERROR-like happened: ERROR 5", "error", "something ERROR-like happened: ERROR 5"),
        ("Information is not a level", None, "Information is not a level"),
        ("INFO desk opens", None, "INFO desk opens"),
    ],
)
def test_level_and_text_are_guessed(line: str, level: str | None, event: str) -> None:
    """Errors of MLflow and Prefect could not be told from their chatter."""
    assert guess(line) == (level, event)


def test_colours_control_characters_and_passwords_are_removed() -> None:
    """A log would steer the terminal of who reads it, or give away the database."""
    [line] = assembled("\x1b[1;31mred\x1b[0m \x1b]0;title\x07 postgresql://me:secret@db/x\x00\n")
    assert line["event"] == "red  postgresql://me:***@db/x"


def test_progress_bar_keeps_its_last_state() -> None:
    """One line would hold every state that a bar ever had."""
    assert [each["event"] for each in assembled("10%\r 50%\r100%\r\n")] == ["100%"]


def test_greetings_and_rules_are_left_out() -> None:
    """Each start would open the log with a drawing."""
    assert assembled(" ___ ___\n| _ \\ _ \\\n\n-----\nCheck out the dashboard at http://127.0.0.1\nreal\n") == [
        {"time": "2026-01-02T03:04:05Z", "level": "info", "part": "mlflow", "event": "real"}
    ]


def test_traceback_stays_with_its_line() -> None:
    """Two parts failing at once would shuffle their tracebacks line by line."""
    before, failed, after = assembled(f"ok\n10:00:00 ERROR job failed\n{TRACEBACK}10:00:01 INFO went on\n")
    assert (before["event"], after["event"]) == ("ok", "went on")
    assert (failed["event"], failed["level"]) == ("job failed", "error")
    assert failed["exception"] == TRACEBACK.strip()


def test_traceback_alone_is_named_by_its_last_exception() -> None:
    """The line would say 'Traceback' and not what happened."""
    [line] = assembled(TRACEBACK)
    assert (line["event"], line["level"]) == ("ValueError: y", "error")


def test_exception_group_is_one_event() -> None:
    """A task group's failure would be forty lines that nobody can put together."""
    text = (
        "  + Exception Group Traceback (most recent call last):\n  |   File 'a.py', line 1\n"
        "  | ExceptionGroup: two (1 sub-exception)\n  +-+---------------- 1 ----------------\n"
        "    | ValueError: y\n    +------------------------------------\n10:00:00 INFO on\n"
    )
    failed, after = assembled(text)
    assert "ValueError: y" in failed["exception"]
    assert after["event"] == "on"


def test_indented_lines_belong_to_the_line_above() -> None:
    """The second half of a warning would be an event without a meaning."""
    [line] = assembled("a.py:1: UserWarning: old\n  call()\n")
    assert line["event"] == "a.py:1: UserWarning: old\n  call()"


def test_a_line_waits_only_a_moment() -> None:
    """Whoever follows the log would see what happened when something else happens."""
    assembler = Assembler("mlflow", str)
    assert assembler.feed(b"hello\n", 10.0) == []
    assert assembler.flush_due(10.0 + QUIET_SECONDS / 2) == []
    assert len(assembler.flush_due(10.0 + QUIET_SECONDS)) == 1
    assert not assembler.is_holding


def test_an_endless_traceback_does_not_wait_for_ever() -> None:
    """A process that prints without pause would never be seen."""
    assembler = Assembler("mlflow", str)
    now, done = 0.0, 0
    assembler.feed(b"Traceback (most recent call last):\n", now)
    while not done and now < 10:
        now += QUIET_SECONDS / 2
        assembler.feed(b"  frame\n", now)
        done += len(assembler.flush_due(now))
    assert now <= HELD_SECONDS + QUIET_SECONDS


def test_a_line_without_end_is_cut() -> None:
    """One process that prints no line ends would fill the supervisor's memory."""
    lines = assembled(b"x" * (3 * MAX_LINE_BYTES))
    assert sum(len(each["event"]) for each in lines) == 3 * MAX_LINE_BYTES


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_become_json_lines_however_they_arrive(data: bytes, cuts: list[int]) -> None:
    """Output arrives in pieces of any size: where it was cut must not show."""
    assembler = Assembler("mlflow", lambda: "now")
    edges = [0, *sorted(min(each, len(data)) for each in cuts), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(edges)]
    lines = [line for piece in pieces for line in assembler.feed(piece, 0.0)] + assembler.close(0.0)
    whole = Assembler("mlflow", lambda: "now")
    assert lines == whole.feed(data, 0.0) + whole.close(0.0)
    assert all(json.loads(each).keys() >= {"time", "level", "event"} and b"\n" not in each for each in lines)
