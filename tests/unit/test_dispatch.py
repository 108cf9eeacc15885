"""Lanes to workers, against sockets that say exactly what the case needs."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving.channel import Decoder, Frame, Hello, Kind, Outcome, Question, pack, version_key
from serving.contracts import Encoding, Held, ModelKind
from serving.dispatch import Dispatcher
from serving.errors import BrokenChannel, DeadlineExceeded, ModelError, NotReady, WorkerLost

Say = Callable[[bytes], None]
Reply = Callable[[Frame], bytes | None]
"""The answer to a question; None: the worker ends instead."""

FLIGHTS = version_key("flights", "3")


def _held(version: str) -> Held:
    return Held("flights", version, "d", ModelKind.REGRESSOR, [], False, "native", "", 0.1, [], 1.0)


def _echo(frame: Frame) -> bytes:
    question, body = Question.unpack(frame.payload)
    return Outcome(0.0, 0.001, 1, question.rows, 1, question.encoding).pack(frame.id, body)


def _dies_of(poison: bytes) -> Reply:
    return lambda frame: None if Question.unpack(frame.payload)[1] == poison else _echo(frame)


class Plain:
    """An asker that takes everything as it comes."""

    def read(self, outcome: Outcome, body: bytes) -> tuple[Outcome, bytes]:
        return outcome, body

    def failed(self, error: Exception) -> Exception:
        return error


class Turnstile:
    """Counts who has left."""

    def __init__(self) -> None:
        self.left = 0

    def leave(self) -> None:
        self.left += 1


def _ask(dispatcher: Dispatcher, body: bytes, gate: Turnstile, timeout: float = 10.0) -> asyncio.Future[Any]:
    question = Question(FLIGHTS, 1, Encoding.FLOATS, time.monotonic() + timeout, solo=False)
    answer: asyncio.Future[Any] = dispatcher.ask(question, body, FLIGHTS, gate, Plain())
    return answer


async def _ready(dispatcher: Dispatcher, lanes: int) -> None:
    await _until(lambda: sum(bool(each.holds) for each in dispatcher._lanes.values()) == lanes)


class Speaker:
    """One end of a unix socket that stands for a worker: says hello after a while, keeps what it hears."""

    def __init__(
        self,
        address: Path,
        *,
        hello_after: float = 0.0,
        answers: bool = True,
        holds: str = "",
        reply: Reply | None = None,
    ) -> None:
        self.address = str(address)
        self.heard: list[Frame] = []
        self.connections = 0
        self.say: Say = lambda _: None
        self._hello_after = hello_after
        self._answers = answers
        self._reply = reply
        self._holds = holds

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.say = writer.write
        decoder = Decoder()
        await asyncio.sleep(self._hello_after)
        writer.write(Hello(100 + self.connections, 0, self.connections).pack())
        if self._holds:
            writer.write(pack(Kind.HOLDS, payload=orjson.dumps([asdict(_held(self._holds))])))
        while data := await reader.read(4096):
            frames = decoder.feed(data)
            self.heard += frames
            if self._answers:
                writer.write(b"".join(pack(Kind.PONG, frame.id) for frame in frames if frame.kind is Kind.PING))
            for frame in frames:
                if frame.kind is Kind.PREDICT and self._reply is not None:
                    if Question.unpack(frame.payload)[0].solo:
                        writer.write(pack(Kind.BEGUN, frame.id))
                    answer = self._reply(frame)
                    if answer is None:
                        writer.close()
                        return
                    writer.write(answer)
        writer.close()

    @property
    def questions(self) -> list[bytes]:
        """The bodies it was asked to compute."""
        return [Question.unpack(frame.payload)[1] for frame in self.heard if frame.kind is Kind.PREDICT]


@asynccontextmanager
async def _dispatcher(*speakers: Speaker) -> AsyncIterator[Dispatcher]:
    servers = [await asyncio.start_unix_server(each, each.address) for each in speakers]
    events: Counter[str] = Counter()
    dispatcher = Dispatcher(
        [each.address for each in speakers], lambda _: None, lambda event, n: events.update({event: n})
    )
    dispatcher.events = events  # type: ignore[attr-defined]
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
            assert dispatcher.workers()[0] == {
                "id": 0,
                "pid": 101,
                "connected": True,
                "spare": False,
                "round_trip": None,
            }

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


def test_a_probe_during_a_hand_over_is_answered_by_the_successor(folder: Path) -> None:
    """A balancer that asks just then would take a server out of service that has lost nothing."""

    async def case() -> None:
        ending, successor = Speaker(folder / "0", answers=False), Speaker(folder / "new")
        async with _dispatcher(ending) as dispatcher:
            asking = asyncio.create_task(dispatcher.ping(deadline=30))
            await _until(lambda: bool(ending.heard))
            server = await asyncio.start_unix_server(successor, successor.address)
            Path(successor.address).rename(ending.address)  # noqa: ASYNC240  # one quick call
            ending.say(pack(Kind.GOAWAY))
            assert await asking
            assert [frame.kind for frame in successor.heard] == [Kind.PING]
            server.close()

    _run(case)


def test_answers_come_to_whoever_asked(folder: Path) -> None:
    """One caller would get another's prediction."""

    async def case() -> None:
        gate = Turnstile()
        workers = [Speaker(folder / str(number), holds="3", reply=_echo) for number in range(3)]
        async with _dispatcher(*workers) as dispatcher:
            await _ready(dispatcher, 3)
            bodies = [b"%08d" % number for number in range(200)]
            answers = await asyncio.gather(*(_ask(dispatcher, body, gate) for body in bodies))
            assert [body for _, body in answers] == bodies
            assert gate.left == 200
            assert workers[0].questions
            assert workers[1].questions
            assert not workers[2].questions, "the spare is kept free"

    _run(case)


def test_a_version_that_nobody_holds_is_not_waited_for(folder: Path) -> None:
    """A request to a version that is still loading would hang until its deadline."""

    async def case() -> None:
        gate = Turnstile()
        async with _dispatcher(Speaker(folder / "0", holds="4")) as dispatcher:
            await _ready(dispatcher, 1)
            with pytest.raises(NotReady):
                await _ask(dispatcher, b"x", gate)
            assert gate.left == 1

    _run(case)


def test_the_deadline_holds_and_the_place_is_kept_until_the_worker_is_done(folder: Path) -> None:
    """A model that is slow would be given ever more work by clients that gave up on the last."""

    async def case() -> None:
        gate = Turnstile()
        worker = Speaker(folder / "0", holds="3")
        async with _dispatcher(worker) as dispatcher:
            await _ready(dispatcher, 1)
            with pytest.raises(DeadlineExceeded):
                await _ask(dispatcher, b"x", gate, timeout=0.05)
            assert gate.left == 0
            await _until(lambda: bool(worker.questions))
            worker.say(_echo(next(each for each in worker.heard if each.kind is Kind.PREDICT)))
            await _until(lambda: gate.left == 1)
            assert dispatcher.events["late"] == 1  # type: ignore[attr-defined]

    _run(case)


def test_what_the_model_raises_is_told(folder: Path) -> None:
    """The caller would not know which row to correct."""

    async def case() -> None:
        told = {"error": "ModelError", "row": 2, "exception": "ValueError", "problem": "no"}
        worker = Speaker(folder / "0", holds="3", reply=lambda frame: pack(Kind.FAILURE, frame.id, orjson.dumps(told)))
        async with _dispatcher(worker) as dispatcher:
            await _ready(dispatcher, 1)
            with pytest.raises(ModelError) as raised:
                await _ask(dispatcher, b"x", Turnstile())
            error = raised.value
            assert (error.model_id, error.version, error.row, error.exception) == ("flights", "3", 2, "ValueError")

    _run(case)


def test_what_a_dead_worker_leaves_is_asked_one_by_one_however_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of what was under way would fail after seconds though the next worker answers one after the other."""
    monkeypatch.setattr("serving.retries.RETRY_PATIENCE", 0.02)

    async def case() -> None:
        gate = Turnstile()
        worker, spare = Speaker(folder / "0", holds="3"), Speaker(folder / "1", holds="3")
        async with _dispatcher(worker, spare) as dispatcher:
            await _ready(dispatcher, 2)
            asked = [_ask(dispatcher, b"%d" % number, gate) for number in range(4)]
            await _until(lambda: len(worker.questions) == 4)
            dispatcher._lanes[0].close()
            for number in range(4):
                await _until(lambda number=number: len(spare.questions) == number + 1)  # type: ignore[misc]
                await asyncio.sleep(0.05)  # longer than patience: the spare takes its time
                spare.say(_echo([each for each in spare.heard if each.kind is Kind.PREDICT][-1]))
            assert [answer[1] for answer in await asyncio.gather(*asked)] == [b"0", b"1", b"2", b"3"]

    _run(case)


def test_a_failure_that_cannot_be_read_is_one(folder: Path) -> None:
    """The request would hang: its deadline is called off when the worker has said something."""

    async def case() -> None:
        worker = Speaker(folder / "0", holds="3", reply=lambda frame: pack(Kind.FAILURE, frame.id, b"{}"))
        async with _dispatcher(worker) as dispatcher:
            await _ready(dispatcher, 1)
            with pytest.raises(BrokenChannel):
                await asyncio.wait_for(_ask(dispatcher, b"x", Turnstile()), 5)

    _run(case)


def test_a_request_that_kills_workers_takes_no_other_along(folder: Path) -> None:
    """One poisoned request would fail all that shared its batch, and then kill worker after worker."""

    async def case() -> None:
        gate = Turnstile()
        worker = Speaker(folder / "0", holds="3")
        spare = Speaker(folder / "1", holds="3", reply=_dies_of(b"poison"))
        async with _dispatcher(worker, spare) as dispatcher:
            await _ready(dispatcher, 2)
            bodies = [b"a", b"b", b"poison", b"c", b"d"]
            asked = [_ask(dispatcher, body, gate) for body in bodies]
            await _until(lambda: len(worker.questions) == 5)
            worker._reply = _dies_of(b"poison")
            dispatcher._lanes[0].close()  # the worker dies with all five
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(answers[2], WorkerLost)
            assert [each[1] for each in answers if isinstance(each, tuple)] == [b"a", b"b", b"c", b"d"]
            assert dispatcher.events["retried"] == 5  # type: ignore[attr-defined]
            await _ready(dispatcher, 2)
            with pytest.raises(WorkerLost):
                await _ask(dispatcher, b"poison", gate)
            assert (await _ask(dispatcher, b"e", gate))[1] == b"e"
            assert gate.left == 7
            assert spare.questions.count(b"poison") == 1

    _run(case)


def test_a_worker_that_ends_alone_loses_nothing(folder: Path) -> None:
    """With one worker and its spare gone too, its requests would fail though it is back in a tenth of a second."""

    async def case() -> None:
        gate = Turnstile()
        worker = Speaker(folder / "0", holds="3")
        async with _dispatcher(worker) as dispatcher:
            await _ready(dispatcher, 1)
            asked = _ask(dispatcher, b"x", gate)
            await _until(lambda: worker.questions == [b"x"])
            worker._reply = _echo
            dispatcher._lanes[0].close()
            assert (await asked)[1] == b"x"
            assert gate.left == 1

    _run(case)


def test_no_worker_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request would hang until its deadline though nobody is left to answer it."""
    monkeypatch.setattr("serving.retries.RETRY_PATIENCE", 0.05)

    async def case() -> None:
        gate = Turnstile()
        worker = Speaker(folder / "0", holds="3")
        async with _dispatcher(worker) as dispatcher:
            await _ready(dispatcher, 1)
            asked = _ask(dispatcher, b"x", gate)
            await _until(lambda: worker.questions == [b"x"])
            Path(worker.address).unlink()  # noqa: ASYNC240  # one quick call
            dispatcher._lanes[0].close()
            with pytest.raises(WorkerLost):
                await asked
            assert gate.left == 1

    _run(case)


def test_a_worker_that_is_stuck_gets_no_more_while_another_is_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slow requests of one model would hold up every other model, beside a spare that has nothing to do."""
    monkeypatch.setattr("serving.dispatch.STUCK_AFTER", 0.05)

    async def case() -> None:
        gate = Turnstile()
        slow, spare = Speaker(folder / "0", holds="3"), Speaker(folder / "1", holds="3", reply=_echo)
        async with _dispatcher(slow, spare) as dispatcher:
            await _ready(dispatcher, 2)
            asked = _ask(dispatcher, b"slow", gate)
            await _until(lambda: slow.questions == [b"slow"])
            await asyncio.sleep(0.1)  # twice what makes it stuck
            assert (await _ask(dispatcher, b"quick", gate))[1] == b"quick"
            assert spare.questions == [b"quick"]
            assert not asked.done()

    _run(case)
