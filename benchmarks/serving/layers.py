"""From samples of stacks to layers: which part of the data plane was at work, and what for."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")

HTTP, WORKER, SHIPPER, AGENT, REST = "HTTP process", "worker", "shipper", "agent", "parent and the rest"
PARTS = (HTTP, WORKER, SHIPPER, AGENT, REST)

# The first of these that any file of a stack lies in says whose stack it is.
_PART_OF = (
    ("serving/shipper/", SHIPPER),
    ("serving/agent/", AGENT),
    ("serving/worker_process.py", WORKER),
    ("serving/batch_runner.py", WORKER),
    ("serving/loader.py", WORKER),
    ("serving/front.py", HTTP),
    ("serving/dispatch.py", HTTP),
    ("serving/lane.py", HTTP),
    ("serving/recorder.py", HTTP),
    ("serving/spool/", HTTP),
    ("/uvicorn/", HTTP),
)

# Innermost file first: the first that lies in one of these says what for. A library counts for whoever called it.
_LAYER_OF = {
    HTTP: (
        ("serving/input_schema/", "validation"),
        ("serving/request_body.py", "parsing the body"),
        ("serving/open_inference/", "parsing the body"),
        ("serving/recorder.py", "prediction log"),
        ("serving/spool/", "prediction log"),
        ("serving/ids.py", "ids"),
        ("serving/model_metrics.py", "metrics"),
        ("serving/metrics.py", "metrics"),
        ("serving/dispatch.py", "dispatch to workers"),
        ("serving/lane.py", "dispatch to workers"),
        ("serving/channel.py", "dispatch to workers"),
        ("serving/catalogue.py", "choice of version"),
        ("serving/routing.py", "choice of version"),
        ("serving/idempotency.py", "idempotency"),
        ("serving/kept_answers.py", "idempotency"),
        ("serving/logged_answers.py", "idempotency"),
        ("serving/answer_reader.py", "reading and encoding answers"),
        ("serving/answers.py", "reading and encoding answers"),
        ("serving/contracts.py", "reading and encoding answers"),
        ("serving/prediction.py", "reading and encoding answers"),
        ("serving/endpoint.py", "reading and encoding answers"),
        ("serving/front.py", "front: path, headers, answer"),
        ("serving/intake.py", "front: path, headers, answer"),
        ("serving/http_protocol.py", "front: path, headers, answer"),
        ("serving/short_way.py", "front: path, headers, answer"),
        ("/uvicorn/", "HTTP (uvicorn, httptools)"),
        ("/uvloop/", "event loop and sockets"),
        ("/asyncio/", "event loop and sockets"),
    ),
    WORKER: (
        ("/sklearn/", "model"),
        ("/lightgbm/", "model"),
        ("serving/compiled/", "model"),
        ("serving/engines.py", "model"),
        ("serving/model_input.py", "rows to the model's input"),
        ("serving/loader.py", "rows to the model's input"),
        ("serving/batch_runner.py", "encoding answers"),
        ("serving/batching.py", "batching"),
        ("serving/channel.py", "reading and writing frames"),
        ("serving/peer.py", "reading and writing frames"),
        ("serving/worker_process.py", "reading and writing frames"),
    ),
}


class Sample(NamedTuple):
    """A stack, outermost file first, and how often it was seen."""

    files: tuple[str, ...]
    times: int


def parse(lines: Iterable[str]) -> list[Sample]:
    """Lines of `frame;frame;... count`, each frame as `function (file:line)`; frames without a file are left out."""
    samples = []
    for line in lines:
        stack, _, count = line.rstrip().rpartition(" ")
        if not count.isdigit():
            continue
        frames = [_FRAME.match(each) for each in stack.split(";")]
        samples.append(Sample(tuple(each["file"] for each in frames if each), int(count)))
    return samples


def layers(samples: Sequence[Sample]) -> dict[tuple[str, str], int]:
    """(part, layer) -> samples."""
    found: Counter[tuple[str, str]] = Counter()
    for each in samples:
        found[place(each.files)] += each.times
    return dict(found)


def place(files: Sequence[str]) -> tuple[str, str]:
    """Part and layer of one stack. A file of ours that no layer names stands for itself, so that nothing is hidden."""
    part = next((part for where, part in _PART_OF if any(where in each for each in files)), REST)
    for file in reversed(files):
        for where, layer in _LAYER_OF.get(part, ()):
            if where in file:
                return part, layer
        if part in _LAYER_OF and "/serving/" in file and "/site-packages/" not in file:
            return part, f"serving/{file.rpartition('/serving/')[2]}"
    return part, "all" if part not in _LAYER_OF else "else"
