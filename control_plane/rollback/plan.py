"""What a change will do, in the order in which it will, before it does. Pure."""

from collections.abc import Sequence
from typing import Any, Literal

from control_plane.replicas import Patience

Mode = Literal["staged", "instant"]


def plan_of(
    model_id: str, source: str | None, target: str, *, mode: Mode, stages: Sequence[float] | None, patience: Patience
) -> list[dict[str, Any]]:
    """One entry a step: its name, what it does, and after how many seconds it gives up (null: no limit of its own)."""
    kept = f"version {source}" if source else "nothing"
    return [
        _step("checking", f"Look up {target} of {model_id}, compare its bytes, judge signature and metric.", None),
        _step(
            "preparing",
            f"Load and warm up the target on every live replica; {kept} serves on meanwhile.",
            patience.ready,
        ),
        _step("shifting", f"Send 100 % of the traffic to the target.{_note(mode, stages)}", None),
        _step("verifying", "Wait until every live replica has applied the routes.", patience.applied),
    ]


def _note(mode: Mode, stages: Sequence[float] | None) -> str:
    """Said before it is done: whoever asked for stages must not believe that there were any."""
    if mode == "instant" and not stages:
        return ""
    return " In one step: weights in between come with the rollback engine."


def _step(name: str, what: str, limit: float | None) -> dict[str, Any]:
    return {"step": name, "what": what, "limit_seconds": limit}
