"""The paths of the data plane: which there are, and what a request's path names."""

import re
from typing import NamedTuple

PREDICT = "/ml/models/{model_id}/predict"
FIXED = ("/health/live", "/health/ready", "/v2", "/v2/health/live", "/v2/health/ready", "/metrics")
V2_MODEL = "/v2/models/{model_id}"
V2_VERSION = "/v2/models/{model_id}/versions/{version}"
UNKNOWN_PATH = "(unknown)"
TEMPLATES = (
    *FIXED, PREDICT,
    V2_MODEL, f"{V2_MODEL}/ready", f"{V2_MODEL}/infer",
    V2_VERSION, f"{V2_VERSION}/ready", f"{V2_VERSION}/infer",
    UNKNOWN_PATH,
)  # fmt: skip
"""The routes, as metrics and answers name them."""
PREDICTIONS = frozenset({PREDICT, f"{V2_MODEL}/infer", f"{V2_VERSION}/infer"})
"""Those that may begin a trace."""

_PREDICT_PATH = re.compile(r"/ml/models/([^/]+)/predict")
_V2_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")


class Place(NamedTuple):
    """Where a path leads."""

    template: str
    model_id: str
    version: str | None


def locate(path: str) -> Place:
    """The template that a path belongs to, and the model and version it names."""
    found = _PREDICT_PATH.fullmatch(path)
    if found:
        return Place(PREDICT, found[1], None)
    if path in FIXED:
        return Place(path, "", None)
    found = _V2_PATH.fullmatch(path)
    if found:
        base = V2_MODEL if found[2] is None else V2_VERSION
        return Place(base + (found[3] or ""), found[1], found[2])
    return Place(UNKNOWN_PATH, "", None)
