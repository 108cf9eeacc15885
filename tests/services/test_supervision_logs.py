"""Logs of real processes and real files: rotated, never in anybody's way, and followed across rotations."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from control_plane.errors import UnknownPart
from control_plane.supervision.log_collector import LogCollector
from control_plane.supervision.log_writer import LogWriter, stamp
from control_plane.supervision.logs import LogLine, follow_logs, print_logs, read_logs, rendered

MEGABYTE = 1_000_000


def eventually(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait for a condition; `seconds` is a hang guard."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if result := condition():
            return result
        time.sleep(0.01)
    pytest.fail(f"did not happen within {seconds} s")


def line(event: str, part: str = "mlflow", time: str | None = None, **facts: object) -> bytes:
    return json.dumps({"time": time or stamp(), "level": "info", "part": part, "event": event, **facts}).encode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


@pytest.fixture
def writer(home: Path) -> Iterator[LogWriter]:
    made = LogWriter(home / "logs", max_bytes=2000, keep=3)
    yield made
    made.close(5)


class Follower:
    """Somebody who runs `switchyard logs --follow`."""

    def __init__(self, home: Path, *parts: str, lines: int = 0) -> None:
        self.seen: list[str] = []
        self._over = threading.Event()
        following = follow_logs(home, parts, lines, self._over.is_set)
        self._thread = threading.Thread(target=self._read, args=(following,))
        self._thread.start()

    def _read(self, lines: Iterator[LogLine]) -> None:
        for each in lines:
            self.seen.append(each.facts["event"])

    def has_seen(self, event: str) -> bool:
        return event in self.seen

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def test_flood_is_rotated_and_holds_nobody_up(home: Path) -> None:
    """One chatty process would fill the disk, or stand still because nobody reads it."""
    writer = LogWriter(home / "logs", max_bytes=MEGABYTE, keep=2)
    collector = LogCollector(writer)
    count = 50_000  # some 7 MB as JSON
    program = f"for n in range({count}): print('line', n, 'x' * 60)"
    process = piped(collector, "mlflow", program)
    assert process.wait(60) == 0
    collector.close(30)
    writer.close(30)
    files = sorted((home / "logs").glob("mlflow.log*"))
    assert [each.name for each in files] == ["mlflow.log", "mlflow.log.1", "mlflow.log.2"]
    assert all(each.stat().st_size <= MEGABYTE for each in files)
    kept = [json.loads(each)["event"] for file in reversed(files) for each in file.read_text().splitlines()]
    numbers = [int(each.split()[1]) for each in kept]
    assert numbers == list(range(numbers[0], count)), "what is kept has no gap and ends with the last line"


def test_traceback_of_a_real_process_is_one_line(home: Path, writer: LogWriter) -> None:
    """The reason of a crash would be spread over lines that mix with other parts' lines."""
    collector = LogCollector(writer)
    process = piped(collector, "flows", "print('before', flush=True); {}['missing']")
    assert process.wait(30) == 1
    said = collector.last_lines("flows", 10)
    assert said[0] == "before"
    assert said[-1] == "KeyError: 'missing'"
    collector.close(10)
    writer.close(10)
    events = [json.loads(each) for each in (home / "logs" / "flows.log").read_text().splitlines()]
    failed = next(each for each in events if "exception" in each)
    assert failed["exception"].startswith("Traceback")
    assert failed["level"] == "error"


def test_quiet_line_is_written_within_a_second(home: Path, writer: LogWriter) -> None:
    """The last thing a process said before it hung would not be in the log."""
    collector = LogCollector(writer)
    process = piped(collector, "flows", "import time; print('about to hang', flush=True); time.sleep(3600)")
    try:
        eventually(lambda: [each.facts["event"] for each in read_logs(home, ["flows"], 9)] == ["about to hang"])
    finally:
        process.kill()
        process.wait()
        collector.close(10)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_full_disk_is_survived_and_told(home: Path, writer: LogWriter) -> None:
    """A full disk would stop every process, or leave a gap that nobody can see."""
    log = home / "logs" / "mlflow.log"
    log.symlink_to("/dev/full")
    for number in range(20):
        writer.put("mlflow", [line(f"lost {number}")])
    eventually(lambda: writer.lost("mlflow") == 20)
    log.unlink()
    writer.put("mlflow", [line("kept")])
    writer.close(10)
    told, kept = [json.loads(each) for each in log.read_text().splitlines()]
    assert (told["event"], told["lines"], told["reason"]) == (
        "log lines were lost here",
        20,
        "No space left on device",
    )
    assert kept["event"] == "kept"


def test_stuck_disk_holds_nobody_up(home: Path) -> None:
    """A hanging network disk would stop predictions at the next log line."""
    log = home / "logs" / "mlflow.log"
    os.mkfifo(log)  # opening it waits until somebody reads
    writer = LogWriter(home / "logs", max_bytes=MEGABYTE, keep=2, waiting_bytes=10_000)
    began = time.monotonic()
    for number in range(2000):
        writer.put("mlflow", [line(f"line {number}")])
    assert time.monotonic() - began < 10
    assert writer.lost("mlflow") > 1000
    with log.open("rb"):
        log.unlink()
    eventually(lambda: not writer.is_behind)
    writer.put("mlflow", [line("back")])
    writer.close(10)
    events = [json.loads(each)["event"] for each in log.read_text().splitlines()]
    assert events[-2:] == ["log lines were lost here", "back"]


def test_deleted_file_is_begun_anew(home: Path, writer: LogWriter) -> None:
    """Who deletes a log to make room would never see another line."""
    log = home / "logs" / "mlflow.log"
    writer.put("mlflow", [line("first")])
    eventually(log.exists)
    log.unlink()
    writer.put("mlflow", [line("second")])
    eventually(log.exists)
    writer.close(10)
    assert [json.loads(each)["event"] for each in log.read_text().splitlines()] == ["second"]


def test_follow_survives_rotation(home: Path, writer: LogWriter) -> None:
    """Whoever watches a log would see it fall silent at the first rotation."""
    writer.put("mlflow", [line("before")])
    eventually((home / "logs" / "mlflow.log").exists)
    follower = Follower(home, "mlflow")
    try:
        for batch in range(8):
            # Two rotations a batch: the follower looks less often than that.
            events = [f"{batch}.{number} " + "x" * 100 for number in range(20)]
            writer.put("mlflow", [line(each) for each in events])
            eventually(partial(follower.has_seen, events[-1]))
    finally:
        follower.end()
    assert [each.split()[0] for each in follower.seen] == [f"{batch}.{n}" for batch in range(8) for n in range(20)]
    assert (home / "logs" / "mlflow.log.3").exists()


def test_follow_waits_for_a_log_that_does_not_exist_yet(home: Path, writer: LogWriter) -> None:
    """Started before the stack, it would end or say nothing for ever."""
    follower = Follower(home, "prefect")
    try:
        writer.put("prefect", [line("hello", "prefect")])
        eventually(lambda: follower.seen == ["hello"])
    finally:
        follower.end()


def test_follow_begins_with_the_last_lines_and_misses_none(home: Path, writer: LogWriter) -> None:
    """Between reading back and following, lines would be shown twice or not at all."""
    writer.put("mlflow", [line(f"{n}") for n in range(5)])
    eventually(lambda: len(list(read_logs(home, ["mlflow"], 10))) == 5)
    follower = Follower(home, "mlflow", lines=2)
    try:
        writer.put("mlflow", [line("5")])
        eventually(lambda: follower.seen == ["3", "4", "5"])
    finally:
        follower.end()


def test_last_lines_of_all_parts_come_in_order_of_time(home: Path) -> None:
    """Cause and effect in two parts could not be told apart."""
    for part, seconds in (("mlflow", (1, 4)), ("flows", (2, 3)), ("prefect", (5,))):
        log = home / "logs" / f"{part}.log"
        log.write_bytes(b"".join(line(f"{n}", part, f"2026-01-01T00:00:0{n}Z") + b"\n" for n in seconds))
    assert [each.facts["event"] for each in read_logs(home, [], 4)] == ["2", "3", "4", "5"]
    assert [each.facts["event"] for each in read_logs(home, ["mlflow", "prefect"], 9)] == ["1", "4", "5"]
    assert list(read_logs(home, [], 0)) == []


def test_last_lines_reach_back_into_rotated_files(home: Path, writer: LogWriter) -> None:
    """Right after a rotation the log would look empty."""
    writer.put("mlflow", [line(f"{n} " + "x" * 100) for n in range(20)])
    eventually(lambda: [*read_logs(home, ["mlflow"], 1)] and read_back(home, 1) == [19])
    assert read_back(home, 15) == list(range(5, 20))


def read_back(home: Path, lines: int) -> list[int]:
    return [int(each.facts["event"].split()[0]) for each in read_logs(home, ["mlflow"], lines)]


def test_unknown_part_is_told(home: Path) -> None:
    """A mistyped name would look like a silent part."""
    with pytest.raises(UnknownPart) as caught:
        read_logs(home, ["mlflwo"], 5)
    assert caught.value.detail == (
        "There is no part 'mlflwo'. Parts: data-plane, control-plane, prefect, flows, mlflow, supervisor."
    )


def test_shown_line_has_local_time_and_all_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs in another zone than the clock on the wall, or without their ids, help nobody."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        raw = line("loaded", "data-plane", "2026-01-01T20:00:00Z", model_id="late", rows=3, exception="Traceback\n  x")
        text = rendered(LogLine.parse(raw)).plain
    finally:
        monkeypatch.undo()
        time.tzset()
    assert text == "2026-01-02 05:00:00 info     data-plane    loaded model_id=late rows=3\nTraceback\n  x"


def test_log_cannot_steer_the_terminal() -> None:
    """A model's name in a request would be able to clear the screen of who reads the log."""
    raw = line("\x1b[2Jgone \x07", name="\x1b]0;owned\x07x")
    text = rendered(LogLine.parse(raw)).plain
    assert "\x1b" not in text
    assert "\x07" not in text


def test_json_is_shown_raw(home: Path, tmp_path: Path) -> None:
    """What other programs read must not be wrapped or coloured."""
    raw = line("x" * 300 + " [bold]")
    (home / "logs" / "mlflow.log").write_bytes(raw + b"\n")
    with (tmp_path / "out").open("w+") as out:
        print_logs(read_logs(home, [], 5), Console(file=out, width=40), as_json=True)
        out.seek(0)
        assert out.read() == raw.decode() + "\n"


def piped(collector: LogCollector, name: str, program: str) -> subprocess.Popen[bytes]:
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=writing, stderr=writing)
    os.close(writing)
    collector.follow(name, reading)
    return process
