"""The states of a change, and the one table of transitions between them. Pure."""

from enum import StrEnum


class ChangeState(StrEnum):
    """Where a change stands; `MEANING` says each in a sentence."""

    REQUESTED = "requested"
    CHECKING = "checking"
    PREPARING = "preparing"
    SHIFTING = "shifting"
    VERIFYING = "verifying"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    FAILED = "failed"


MEANING: dict[ChangeState, str] = {
    ChangeState.REQUESTED: "it is on record, and nobody has looked at it yet",
    ChangeState.CHECKING: "the target is looked up, copied, compared with its digest, its signature and metric judged",
    ChangeState.PREPARING: "every live replica loads the target and warms it up; what served serves on",
    ChangeState.SHIFTING: "the routes are about to be written",
    ChangeState.VERIFYING: "the routes are written, and live replicas are applying them",
    ChangeState.SUCCEEDED: "every live replica routes to the target",
    ChangeState.REJECTED: "the target did not pass; what served before serves on untouched",
    ChangeState.CANCELLED: "somebody called it off in time; what served before serves on untouched",
    ChangeState.FAILED: "it stopped half-way; its detail says where traffic goes now, and a person is needed",
}

_S = ChangeState
TRANSITIONS: dict[ChangeState, frozenset[ChangeState]] = {
    _S.REQUESTED: frozenset({_S.CHECKING, _S.CANCELLED, _S.REJECTED}),
    _S.CHECKING: frozenset({_S.PREPARING, _S.SUCCEEDED, _S.REJECTED, _S.CANCELLED}),
    _S.PREPARING: frozenset({_S.SHIFTING, _S.REJECTED, _S.CANCELLED}),
    _S.SHIFTING: frozenset({_S.VERIFYING, _S.FAILED}),
    _S.VERIFYING: frozenset({_S.SUCCEEDED, _S.FAILED}),
    _S.SUCCEEDED: frozenset(),
    _S.REJECTED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.FAILED: frozenset(),
}
"""From a state to those that may follow. `succeeded` after `checking`: the target serves already."""


def has_ended(state: ChangeState) -> bool:
    """Whether nothing follows."""
    return not TRANSITIONS[state]


def can_be_cancelled(state: ChangeState) -> bool:
    """Whether traffic has not been touched yet, so that calling it off leaves everything as it was."""
    return _S.CANCELLED in TRANSITIONS[state]


def way_out(state: ChangeState) -> ChangeState:
    """Where a change ends that cannot go on from here: before traffic is touched rejected, after it failed."""
    return _S.REJECTED if _S.REJECTED in TRANSITIONS[state] else _S.FAILED


def require_transition(before: ChangeState, after: ChangeState) -> None:
    """Hold a step against the table.

    Raises:
        ValueError: the table does not have it; the caller is wrong.
    """
    if after not in TRANSITIONS[before]:
        raise ValueError(f"no change goes from {before} to {after}")
