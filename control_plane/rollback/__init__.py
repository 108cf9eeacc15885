"""Changes of what serves: promotion, and later rollback, through one engine."""

from control_plane.rollback.checks import TargetChecks
from control_plane.rollback.executor import Executor, Pace
from control_plane.rollback.manager import ChangeManager, Wish
from control_plane.rollback.record import Change, Step
from control_plane.rollback.states import ChangeState

__all__ = ["Change", "ChangeManager", "ChangeState", "Executor", "Pace", "Step", "TargetChecks", "Wish"]
