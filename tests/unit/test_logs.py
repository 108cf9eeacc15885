"""Log lines: one JSON object each, with the ids, without secrets and payloads."""

import json
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.logs import mask

SCRIPT = """
import logging
from serving.logs import configure_logging, logger, working_on
configure_logging("data-plane", "info")
log = logger("here")
log.debug("not this")
with working_on(request_id="r-1", change_id="c-1", test_id="t-1"):
    log.info("ours", password="hunter2", auth_string="u:hunter2", url="postgresql://u:hunter2@h/d", features=[41.5], body="41.5")
    logging.getLogger("library").warning("theirs %s", "postgresql://u:hunter2@h/d", extra={"color_message": "x"})
    logging.getLogger("httpx").info("chatter")
    try:
        try:
            raise ValueError("postgresql://u:hunter2@h/d and 41.5")
        except ValueError as cause:
            raise RuntimeError("41.5") from cause
    except RuntimeError:
        log.exception("failed")
log.info("after")
"""


def lines() -> list[dict[str, object]]:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert "hunter2" not in ran.stderr
    assert "41.5" not in ran.stderr
    return [json.loads(line) for line in ran.stderr.splitlines()]


def test_our_lines_and_those_of_libraries_look_alike_and_carry_the_ids() -> None:
    """One search for a request's id must find everything that happened to it."""
    ours, theirs, failed, after = lines()
    for each in (ours, theirs, failed):
        assert (each["part"], each["request_id"], each["change_id"], each["test_id"]) == (
            "data-plane",
            "r-1",
            "c-1",
            "t-1",
        )
        assert str(each["time"]).endswith("Z")
    assert (ours["event"], ours["level"]) == ("ours", "info")
    assert theirs["event"] == "theirs postgresql://u:***@h/d"
    assert "color_message" not in theirs
    assert re.fullmatch(
        r'  File "<string>", line \d+, in <module>\nValueError\nfrom it came:\n'
        r'  File "<string>", line \d+, in <module>\nRuntimeError',
        str(failed["exception"]),
    ), failed["exception"]
    assert "request_id" not in after


def test_this_process_was_not_touched() -> None:
    """Tests of logging must not rearrange the logging of other tests."""
    assert logging.getLogger().level != logging.DEBUG


@given(user=st.from_regex(r"[a-z]{1,8}", fullmatch=True), password=st.from_regex(r"[^\s@/]{4,12}", fullmatch=True))
def test_passwords_in_addresses_never_show(user: str, password: str) -> None:
    """Whatever characters a password is made of."""
    shown = mask(f"cannot connect to postgresql://{user}:{password}@host:5432/name: refused")
    assert shown == f"cannot connect to postgresql://{user}:***@host:5432/name: refused"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@ss@h/db", "postgresql://u:***@h/db"),
        ("redis://:pw@h", "redis://:***@h"),
        ("postgresql://u:000#@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:12/34@h/db", "postgresql://u:***@h/db"),
        ("http://u:12?3@h/", "http://u:***@h/"),
        ("postgresql://h/db?user=u&password=pw", "postgresql://h/db?user=u&password=***"),
        ("http://127.0.0.1:5000/models/flights@champion", "http://127.0.0.1:5000/models/flights@champion"),
    ],
)
def test_other_forms_of_passwords_do_not_show_and_ports_do(text: str, shown: str) -> None:
    """An @ inside a password left half of it readable."""
    assert mask(text) == shown
