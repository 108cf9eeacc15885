"""Runs the supervision as `switchyard up` does, with stand-ins. Run as: supervised_stack.py DESCRIPTION

DESCRIPTION is JSON: `parts` (see `spec_of`), `after` (what the work after readiness does). Settings come from the
environment.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from control_plane.settings import Settings, environment_of, load_settings
from control_plane.supervision.family import FOLDER_VARIABLE
from control_plane.supervision.processes import ProcessSpec, stack
from control_plane.supervision.readiness import HasWritten
from control_plane.supervision.run import run_processes
from serving.errors import SwitchyardError

CHILD = Path(__file__).with_name("supervised_child.py")


def spec_of(settings: Settings, part: dict[str, Any]) -> ProcessSpec:
    """A stand-in as described, or the real thing: {"real": name}."""
    if "real" in part:
        return next(each for each in stack(settings) if each.name == part["real"])
    name = part["name"]
    command = (sys.executable, str(CHILD), name, str(settings.home), *part.get("does", ()))
    return ProcessSpec(
        name=name,
        title=part.get("title", name),
        purpose=part.get("purpose", "a stand-in"),
        command=command,
        readiness=HasWritten(settings.home / "run" / f"{name}.ready"),
        address=part.get("address"),
        port=part.get("port"),
        port_setting=part.get("port_setting"),
        environment=environment_of(settings) | {FOLDER_VARIABLE: str(settings.home)},
        needs=tuple(part.get("needs", ())),
    )


def work_of(after: str | None) -> Callable[[], int] | None:
    def fail() -> int:
        raise RuntimeError("the demo broke")

    def wait() -> int:
        time.sleep(3600)
        return 0

    return {None: None, "return 7": lambda: 7, "fail": fail, "wait": wait}[after]


def main() -> int:
    settings = load_settings()
    description = json.loads(sys.argv[1])
    specs = [spec_of(settings, each) for each in description["parts"]]
    work = work_of(description.get("after"))
    try:
        return run_processes(
            settings, specs, lambda: print("prepared", flush=True), Console(), work, exit_after=work is not None
        )
    except SwitchyardError as error:
        print(f"{type(error).__name__}: {error.detail}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
