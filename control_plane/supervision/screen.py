"""What a person at the terminal sees: a calm list while everything starts, then one table, then single lines."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control_plane.settings import load_settings
from control_plane.supervision.child import Child, State

_STYLES = {State.WAITING: "dim", State.STARTING: "yellow", State.READY: "green", State.DOWN: "red"}
_REFRESH_PER_SECOND = 4


class Screen:
    """Shows the life of a stack on `console`; a terminal that is gone is no reason to fail."""

    def __init__(self, console: Console, children: Sequence[Child], log_folder: Path) -> None:
        self._console, self._children, self._log_folder = console, children, log_folder
        self._live: Live | None = None
        self._is_up = False
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._list, console=console, refresh_per_second=_REFRESH_PER_SECOND, transient=True
            )

    def begin(self) -> None:
        self._try(self._live.start if self._live else lambda: self._console.print("Starting Switchyard"))

    def changed(self, child: Child) -> None:
        """While starting, the list shows it; where there is no list, and after a restart, a line does."""
        if self._is_up and child.state is State.READY:
            self._say(f"{_clock()} {child.spec.title} is back after {child.seconds:.1f} s")
        elif not self._is_up and self._live is None and child.state in (State.STARTING, State.READY):
            after = f" after {child.seconds:.1f} s" if child.state is State.READY else ""
            self._say(f"{child.spec.title}: {child.state.value}{after}")

    def died(self, child: Child, pause: float) -> None:
        self._say(f"{_clock()} {child.spec.title} {child.last_end}; it is started again in {pause:g} s", "yellow")

    def up(self, children: Sequence[Child]) -> None:
        self._is_up = True
        self._close_list()
        self._try(lambda: self._console.print(_addresses(children)))
        self._say(f"Logs: {self._log_folder}")
        self._say(f"Read them with: {_logs_command(self._log_folder.parent)}")
        self._say("Ctrl-C ends everything.")

    def ending(self, count: int) -> None:
        self._close_list()
        self._say(f"Ending {count} processes. Once more Ctrl-C kills them.")

    def ended(self) -> None:
        self._say("Everything has ended.")

    def _list(self) -> Group:
        grid = Table.grid(padding=(0, 2))
        for child in self._children:
            seconds = f"{child.seconds:.0f} s" if child.state in (State.STARTING, State.READY) else ""
            state = Text(child.state.value, _STYLES.get(child.state, ""))
            grid.add_row(child.spec.title, state, Text(seconds, "dim"))
        return Group("Starting Switchyard", grid)

    def _close_list(self) -> None:
        if self._live:
            self._try(self._live.stop)

    def _say(self, text: str, style: str = "") -> None:
        self._try(lambda: self._console.print(Text(text, style), soft_wrap=True))

    def _try(self, show: Callable[[], object]) -> None:
        try:
            show()
        except (OSError, ValueError, SystemExit):
            # The terminal was closed, or the reader of our output has gone: the processes are what matters.
            self._console.quiet = True


def _addresses(children: Sequence[Child]) -> Table:
    table = Table("Part", "Address", "What it is for", "Ready after", box=None, pad_edge=False, header_style="bold")
    table.columns[-1].justify = "right"
    for child in children:
        spec = child.spec
        # Addresses are copied by hand and by tools: never cut one.
        table.add_row(spec.title, Text(spec.address or "-", no_wrap=True), spec.purpose, f"{child.seconds:.1f} s")
    return table


def _logs_command(home: Path) -> str:
    """What to type in this shell: the command may not be on the PATH, and the folder may not be the configured one."""
    command = "switchyard" if shutil.which("switchyard") else os.path.relpath(sys.argv[0])
    folder = "" if load_settings().home == home else f"SWITCHYARD_DATA_FOLDER={shlex.quote(str(home))} "
    return f"{folder}{command} logs --follow"


def _clock() -> str:
    return f"{datetime.now().astimezone():%H:%M:%S}"
