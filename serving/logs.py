"""One JSON object a line on standard error, with the ids of what is being worked on, and no secrets."""

import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import structlog
from structlog.contextvars import bound_contextvars

EventDict = MutableMapping[str, Any]

# user:password@ in any address (a password may hold an @), ?password= behind it, and the values of keys that name a secret.
# Digits and a slash are a port and a page only on the web, where an @ may follow (`.../models/flights@champion`). Of
# anything else too much is masked rather than too little: passwords begin with digits too.
_CREDENTIALS = re.compile(r"((?<!http)(?<!https)://[^\s/:@]*:|https?://[^\s/:@]*:(?!\d+/))(?:[^\s/]+|[^\s@]+)(?=@)")
_PARAMETER = re.compile(r"(?<=[?&])(password|passwd|token|secret|api_key)=[^\s&]+", re.IGNORECASE)
_SECRET_KEY = re.compile(r"password|passwd|secret|token|api_key|auth_string|authorization", re.IGNORECASE)
# What a request carries is the caller's business: a log line names the request, never its contents.
_PAYLOAD_KEYS = frozenset({"input_data", "features", "body", "predictions", "row", "rows"})

_LONGEST_CHAIN = 10

working_on = bound_contextvars
"""`with working_on(request_id=..., change_id=..., test_id=...):` puts the ids on every line logged inside."""


class Traced(NamedTuple):
    """A request that is part of a trace, as its log lines name it."""

    request_id: str
    trace_id: str
    span_id: str


request_of_the_log: ContextVar[str | Traced | None] = ContextVar("request_of_the_log", default=None)
"""The id of the request that the current task is for; on every line that is logged in it. Cheaper than the above."""


def mask(text: str) -> str:
    """The text without passwords in addresses."""
    return _PARAMETER.sub(r"\1=***", _CREDENTIALS.sub(r"\1***", text))


def _without_secrets(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn's event once more, for terminals
    for key, value in event.items():
        if key in _PAYLOAD_KEYS:
            event[key] = "(left out)"
        elif _SECRET_KEY.search(key) and value is not None:
            event[key] = "***"
        elif isinstance(value, str):
            event[key] = mask(value)
    return event


def _name_request(_logger: Any, _method: str, event: EventDict) -> EventDict:
    named = request_of_the_log.get()
    if isinstance(named, Traced):
        for key, value in named._asdict().items():
            event.setdefault(key, value)
    elif named is not None:
        event.setdefault("request_id", named)
    return event


def _traceback(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """An exception as its classes and places. Without its words: they may quote what a client or a row held."""
    given = event.pop("exc_info", None)
    if not given:
        return event
    error = given if isinstance(given, BaseException) else (given if isinstance(given, tuple) else sys.exc_info())[1]
    parts: list[str] = []
    while error is not None and len(parts) < _LONGEST_CHAIN:
        places = traceback.format_list(traceback.extract_tb(error.__traceback__))
        parts.append("".join(places) + type(error).__qualname__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    event["exception"] = "\nfrom it came:\n".join(reversed(parts))
    return event


def configure_logging(part: str, level: str) -> None:
    """Send this process's log, the libraries' too, to standard error as JSON lines.

    `part` is the process's name in the log (`data-plane`, `control-plane`, ...); `level` a lower-case level name.
    """

    def name_part(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["part"] = part
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _name_request,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.stdlib.PositionalArgumentsFormatter(),
        _traceback,
        name_part,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _without_secrets,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore"):  # a line for every request they make
        logging.getLogger(chatty).setLevel(logging.WARNING)


def logger(name: str) -> Any:
    """The logger of one module; call its `info`, `warning`, `error` with an event and keyword facts."""
    return structlog.stdlib.get_logger(name)
