"""Watching what serves: probes, and how each model stands."""

from control_plane.monitoring.health import HealthMonitor
from control_plane.monitoring.standing import ModelStanding, StandingReader

__all__ = ["HealthMonitor", "ModelStanding", "StandingReader"]
