"""What we rely on inside LitServe, most of it private: an upgrade that moves it must fail here, by name."""

import importlib.metadata
import inspect
import logging
import multiprocessing
from typing import Any

import litserve
import litserve.server
import pytest
import uvicorn
from litserve.loops import inference_worker
from litserve.loops.base import LitLoop
from litserve.transport.base import MessageTransport

from serving import server, worker

OVERRIDDEN = {
    "_init_manager": ["self", "num_api_servers"],
    "_start_server": ["self", "port", "num_uvicorn_servers", "log_level", "sockets", "uvicorn_worker_type", "kwargs"],
    "launch_inference_worker": ["self", "lit_api"],
    "launch_single_inference_worker": ["self", "lit_api", "worker_id"],
}


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_was_read() -> None:
    """Private names may change in any release; another version must be read before it is allowed."""
    assert importlib.metadata.version("litserve") == "0.2.19"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_we_override_exists_with_these_parameters(name: str) -> None:
    """Our override would never be called, and LitServe's queues and manager process would be back unnoticed."""
    assert _parameters(getattr(litserve.LitServer, name)) == OVERRIDDEN[name]
    ours = _parameters(getattr(server._Engine, name))
    assert ours == OVERRIDDEN[name]


def test_run_takes_its_steps_in_the_order_we_build_on() -> None:
    """Supervision would start before there is a socket, or never."""
    steps = [
        "configure_logging(",
        "config.bind_socket()",
        "self._init_manager(",
        "self.launch_inference_worker(",
        "self.verify_worker_status()",
        "self._start_server(",
        "if self._monitor_workers:",
        "self._shutdown_event.wait()",
        "self._perform_graceful_shutdown(",
    ]
    source = inspect.getsource(litserve.LitServer.run)
    places = [source.index(step) for step in steps]
    assert places == sorted(places)


def test_the_server_class_is_looked_up_in_the_module() -> None:
    """Our HTTP processes would run without drain, our answers and the end with their parent."""
    assert issubclass(litserve.server._Server, uvicorn.Server)
    assert _parameters(litserve.server._Server.run) == ["self", "worker_id", "sockets"]
    source = inspect.getsource(litserve.LitServer._start_server)
    assert "server = _Server(config=uvicorn_config)" in source
    assert 'mp.get_context("fork")' in source


def test_uvicorn_is_stopped_the_way_we_override() -> None:
    """Clients would be cut off at each stop."""
    assert _parameters(uvicorn.Server.shutdown) == ["self", "sockets"]
    assert _parameters(uvicorn.Server.handle_exit) == ["self", "sig", "frame"]
    fresh = uvicorn.Server(uvicorn.Config(app="none", log_config=None))
    assert fresh.server_state.connections == set()


def test_the_worker_function_takes_what_we_start_it_with() -> None:
    """No worker would start."""
    assert _parameters(inference_worker) == [
        "lit_api",
        "device",
        "worker_id",
        "request_queue",
        "transport",
        "workers_setup_status",
        "callback_runner",
        "restart_workers",
    ]
    assert _parameters(MessageTransport.areceive) == _parameters(server._NoTransport.areceive)
    assert _parameters(MessageTransport.send) == _parameters(server._NoTransport.send)


def test_the_loop_is_called_by_position() -> None:
    """The worker would come up and never listen."""
    stock = _parameters(LitLoop.__call__)
    assert stock[1:4] == ["lit_api", "device", "worker_id"]
    assert len(stock) == 8
    source = inspect.getsource(inference_worker)
    assert source.index("lit_api.setup(device)") < source.index("loop(")


def test_one_ready_entry_is_all_that_a_start_waits_for() -> None:
    """The server would wait for ever for workers that the supervisor has yet to start."""
    source = inspect.getsource(litserve.LitServer.verify_worker_status)
    assert "any(v == WorkerSetupStatus.READY for v in self.workers_setup_status.values())" in source


def test_litserve_logs_to_a_handler_of_its_own_until_we_take_it_away() -> None:
    """Its lines would appear on standard output, as plain text among JSON."""
    litserve.configure_logging()
    theirs = logging.getLogger("litserve")
    assert theirs.handlers
    worker.join_our_log()
    assert not theirs.handlers
    assert theirs.propagate


def test_a_fork_server_that_dies_reports_its_children_as_ended() -> None:
    """Workers would go on unsupervised after the fork server's death, beside those started in their place."""
    from multiprocessing import popen_forkserver

    assert "255" in inspect.getsource(popen_forkserver.Popen.poll)
    assert multiprocessing.get_context("forkserver").Process._start_method == "forkserver"


@pytest.mark.parametrize("host", ["localhost", "192.0.2.1"])
def test_stock_run_refuses_hosts_that_we_allow(host: str) -> None:
    """Documents why we bind the socket ourselves: stock LitServe knows 127.0.0.1, 0.0.0.0 and :: only."""
    stock = litserve.LitServer(litserve.test_examples.SimpleLitAPI(), accelerator="cpu")
    with pytest.raises(ValueError, match="host must be"):
        stock.run(host=host, port=8000, generate_client_file=False)
