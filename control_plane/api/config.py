"""How a model is served: its ModelServingConfig."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from control_plane.api.dependencies import ModelId, Person, ServicesOf, in_own_thread, require_known
from control_plane.api.errors import WITH_BODY, documented
from control_plane.errors import RegistryRefused, RegistryUnreachable
from control_plane.storage.configs import write_config
from serving.contracts import ModelServingConfig
from serving.errors import DatabaseUnavailable, FieldProblem, ModelNotFound, ValidationFailed

router = APIRouter(prefix="/ml/models", tags=["models"])

_READ_ONLY = {
    "model_path": "left out: it follows from the digest of the serving version",
    "model_version": "left out: promote another version to change it",
}
# Each is read anew for every request, batch, probe or load.
_EFFECTIVE: dict[str, Literal["now", "on_restart"]] = {
    name: "now" for name in ModelServingConfig.model_fields if name not in _READ_ONLY
}
_FAILURES = (ModelNotFound, DatabaseUnavailable, RegistryUnreachable, RegistryRefused)


def _without_read_only(schema: dict[str, Any]) -> None:
    """They are refused with a reason of their own, and so not part of what may be sent."""
    for name in _READ_ONLY:
        schema["properties"].pop(name, None)
    schema["examples"] = [{"batch_size": 32, "timeout": 10, "performance_threshold": 0.7}]


class ConfigChange(ModelServingConfig):
    """The fields to set; what is left out stays."""

    # Strict: true is no batch size, and "64" was meant as something else than 64.
    model_config = ConfigDict(strict=True, json_schema_extra=_without_read_only)

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        """In JSON 64.0 is an integer too."""
        if not isinstance(given, dict):
            return given
        return {name: int(each) if type(each) is float and each.is_integer() else each for name, each in given.items()}


class ConfigBody(BaseModel):
    """The configuration in force."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str = Field(examples=["flights"])
    config: ModelServingConfig
    effective: dict[str, Literal["now", "on_restart"]] = Field(
        description="When a change of each field takes effect. Of warmup_requests and compiled: with every load from now on.",
        examples=[_EFFECTIVE],
    )


@router.get("/{model_id}/config", summary="How a model is served", responses=documented(*_FAILURES, ValidationFailed))
async def read_config(services: ServicesOf, model_id: ModelId) -> ConfigBody:
    """Every field, with its default where it was never set."""
    await require_known(services, model_id)
    config = await in_own_thread(services.standings.config, model_id)
    return ConfigBody(model_id=model_id, config=config, effective=_EFFECTIVE)


@router.put("/{model_id}/config", summary="Change how a model is served", responses=documented(*_FAILURES, *WITH_BODY))
async def change_config(services: ServicesOf, model_id: ModelId, body: ConfigChange, person: Person) -> ConfigBody:
    """Only the fields that are given; every replica follows within a second, without a restart."""
    given = body.model_dump(exclude_unset=True)
    problems = [FieldProblem(name, "cannot be set", instead) for name, instead in _READ_ONLY.items() if name in given]
    if problems:
        raise ValidationFailed(problems)
    await require_known(services, model_id)

    def write() -> ModelServingConfig:
        with services.database.writing() as session:
            write_config(session, model_id, given, person)
        return services.standings.config(model_id)

    return ConfigBody(model_id=model_id, config=await in_own_thread(write), effective=_EFFECTIVE)
