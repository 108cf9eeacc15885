"""A stand-in for one process of the stack. Run as: supervised_child.py NAME HOME BEHAVIOUR...

It writes its pid to HOME/pids, so that a test can see what became of it without asking the code under test.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOR_EVER = 3600


def main() -> None:
    name, home, *behaviours = sys.argv[1:]
    told = dict(each.partition("=")[::2] for each in behaviours)
    if "ignores-term" in told:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(home) / "pids").mkdir(exist_ok=True)
    (Path(home) / "pids" / f"{os.getpid()}").write_text(name)
    if "has-grandchild" in told:
        # In a session of its own, and deaf to TERM: only its marker leads to it, and only KILL ends it.
        grandchild = [sys.executable, __file__, f"{name}-grandchild", home, "ignores-term", "never-ready"]
        subprocess.Popen(grandchild, start_new_session=True)
    if "fails" in told:
        print("about to fail")
        raise ValueError("the thing is broken")
    if "floods" in told:
        flood(int(told["floods"]))
    if "never-ready" not in told:
        time.sleep(float(told.get("ready-after", "0")))
        (Path(home) / "run" / f"{name}.ready").write_text(str(os.getpid()))
    time.sleep(float(told.get("lives", FOR_EVER)))


def flood(lines: int) -> None:
    for number in range(lines):
        print(f"line {number} " + "x" * 80)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
