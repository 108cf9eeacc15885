"""Models and their versions."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.dependencies import ModelId, ServicesOf
from control_plane.api.errors import documented
from control_plane.errors import RegistryRefused, RegistryUnreachable
from control_plane.registry import VersionState
from control_plane.replicas import MEANING, ModelStatus
from serving.errors import DatabaseUnavailable, ModelNotFound, ValidationFailed

router = APIRouter(prefix="/ml/models", tags=["models"])


class RouteBody(BaseModel):
    """One version's share of the traffic."""

    model_config = ConfigDict(from_attributes=True)

    version: str = Field(examples=["3"])
    weight: float = Field(ge=0, le=1, examples=[1.0])


class ModelBody(BaseModel):
    """One model, as the list shows it."""

    model_config = ConfigDict(from_attributes=True)

    model_id: str = Field(examples=["flights"])
    version: str | None = Field(
        description="The version with the largest share; null while it is unserved.", examples=["3"]
    )
    status: ModelStatus = Field(
        description=". ".join(f"{status.value}: {said}" for status, said in MEANING.items()), examples=["ready"]
    )
    routes: list[RouteBody]
    aliases: dict[str, str] = Field(description="alias -> version", examples=[{"champion": "3", "previous": "2"}])


class ModelList(BaseModel):
    """Every model that is registered or that we keep a version of."""

    items: list[ModelBody]
    next: str | None = None
    unavailable: dict[str, str] = Field(
        {},
        description="Sources that could not be asked, and why: then there may be more than is listed.",
        examples=[{}],
    )


class VersionBody(BaseModel):
    """One version, from the registry and from what we keep ourselves."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "version": "3",
                    "aliases": ["champion"],
                    "tags": {"window": "2013-01..2013-03"},
                    "metrics": {"brier": 0.149},
                    "signature": {
                        "inputs": [
                            {"name": "carrier", "type": "string", "required": True},
                            {"name": "temp", "type": "double", "required": True},
                        ],
                        "outputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}],
                        "params": None,
                    },
                    "size_bytes": 482133,
                    "digest": "4c9a7d61f8b1a6f0f6d0f4f5b0d2a2b7e1c3d5f7a9b1c3d5e7f90b1d3f5a7c9e",
                    "created_at": "2013-04-01T06:00:00Z",
                    "created_by": "ada",
                    "state": "kept",
                    "weight": 0.0,
                    "run_id": "913643b399a74a8c8f8575d4f1bde1b2",
                    "description": "",
                }
            ]
        },
    )

    version: str
    aliases: list[str]
    tags: dict[str, str]
    metrics: dict[str, float | None] = Field(
        description="As logged to the run or the model; null where that was no finite number."
    )
    signature: dict[str, Any] | None
    size_bytes: int | None
    digest: str | None = Field(
        description="sha256 of our own copy; null until the version was prepared for the first time."
    )
    created_at: datetime
    created_by: str | None
    state: VersionState = Field(
        description="registered: the registry has it. incomplete: its registration has not ended. lost: its files are gone. "
        "kept: our own verified copy is here too. removed: gone from the registry, our copy is here. "
        "replaced: the number means another version in the registry now. serving: it has a share of the traffic."
    )
    weight: float = Field(description="Share of the traffic, 0 to 1.")
    run_id: str | None
    description: str


class VersionList(BaseModel):
    """Versions of one model, newest first."""

    items: list[VersionBody]
    next: str | None = Field(None, description="Give it as `before` to get the following page; null on the last.")
    unavailable: dict[str, str] = Field(
        {},
        description="Sources that could not be asked, and why: then there may be more than is listed.",
        examples=[{}],
    )


@router.get("", summary="Every model", responses=documented(RegistryRefused, DatabaseUnavailable))
def list_models(services: ServicesOf) -> ModelList:
    """What is registered, and what of it serves. Answers with what we know ourselves while the registry is down."""
    found = services.versions.models()
    return ModelList(items=[ModelBody.model_validate(each) for each in found.items], unavailable=found.unavailable)


@router.get(
    "/{model_id}/versions",
    summary="The versions of a model",
    responses=documented(ModelNotFound, RegistryRefused, ValidationFailed, DatabaseUnavailable, RegistryUnreachable),
)
def list_versions(
    services: ServicesOf,
    model_id: ModelId,
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 100,
    before: Annotated[
        str | None, Query(pattern=r"^\d{1,18}$", description="Only versions older than this one.")
    ] = None,
) -> VersionList:
    """Newest first, with aliases, tags, metrics, signature, size, author, and what we keep of each."""
    found = services.versions.versions(model_id, limit=limit, before=before)
    items = [VersionBody.model_validate(each) for each in found.items]
    return VersionList(items=items, next=found.next, unavailable=found.unavailable)
