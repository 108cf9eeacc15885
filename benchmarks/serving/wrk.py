"""wrk as generator, where it is installed: in C, so that it takes little of the machine it shares with the server."""

import json
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.serving.outcome import Load, Target

# Every request is made before the first is sent. wrk counts microseconds.
_SCRIPT = """
local requests, at = {}, 0
init = function(args)
  for line in io.lines(args[1]) do
    local path, body = line:match("^(%S+) (.*)$")
    requests[#requests + 1] = wrk.format("POST", path, {["content-type"] = "application/json"}, body)
  end
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
done = function(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "duration": %d, "p50": %f, "p95": %f, "p99": %f, "status": %d, "connection": %d, "timeout": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(95), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
"""


def find_wrk() -> str | None:
    """Where it is, if anywhere."""
    return shutil.which("wrk")


def run_wrk(target: Target, connections: int, seconds: float) -> Load:
    """Closed loop on so many connections, for so long. Percentiles count every answer, whatever its status."""
    with tempfile.TemporaryDirectory() as folder:
        script, questions = Path(folder) / "post.lua", Path(folder) / "questions.txt"
        script.write_text(_SCRIPT)
        questions.write_bytes(b"\n".join(each.path.encode() + b" " + each.body for each in target.questions))
        command = [
            find_wrk() or "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "10s",
            "-s",
            str(script),
        ]
        url = f"http://127.0.0.1:{target.port}"
        before = _cpu_of_children()
        said = subprocess.run([*command, url, str(questions)], check=True, capture_output=True, text=True).stdout
        cpu = _cpu_of_children() - before
    found = json.loads(said.splitlines()[-1])
    took = found["duration"] / 1e6
    errors = {name: found[name] for name in ("status", "connection", "timeout") if found[name]}
    return Load(
        seconds=took,
        answered=found["requests"] - found["status"],
        errors=errors,
        p50=found["p50"] / 1e6,
        p95=found["p95"] / 1e6,
        p99=found["p99"] / 1e6,
        generator_cpu=cpu / took,
        generator_late=None,
    )


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
