"""The database, as both planes see it: opening rules, sessions, shared tables."""

from serving.store.database import Database, open_database
from serving.store.tables import ModelVersionRow, RouteGenerationRow, RouteRow, RoutingRow

__all__ = [
    "Database",
    "ModelVersionRow",
    "RouteGenerationRow",
    "RouteRow",
    "RoutingRow",
    "open_database",
]
