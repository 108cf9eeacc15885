"""The spool: what was written can be read, whatever happened to the files, and never takes more room than allowed."""

import errno
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ids import PredictionIds
from serving.spool import Frame, Spool, SpoolWriter, StreamFolder, framed, kept_source, read_frames, spool_state
from serving.spool.frames import find_frames

encode = msgspec.msgpack.encode
bodies = st.lists(st.binary(max_size=40).map(lambda content: encode([content])), min_size=1, max_size=8)


def a_writer(folder: Path, segment_bytes: int = 1 << 20) -> SpoolWriter:
    """A writer without a bound."""
    return SpoolWriter(StreamFolder(folder), segment_bytes, lambda: None)


def ended(writer: SpoolWriter) -> None:
    """As after its process has ended."""
    writer.close()
    writer.sync()


def joined(frames: list[bytes]) -> bytes:
    """Frames as they lie in a segment."""
    return b"".join(b"".join(framed(body)) for body in frames)


def write(writer: SpoolWriter, *contents: str) -> None:
    """A frame per text."""
    for each in contents:
        assert writer.append(encode([each]), 1)


@given(bodies, st.binary(max_size=60), st.data())
def test_frames_around_garbage_are_all_found(written: list[bytes], garbage: bytes, data: st.DataObject) -> None:
    """A bad sector would take the rest of a segment's predictions along."""
    place = data.draw(st.integers(0, len(written)))
    before, after = joined(written[:place]), joined(written[place:])
    frames, end, torn = find_frames(before + garbage + after, final=True)
    assert [frame.body for frame in frames] == written
    assert (end, torn) == (len(before) + len(garbage) + len(after), len(garbage))


@given(bodies, st.data())
def test_a_flipped_bit_costs_its_frame_only(written: list[bytes], data: st.DataObject) -> None:
    """Damage must be noticed, and must not spread."""
    flat = bytearray(joined(written))
    place = data.draw(st.integers(0, len(flat) - 1))
    flat[place] ^= 1 << data.draw(st.integers(0, 7))
    frames, end, _ = find_frames(bytes(flat), final=True)
    sizes = [len(joined([body])) for body in written]
    damaged = next(k for k in range(len(sizes)) if place < sum(sizes[: k + 1]))
    assert [frame.body for frame in frames] == written[:damaged] + written[damaged + 1 :]
    assert end == len(flat)


@given(bodies, st.data())
def test_an_unfinished_tail_is_left_for_the_next_time(written: list[bytes], data: st.DataObject) -> None:
    """A reader that came in the midst of a write would drop an answered request."""
    flat = joined(written)
    cut = data.draw(st.integers(0, len(flat)))
    frames, end, torn = find_frames(flat[:cut], final=False)
    assert torn == 0
    rest, _, _ = find_frames(flat[end:], final=False)
    assert [frame.body for frame in (*frames, *rest)] == written


def test_the_tail_of_a_writer_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    """The segment of a killed process would be waited for until the end of days."""
    writer = a_writer(tmp_path)
    write(writer, "whole")
    path = writer.folder.segment(1)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"".join(framed(encode(["torn"])))[:-2])
    assert read_frames(path, size) == ([], size, 0, False)
    ended(writer)
    rest = path.stat().st_size - size
    assert read_frames(path, size) == ([], size + rest, rest, True)


def test_a_frame_larger_than_the_window_is_read(tmp_path: Path) -> None:
    """A batch of many rows would stop its spool for ever."""
    writer = a_writer(tmp_path)
    write(writer, "x" * 10_000, "small")
    first = read_frames(writer.folder.segment(1), 0, window=512)
    assert len(first.frames) == 2
    ended(writer)


def test_a_new_process_writes_beside_the_old_one(tmp_path: Path) -> None:
    """While an HTTP process is replaced, two write into one folder: neither may lose anything."""
    old, new = a_writer(tmp_path, segment_bytes=40), a_writer(tmp_path, segment_bytes=40)
    for k in range(20):
        write((old, new)[k % 2], f"text {k}")
    folder = old.folder
    ended(old)
    ended(new)
    frames = [frame for number in folder.segments() for frame in read_frames(folder.segment(number), 0).frames]
    assert sorted(frame.body for frame in frames) == sorted(encode([f"text {k}"]) for k in range(20))


def test_identity_lasts_as_long_as_the_segments(tmp_path: Path) -> None:
    """Where segments were removed by hand numbers begin anew, and would be taken for stored long ago."""
    first = a_writer(tmp_path)
    write(first, "one")
    identity = first.folder.identity()
    ended(first)
    second = a_writer(tmp_path)
    write(second, "two")
    assert second.folder.identity() == identity
    ended(second)
    for number in second.folder.segments():
        second.folder.segment(number).unlink()
    third = a_writer(tmp_path)
    write(third, "three")
    assert third.folder.identity() not in (identity, None)
    ended(third)


def test_payloads_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    """Without a database the disk would fill, or predictions would go while features stay."""
    dropped: list[tuple[str, int]] = []
    bound = 1 << 20
    spool = Spool(tmp_path / "api-0", bound, lambda *each: dropped.append(each))
    body = encode([bytes(1000)] * 4)

    def size() -> int:
        return sum(path.stat().st_size for path in tmp_path.rglob("*.seg"))

    for _ in range(60):
        assert spool.payloads.append(body, 4)
        assert spool.predictions.append(body, 4)
    assert dropped == []
    largest = 0
    for _ in range(400):
        assert spool.predictions.append(body, 4)
        largest = max(largest, size())
    spool.close()
    assert largest <= bound
    streams = [stream for stream, _ in dropped]
    assert streams == sorted(streams)  # payloads, then predictions
    assert set(streams) == {"payloads", "predictions"}
    state = spool_state(tmp_path)
    assert state.dropped == sum(count for _, count in dropped)
    assert state.waiting_bytes == size()
    kept = sum(len(msgspec.msgpack.decode(frame.body)) for frame in frames_in(tmp_path / "api-0" / "predictions"))
    assert kept + sum(count for stream, count in dropped if stream == "predictions") == 460 * 4


def frames_in(folder: Path) -> list[Frame]:
    """All frames of a stream."""
    stream = StreamFolder(folder)
    found: list[Frame] = []
    for number in stream.segments():
        offset = 0
        while frames := read_frames(stream.segment(number), offset).frames:
            found += frames
            offset = frames[-1].end
    return found


def test_records_of_an_earlier_process_are_counted_when_they_go(tmp_path: Path) -> None:
    """A loss after a restart would stay unseen."""
    earlier = a_writer(tmp_path / "payloads")
    for _ in range(3):
        assert earlier.append(encode(["x"] * 20), 20)
    ended(earlier)
    write(later := a_writer(tmp_path / "payloads"), "newest")
    ended(later)
    dropped: list[tuple[str, int]] = []
    spool = Spool(tmp_path, 1 << 20, lambda *each: dropped.append(each))
    spool.predictions.lacks_room = True
    assert spool.sacrifice_payloads()
    spool.close()
    assert dropped == [("payloads", 60)]


def test_a_full_disk_costs_what_did_not_fit_and_nothing_before(tmp_path: Path) -> None:
    """A half-written frame would make everything behind it unreadable, or the process would end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            writer = a_writer(tmp_path)
            written = sum(writer.append(encode([f"{k:096d}"]), 1) for k in range(40))
            status = 0 if written == 18 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    path = StreamFolder(tmp_path).segment(1)
    found = read_frames(path, 0)
    assert [msgspec.msgpack.decode(frame.body) for frame in found.frames] == [[f"{k:096d}"] for k in range(18)]
    assert (found.end, found.torn) == (path.stat().st_size, 0)


def payload_segments(folder: Path, count: int) -> None:
    """As an earlier process left them."""
    writer = a_writer(folder / "payloads", segment_bytes=1)
    write(writer, *(str(each) for each in range(count)))
    ended(writer)


def test_payloads_stay_where_room_is_not_what_predictions_lack(tmp_path: Path) -> None:
    """A wrong owner of one folder would cost all features that wait in the other."""
    payload_segments(tmp_path, 5)
    (tmp_path / "predictions").write_text("in the way")
    spool = Spool(tmp_path, 1 << 20, lambda *_: None)
    for _ in range(3):
        assert not spool.predictions.append(encode(["x"]), 1)
        assert not spool.sacrifice_payloads()
    assert len(spool.payloads.folder.segments()) == 5
    spool.close()


@pytest.mark.parametrize("call", ["open", "writev"])
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_one_segment_of_payloads_makes_room_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: int
) -> None:
    """Predictions would be lost although there was something to give up; or all of it would go in one moment."""
    payload_segments(tmp_path, 5)
    spool = Spool(tmp_path, 1 << 20, lambda *_: None)
    real = getattr(os, call)

    def full(*given: Any) -> Any:
        wanted = call == "writev" or "opening" in str(given[0])
        if wanted and len(spool.payloads.folder.segments()) == 5:
            raise OSError(kind, os.strerror(kind))
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        assert not spool.predictions.append(encode(["x"]), 1)
        assert spool.sacrifice_payloads()
        assert spool.predictions.append(encode(["x"]), 1)
        assert not spool.sacrifice_payloads()
    assert len(spool.payloads.folder.segments()) == 4
    spool.close()


def test_names_of_segments_are_on_the_disk_too(tmp_path: Path, synced: list[Path]) -> None:
    """A power cut would take a whole segment of predictions whose every byte had been written."""
    writer = a_writer(tmp_path / "api-0" / "predictions")
    write(writer, "a")
    assert {tmp_path, tmp_path / "api-0"} <= set(synced)
    synced.clear()
    writer.sync()
    assert tmp_path / "api-0" / "predictions" in synced
    synced.clear()
    write(writer, "b")
    writer.sync()
    assert synced == []  # once for each segment
    ended(writer)


def test_a_spool_keeps_its_name_through_a_renaming_of_the_host_and_a_copy_does_not(tmp_path: Path) -> None:
    """What waits would be shipped again under the new name, or a copy's predictions be taken for shipped."""
    spool = tmp_path / "spool"
    assert kept_source(spool, "old-host:8000") == "old-host:8000"
    assert kept_source(spool, "new-host:8000") == "old-host:8000"
    shutil.copytree(spool, tmp_path / "copy")
    assert kept_source(tmp_path / "copy", "other-host:8000") == "other-host:8000"
    (spool / "source.json").write_text("{")
    assert kept_source(spool, "new-host:8000") == "new-host:8000"
    (tmp_path / "file").touch()
    assert kept_source(tmp_path / "file" / "spool", "a:1") == "a:1"


def test_state_says_how_long_the_oldest_waits(tmp_path: Path) -> None:
    """Nobody would see that predictions have not reached the database for hours."""
    assert spool_state(tmp_path) == (0, 0.0, 0)
    writer = a_writer(tmp_path / "api-3" / "predictions")
    hours_ago = (3_600_000 * 2).to_bytes(6, "big")
    made = PredictionIds()()
    old = (int.from_bytes(made[:6], "big") - int.from_bytes(hours_ago, "big")).to_bytes(6, "big") + made[6:]
    assert writer.append(encode([[old, "flights"]]), 1)
    first = writer.folder.segment(1).stat().st_size
    assert spool_state(tmp_path).oldest_seconds == pytest.approx(7200, abs=60)
    assert writer.append(encode([[PredictionIds()(), "flights"]]), 1)
    writer.folder.note_shipped(1, first)
    state = spool_state(tmp_path)
    assert state.oldest_seconds < 60
    assert state.waiting_bytes == writer.folder.segment(1).stat().st_size - first
    ended(writer)
