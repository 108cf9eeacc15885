"""What we rely on inside uvicorn, which does not promise it: an upgrade that moves it must fail here, by name."""

import asyncio
import inspect
import re

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server

from serving.http_protocol import PredictProtocol, Short

OVERRIDDEN = {
    "on_message_begin": ["self"],
    "on_header": ["self", "name", "value"],
    "on_headers_complete": ["self"],
    "on_message_complete": ["self"],
    "on_response_complete": ["self"],
    "data_received": ["self", "data"],
    "connection_lost": ["self", "exc"],
    "_unset_keepalive_if_required": ["self"],
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_we_override_exists_with_these_parameters(name: str) -> None:
    """Our override would never be called, or break each request."""
    assert list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters) == OVERRIDDEN[name]
    assert name in vars(PredictProtocol)


def test_a_message_begins_with_these_and_a_scope_only() -> None:
    """Something else that uvicorn prepares for each request would be missing on the ordinary way."""
    source = inspect.getsource(HttpToolsProtocol.on_message_begin)
    assigned = {line.split("=")[0].strip() for line in source.splitlines() if line.strip().startswith("self.")}
    assert assigned == {"self.url", "self.expect_100_continue", "self.headers", "self.scope"}


def test_our_cycle_has_what_uvicorn_asks_of_one() -> None:
    """The protocol would fail on a connection that is lost, or while it shuts down."""
    source = inspect.getsource(HttpToolsProtocol)
    asked = set(re.findall(r"self\.cycle\.(\w+)", source))
    assert asked == {"response_complete", "disconnected", "message_event", "body", "more_body", "keep_alive"}
    assert asked <= set(Short.__slots__)


def test_a_cycle_says_whether_the_body_is_here_and_the_client_gone() -> None:
    """Each body would be waited for with a clock, and clients that left would not be counted."""
    source = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.more_body = True" in source
    assert "self.disconnected = False" in source
    assert inspect.iscoroutinefunction(RequestResponseCycle.receive)  # a bound method, whose __self__ is the cycle
    assert "write_paused" in inspect.getsource(FlowControl)


def test_its_own_headers_come_in_a_new_list() -> None:
    """Answers would for ever bear the date of the first one."""
    assert "self.server_state.default_headers = " in inspect.getsource(Server.on_tick)

    async def ticks() -> None:
        server = Server(uvicorn.Config("no:application", lifespan="off"))
        server.config.encoded_headers = []
        await server.on_tick(0)
        first = server.server_state.default_headers
        await server.on_tick(10)
        assert first
        assert server.server_state.default_headers is not first

    asyncio.run(ticks())


def test_the_loop_that_we_replace_only_ticks() -> None:
    """What else uvicorn did there would be left out."""
    source = inspect.getsource(Server.main_loop)
    assert re.findall(r"await (\S+?)\(", source) == ["self.on_tick", "asyncio.sleep", "self.on_tick"]
    assert "counter % 10 == 0" in inspect.getsource(Server.on_tick)
