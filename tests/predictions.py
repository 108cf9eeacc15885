"""Records of predictions for tests, with everything that does not matter filled in."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.contracts import Role
from serving.ids import PredictionIds
from serving.recorder import Payload, PredictionRecord, Recorder

new_id = PredictionIds()

_PLENTY = 1 << 30


def a_request(**facts: Any) -> PredictionRecord:
    """One answered request with one row, arrived now."""
    now = time.time_ns() // 1000
    given: dict[str, Any] = {
        "id": new_id(),
        "client_key": None,
        "body_digest": None,
        "arrived_us": now,
        "event_us": now,
        "model_id": "flights",
        "version": "3",
        "arm": None,
        "role": Role.ANSWER.value,
        "unit": "ada",
        "latency_us": 1500,
        "status": 200,
        "rows": [(1.0, None, 0.8)],
    }
    return PredictionRecord(**{**given, **facts})


def a_payload(**facts: Any) -> Payload:
    """What one request carried."""
    given: dict[str, Any] = {
        "id": new_id(),
        "model_id": "flights",
        "version": "3",
        "rows": 1,
        "encoding": 0,
        "features": bytes(range(16)),
        "variant": b"",
        "answer_encoding": 0,
        "answer_width": 3,
        "answer": bytes(24),
    }
    return Payload(**{**given, **facts})


def record_all(
    folder: Path, requests: Sequence[PredictionRecord], payloads: Sequence[Payload] = (), *, per_tick: int = 8
) -> None:
    """As an HTTP process with this spool folder that answers these requests, and ends well."""

    def dropped(stream: str, count: int) -> None:
        raise AssertionError(f"{count} {stream} were dropped")

    async def work() -> None:
        recorder = Recorder(folder, max_bytes=_PLENTY, payloads=True, on_dropped=dropped)
        for payload in payloads:
            recorder.add_payload(payload)
        for at in range(0, len(requests), per_tick):
            for request in requests[at : at + per_tick]:
                recorder.add(request)
            await recorder.durable()
        recorder.close()

    asyncio.run(work())
