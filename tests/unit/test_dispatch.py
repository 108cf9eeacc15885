"""Lanes to workers, against sockets that say exactly what the case needs."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.channel import Decoder, Frame, Hello, Kind, pack
from serving.dispatch import Dispatcher

Say = Callable[[bytes], None]


class Speaker:
    """One end of a unix socket that stands for a worker: says hello after a while, keeps what it hears."""

    def __init__(self, address: Path, *, hello_after: float = 0.0, answers: bool = True) -> None:
        self.address = str(address)
        self.heard: list[Frame] = []
        self.connections = 0
        self.say: Say = lambda _: None
        self._hello_after = hello_after
        self._answers = answers

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.say = writer.write
        decoder = Decoder()
        await asyncio.sleep(self._hello_after)
        writer.write(Hello(100 + self.connections, 0, self.connections).pack())
        while data := await reader.read(4096):
            frames = decoder.feed(data)
            self.heard += frames
            if self._answers:
                writer.write(b"".join(pack(Kind.PONG, frame.id) for frame in frames))
        writer.close()


@asynccontextmanager
async def _dispatcher(*speakers: Speaker) -> AsyncIterator[Dispatcher]:
    servers = [await asyncio.start_unix_server(each, each.address) for each in speakers]
    dispatcher = Dispatcher([each.address for each in speakers], lambda _: None)
    await dispatcher.start()
    yield dispatcher
    await dispatcher.close()
    for server in servers:
        server.close()
        await server.wait_closed()
    await asyncio.sleep(0)  # lets the closed connections finish


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.005)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        yield Path(made)


def _run(case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(case())


def test_the_start_waits_for_workers_that_are_there(folder: Path) -> None:
    """A restarted HTTP process would refuse its first requests though every worker is well."""

    async def case() -> None:
        async with _dispatcher(Speaker(folder / "0", hello_after=0.1)) as dispatcher:
            assert dispatcher.workers()[0] == {"id": 0, "pid": 101, "connected": True, "round_trip": None}

    _run(case)


def test_a_worker_that_hangs_does_not_hold_up_the_others_answer(folder: Path) -> None:
    """One busy worker would make every readiness probe time out, and take the whole server out of service."""

    async def case() -> None:
        async with _dispatcher(Speaker(folder / "0", answers=False), Speaker(folder / "1")) as dispatcher:
            started = time.monotonic()
            assert await dispatcher.ping(deadline=30)
            assert time.monotonic() - started < 10
            hanging, well = dispatcher.workers()
            assert hanging["round_trip"] is None
            assert 0 < well["round_trip"] < 10

    _run(case)


def test_without_an_answer_the_deadline_holds(folder: Path) -> None:
    """A probe would wait for ever for a worker that hangs, or be told that it is well."""

    async def case() -> None:
        async with _dispatcher(Speaker(folder / "0", answers=False)) as dispatcher:
            assert not await dispatcher.ping(deadline=0.05)

    _run(case)


def test_many_probes_ask_a_hanging_worker_once(folder: Path) -> None:
    """Probes of an hour would wait in its socket, to be answered before any prediction when it wakes."""

    async def case() -> None:
        hanging = Speaker(folder / "0", answers=False)
        async with _dispatcher(hanging) as dispatcher:
            await asyncio.gather(*(dispatcher.ping(deadline=0.05) for _ in range(50)))
            assert [frame.kind for frame in hanging.heard] == [Kind.PING]

    _run(case)


def test_a_lane_that_breaks_is_made_anew(folder: Path) -> None:
    """After one damaged frame a worker would be lost until the next restart."""

    async def case() -> None:
        speaker = Speaker(folder / "0")
        async with _dispatcher(speaker) as dispatcher:
            speaker.say(b"\xff" * 16)
            await _until(lambda: dispatcher.workers()[0]["pid"] == 102)
            assert await dispatcher.ping(deadline=5)

    _run(case)


def test_an_ending_worker_is_kept_until_its_successor_is_there(folder: Path) -> None:
    """With one worker, each replacement would leave a gap without any."""

    async def case() -> None:
        ending, successor = Speaker(folder / "0"), Speaker(folder / "new")
        async with _dispatcher(ending) as dispatcher:
            Path(ending.address).unlink()  # noqa: ASYNC240  # one quick call
            ending.say(pack(Kind.GOAWAY))
            await _until(lambda: dispatcher._lanes[0].leaving)
            assert await dispatcher.ping(deadline=5)
            server = await asyncio.start_unix_server(successor, successor.address)
            Path(successor.address).rename(ending.address)  # noqa: ASYNC240  # one quick call
            await _until(lambda: successor.connections == 1 and not dispatcher._lanes[0].leaving)
            assert await dispatcher.ping(deadline=5)
            server.close()

    _run(case)
