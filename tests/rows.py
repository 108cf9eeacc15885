"""Rows for tests, with everything that does not matter filled in."""

from datetime import UTC, datetime

from serving.store import ModelVersionRow


def kept_version(
    model_id: str,
    version: str,
    *,
    digest: str = "0" * 64,
    identity: str | None = None,
    created_at: datetime = datetime(2013, 4, 1, tzinfo=UTC),
) -> ModelVersionRow:
    """A kept version."""
    return ModelVersionRow(
        model_id=model_id,
        version=version,
        digest=digest,
        size_bytes=1234,
        identity=identity or f"models:/m-{model_id}-{version}",
        tags={"kind": "boosting"},
        metrics={"brier": 0.15, "diverged": None},
        signature={"inputs": [{"name": "temp", "type": "double", "required": True}], "outputs": None, "params": None},
        run_id="run",
        created_at=created_at,
        created_by="ada",
        kept_at=datetime(2013, 4, 2, tzinfo=UTC),
    )
