"""ModelServer: LitServe's server with our processes in it. Starts them, brings them back, ends them in order."""

import asyncio
import functools
import gc
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

import litserve
import litserve.server
import uvicorn
from litserve.loops import inference_worker
from litserve.transport.base import MessageTransport

from serving.agent import AgentOptions, run_agent
from serving.channel import SocketFolder
from serving.front import AsgiApp, FrontOptions, HttpFront
from serving.http_protocol import PredictProtocol
from serving.logs import logger
from serving.metrics import Metrics
from serving.model_metrics import SlotMetrics
from serving.places import TEMPLATES
from serving.settings import ServingSettings
from serving.shipper import run_shipper
from serving.spool import kept_source
from serving.supervisor import SIGNALS, Charge, Supervisor
from serving.worker import WorkerAPI, WorkerLoop, end_with_parent, join_our_log

_LAME_DUCK = 0.3
_TICK = 1.0

log = logger(__name__)


class ModelServer:
    """The data plane: HTTP processes and inference workers around one listening socket."""

    def __init__(self, settings: ServingSettings, listener: socket.socket) -> None:
        """`listener` is bound and listens already, so that nobody else can take the port while the workers start."""
        self._settings = settings
        self._listener = listener

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; call it in the main thread. Raises SocketFolderUnusable."""
        settings = self._settings
        sockets = SocketFolder(settings.socket_folder, settings.data_plane_port)
        sockets.open()
        log.info("data plane starting", host=settings.host, port=settings.data_plane_port, workers=settings.workers)
        try:
            _Engine(settings, self._listener, sockets).run(
                # LitServe knows three hosts only and binds by itself; the socket below is the one that counts.
                host="127.0.0.1",
                port=settings.data_plane_port,
                fd=self._listener.fileno(),
                num_api_servers=settings.api_processes,
                log_level="warning",
                generate_client_file=False,
                access_log=False,
                log_config=None,
                lifespan="on",
                ws="none",
                proxy_headers=False,
                server_header=False,
                # Longer than clients keep idle connections (5 to 60 s), so that it is they who close, between requests.
                timeout_keep_alive=75,
            )
        finally:
            sockets.close()
        log.info("data plane stopped")


class _Engine(litserve.LitServer):  # type: ignore[misc]  # LitServe has no types
    """LitServe without its manager process, queues and monitor thread.

    What is overridden here LitServe calls private; tests/contracts/test_litserve.py holds each name and signature.
    """

    def __init__(self, settings: ServingSettings, listener: socket.socket, sockets: SocketFolder) -> None:
        self._settings = settings
        self._listener = listener
        self._worker_count = settings.workers + 1  # the last one is the spare
        self._addresses = [sockets.address(worker) for worker in range(self._worker_count)]
        self._agent_address = sockets.agent_address
        self._metrics = Metrics(TEMPLATES, settings.api_processes, self._worker_count, time.time())
        self._slot_metrics = SlotMetrics(settings.api_processes)
        settings.replica_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._worker_loop = WorkerLoop(
            self._addresses,
            settings.drain_timeout,
            settings.resolved_artifact_folder,
            settings.replica_folder / "versions.json",
            settings.load_timeout,
        )
        self._launch_api: Callable[[], BaseProcess]
        super().__init__(
            WorkerAPI(self._worker_loop, settings.log_level),
            accelerator="cpu",
            workers_per_device=self._worker_count,
            disable_openapi_url=True,
        )
        self.uvicorn_graceful_timeout = settings.drain_timeout

    def _init_manager(self, num_api_servers: int) -> "_NoManager":
        join_our_log()
        # LitServe waits for one ready entry before it starts to serve. Whether workers are there is asked of the
        # workers, by readiness, and liveness shall answer before they are.
        self.workers_setup_status = {"ours": "ready"}
        self.litapi_request_queues = {self.lit_api.api_path: None}
        self._monitor_workers = False
        self._transport = _NoTransport()
        # run() waits for this event in the main thread, the only one that may start processes: so it supervises.
        self._shutdown_event = Supervisor(
            self._listener, self._charges(num_api_servers), self._settings.drain_timeout, self._hung_workers
        )
        return _NoManager()

    def _hung_workers(self) -> list[str]:
        """The names of workers that have been inside one batch for longer than its model may take."""
        now = time.monotonic()
        return [f"worker-{k}" for k in range(self._worker_count) if self._worker_loop.overdue(k, now)]

    def _charges(self, api_processes: int) -> list[Charge]:
        apis = [
            Charge(f"api-{slot}", functools.partial(self._start_api, slot), self._metrics.api_restarted)
            for slot in range(api_processes)
        ]
        workers = [
            Charge(f"worker-{k}", functools.partial(self._start_worker, k), self._metrics.worker_restarted)
            for k in range(self._worker_count)
        ]
        agent = Charge("agent", self._start_agent, self._metrics.helper_restarted)
        shipper = Charge("shipper", self._start_shipper, self._metrics.helper_restarted)
        return [*apis, *workers, agent, shipper]

    def _start_agent(self) -> BaseProcess:
        settings = self._settings
        options = AgentOptions(
            worker_addresses=self._addresses,
            agent_address=self._agent_address,
            database_url=settings.resolved_database_url,
            database_timeout=settings.database_timeout,
            replica_folder=settings.replica_folder,
            artifact_folder=settings.resolved_artifact_folder,
            replica=f"{socket.gethostname()}:{settings.data_plane_port}",
            url=f"http://{settings.host}:{settings.data_plane_port}",
            api_processes=settings.api_processes,
            memory_budget_mb=settings.memory_budget_mb,
            log_level=settings.log_level,
            load_timeout=settings.load_timeout,
        )
        return _from_fork_server("agent", run_agent, options)

    def _start_shipper(self) -> BaseProcess:
        settings = self._settings
        spool_folder = settings.replica_folder / "spool"
        return _from_fork_server(
            "shipper",
            run_shipper,
            settings.resolved_database_url,
            settings.database_timeout,
            spool_folder,
            kept_source(spool_folder, f"{socket.gethostname()}:{settings.data_plane_port}"),
            settings.log_level,
        )

    def launch_inference_worker(self, lit_api: litserve.LitAPI) -> list[BaseProcess]:  # noqa: ARG002  # LitServe's signature
        """None yet: the supervisor starts them, as it starts them again."""
        return []

    def _start_worker(self, worker: int) -> BaseProcess:
        return self.launch_single_inference_worker(self.lit_api, worker)

    def launch_single_inference_worker(self, lit_api: litserve.LitAPI, worker_id: int) -> BaseProcess:
        """From the fork server, which has everything imported: 0.1 s where LitServe's spawn takes seconds."""
        self._worker_loop.next_generation(worker_id)
        return _from_fork_server(
            f"worker-{worker_id}",
            inference_worker,
            lit_api,
            self._inference_workers_config_for_api(lit_api.api_path)[worker_id],
            worker_id,
            None,
            self._transport,
            self.workers_setup_status,
            self._callback_runner,
            False,
        )

    def _start_server(
        self, port: int, num_uvicorn_servers: int, log_level: str, sockets: list[socket.socket], uvicorn_worker_type: str, **kwargs: Any
    ) -> dict[int, BaseProcess]:  # fmt: skip
        """Remember how to start an HTTP process. The supervisor does it, so LitServe is given none to look after."""
        del num_uvicorn_servers
        for theirs in sockets:
            theirs.close()
        start = functools.partial(
            super()._start_server, port, 1, log_level, [self._listener], uvicorn_worker_type, **kwargs
        )
        self._launch_api = lambda: start()[0]
        return {}

    def _start_api(self, slot: int) -> BaseProcess:
        # LitServe looks the class up in its module at each start; this is the only way to hand it ours.
        litserve.server._Server = functools.partial(_ApiServer, front=functools.partial(self._front, slot))  # noqa: SLF001
        with _signals_held():
            return self._launch_api()

    def _front(self, slot: int, app: AsgiApp) -> HttpFront:
        settings = self._settings
        options = FrontOptions(
            slot=slot,
            worker_addresses=self._addresses,
            agent_address=self._agent_address,
            replica_folder=settings.replica_folder,
            max_body_bytes=settings.max_body_bytes,
            spool_max_bytes=settings.spool_max_bytes // settings.api_processes,
            log_predictions=settings.log_predictions,
            log_payloads=settings.log_predictions and settings.log_payloads,
            otlp_endpoint=settings.otlp_endpoint,
            trace_sample_ratio=settings.trace_sample_ratio,
        )
        return HttpFront(app, options=options, metrics=self._metrics, slot_metrics=self._slot_metrics)


def _from_fork_server(name: str, target: Callable[..., object], *arguments: object) -> BaseProcess:
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments, name=name)
    process.start()
    return process


class _NoManager:
    """Stands where LitServe keeps its manager process, which we do without."""

    def shutdown(self) -> None:
        """Nothing to end."""


class _NoTransport(MessageTransport):  # type: ignore[misc]  # LitServe has no types
    """Stands where LitServe keeps its queues: nothing is ever sent this way."""

    def send(self, item: Any, consumer_id: int) -> None:
        """Never called."""

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> Any:  # noqa: ARG002, ASYNC109  # LitServe's signature
        """Nothing ever comes."""
        await asyncio.Event().wait()


class _ApiServer(litserve.server._Server):  # type: ignore[misc]  # noqa: SLF001  # see _start_api
    """uvicorn in an HTTP process: ends with its parent, and stops without cutting a client off."""

    def __init__(self, config: uvicorn.Config, front: Callable[[AsgiApp], HttpFront]) -> None:
        self._front = front(config.app)  # type: ignore[arg-type]  # LitServe passes the application itself
        # Outside of FastAPI's middleware, not as one of them: they cost as much as all of ours.
        config.app = self._front
        config.http = functools.partial(PredictProtocol, front=self._front)  # type: ignore[assignment]  # only called
        super().__init__(config)
        self._told_to_end: Callable[[], object] = lambda: None

    def run(self, worker_id: int, sockets: list[socket.socket] | None = None) -> None:
        """The HTTP process's life."""
        parent = multiprocessing.parent_process()
        signal.set_wakeup_fd(-1)  # the parent's, inherited
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if parent is not None and parent.pid is not None:
            end_with_parent(parent.pid)
        # Requests make few cycles and many objects: at its default pace the collector takes a sixth of this process.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        super().run(worker_id, sockets)

    async def main_loop(self) -> None:
        """uvicorn's looks ten times a second whether to end, which is half of what an idle process does: this is told."""
        end = asyncio.Event()
        self._told_to_end = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, end.set)
        while not await self.on_tick(0):  # by which the header with the date is renewed
            with suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), _TICK)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Ctrl-C reaches the whole group, but the parent has to close its listening socket first: it says when."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)
            self._told_to_end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, ask clients to leave with their next answer, give them a moment for it, then close."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        self._front.stop()
        end = time.monotonic() + _LAME_DUCK
        while self.server_state.connections and time.monotonic() < end:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait: a child would lose one that came before it has handlers of its own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
