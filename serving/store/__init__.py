"""The database, as both planes see it: opening rules, sessions, shared tables."""

from serving.store.database import Database, open_database
from serving.store.prediction_tables import (
    PayloadChunkRow,
    PredictionAliasRow,
    PredictionRow,
    RollupRow,
    SpoolPositionRow,
)
from serving.store.tables import ModelVersionRow, RouteGenerationRow, RouteRow, RoutingRow

__all__ = [
    "Database",
    "ModelVersionRow",
    "PayloadChunkRow",
    "PredictionAliasRow",
    "PredictionRow",
    "RollupRow",
    "RouteGenerationRow",
    "RouteRow",
    "RoutingRow",
    "SpoolPositionRow",
    "open_database",
]
