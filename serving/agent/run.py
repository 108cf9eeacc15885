"""The start of the agent's process."""

import asyncio
import signal

from serving.agent.options import AgentOptions
from serving.logs import configure_logging


def run_agent(options: AgentOptions) -> None:
    """The agent's life, until SIGTERM or the end of its parent. Call it in the main thread of a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides the order
    configure_logging("data-plane", options.log_level)
    # Only here: the parent, which imports this module too, needs no database and would start a second later.
    import uvloop

    from serving.agent.process import live

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live(options))
