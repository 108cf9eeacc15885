"""The recorder: on disk before the answer leaves, and never in the way of one."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from serving.recorder import Payload, PredictionRecord, Recorder
from serving.spool import StreamFolder, read_frames
from serving.store.payloads import StoredPayload
from tests.predictions import a_payload, a_request

decode = msgspec.msgpack.Decoder(list[PredictionRecord]).decode


def frames_of(folder: Path, stream: str = "predictions") -> list[bytes]:
    """Bodies of all frames of a stream."""
    of_stream = StreamFolder(folder / stream)
    segments = [of_stream.segment(number) for number in of_stream.segments()]
    return [frame.body for path in segments for frame in read_frames(path, 0).frames]


class Dropped(list[tuple[str, int]]):
    """What the recorder said it dropped."""

    def __call__(self, stream: str, count: int) -> None:
        self.append((stream, count))


def make(folder: Path, dropped: Dropped, *, payloads: bool = True) -> Recorder:
    """A recorder with plenty of room."""
    return Recorder(folder, max_bytes=1 << 24, payloads=payloads, on_dropped=dropped)


def test_a_tick_is_on_disk_in_one_frame_when_it_is_durable(tmp_path: Path) -> None:
    """A process that is killed right after it answered would lose predictions."""

    async def work() -> None:
        recorder = make(tmp_path, Dropped())
        requests = [a_request(latency_us=k) for k in range(5)]
        for each in requests:
            recorder.add(each)
        assert frames_of(tmp_path) == []
        await asyncio.gather(*(asyncio.ensure_future(wait(recorder)) for _ in requests))
        (body,) = frames_of(tmp_path)
        assert decode(body) == requests
        recorder.close()

    async def wait(recorder: Recorder) -> None:
        await recorder.durable()

    asyncio.run(work())


def test_durable_with_nothing_to_write_is_done(tmp_path: Path) -> None:
    """A request that is not logged would wait for ever."""

    async def work() -> None:
        recorder = make(tmp_path, Dropped())
        await asyncio.wait_for(recorder.durable(), 5)
        recorder.close()

    asyncio.run(work())


def test_a_client_that_leaves_does_not_take_the_tick_along(tmp_path: Path) -> None:
    """One closed connection would end everybody else's requests of that moment."""

    async def work() -> None:
        recorder = make(tmp_path, Dropped())

        async def request() -> str:
            recorder.add(a_request())
            await recorder.durable()
            return "answered"

        tasks = [asyncio.create_task(request()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [outcomes[0], outcomes[2]] == ["answered", "answered"]
        assert isinstance(outcomes[1], asyncio.CancelledError)
        recorder.close()

    asyncio.run(work())
    assert sum(len(decode(body)) for body in frames_of(tmp_path)) == 3


def test_a_failed_write_is_counted_and_answered(tmp_path: Path) -> None:
    """A spool folder that cannot be written would take predictions down."""
    dropped = Dropped()
    (tmp_path / "spool").write_text("in the way")

    async def work() -> None:
        recorder = make(tmp_path / "spool" / "api-0", dropped)
        recorder.add(a_request(), a_payload())
        recorder.add(a_request())
        await asyncio.wait_for(recorder.durable(), 5)
        recorder.close()

    asyncio.run(work())
    assert sorted(dropped) == [("payloads", 1), ("predictions", 2)]


def test_a_fault_while_writing_holds_no_request_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who waits for the log would wait for ever, while health says that all is well."""
    dropped = Dropped()

    def broken(*_: object) -> bool:
        raise RuntimeError("nobody thought of this")

    async def work() -> None:
        recorder = make(tmp_path, dropped)
        with monkeypatch.context() as patched:
            patched.setattr("serving.spool.writer.SpoolWriter.append", broken)
            recorder.add(a_request())
            await asyncio.wait_for(recorder.durable(), 5)
        recorder.add(a_request())
        await asyncio.wait_for(recorder.durable(), 5)
        recorder.close()

    asyncio.run(work())
    assert dropped == [("predictions", 1)]
    assert sum(len(decode(body)) for body in frames_of(tmp_path)) == 1


def test_a_file_that_somebody_left_there_is_passed_over(tmp_path: Path) -> None:
    """A copy made by hand would stop the log."""

    async def work() -> None:
        (tmp_path / "predictions").mkdir()
        (tmp_path / "predictions" / "000000000001 (copy).seg").touch()
        recorder = make(tmp_path, Dropped())
        recorder.add(a_request())
        await asyncio.wait_for(recorder.durable(), 5)
        recorder.close()

    asyncio.run(work())
    assert sum(len(decode(body)) for body in frames_of(tmp_path)) == 1


def test_a_record_that_cannot_be_encoded_does_not_take_others_along(tmp_path: Path) -> None:
    """One odd user id would lose the predictions of everybody who asked in that moment."""
    dropped = Dropped()

    async def work() -> None:
        recorder = make(tmp_path, dropped)
        for unit in ("ada", "\ud800", "bob"):
            recorder.add(a_request(unit=unit))
        await recorder.durable()
        recorder.close()

    asyncio.run(work())
    assert [each.unit for body in frames_of(tmp_path) for each in decode(body)] == ["ada", "bob"]
    assert dropped == [("predictions", 1)]


def test_payloads_are_written_soon_and_only_where_they_are_wanted(tmp_path: Path) -> None:
    """Drift would see nothing of the last requests; or features would be kept against the operator's will."""

    async def work() -> None:
        wanted, unwanted = make(tmp_path / "wanted", Dropped()), make(tmp_path / "not", Dropped(), payloads=False)
        for each in (wanted, unwanted):
            each.add(a_request(), a_payload())
        end = asyncio.get_running_loop().time() + 5
        while not frames_of(tmp_path / "wanted", "payloads"):
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.01)
        wanted.close()
        unwanted.close()

    asyncio.run(work())
    assert frames_of(tmp_path / "not", "payloads") == []
    assert len(frames_of(tmp_path / "not")) == 1


def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    """A clean stop would lose the last moment's features."""

    async def work() -> None:
        recorder = make(tmp_path, Dropped())
        recorder.add(a_request(), a_payload())
        recorder.close()

    asyncio.run(work())
    assert (len(frames_of(tmp_path)), len(frames_of(tmp_path, "payloads"))) == (1, 1)


def test_payloads_are_stored_as_they_are_recorded() -> None:
    """The control plane would read another field than the data plane wrote."""
    recorded, stored = msgspec.structs.fields(Payload), msgspec.structs.fields(StoredPayload)
    assert [(each.name, each.type) for each in recorded] == [(each.name, each.type) for each in stored]
