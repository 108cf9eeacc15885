"""The files of a model as MLflow lays them: what they say of themselves, how they are read, and why they cannot be."""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it has no types
import skops.io
import yaml

from serving.errors import ModelNotLoadable

_BOOSTER = "lightgbm.basic.Booster"
# Modules that come in a package of another name.
_PACKAGES = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow", "cv2": "opencv-python-headless"}
_LONGEST = 300


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder and what its file MLmodel says."""

    folder: Path
    loader: str  # "sklearn", "lightgbm", or "pyfunc" for all others
    model: Path  # its file; the folder itself for pyfunc
    serialization: str  # "cloudpickle", "pickle" or "skops"
    trusted: list[str]  # types that skops may make
    is_booster: bool  # LightGBM's own format
    has_code: bool  # modules beside the model that it is made of
    signature: dict[str, Any] | None

    @classmethod
    def of(cls, folder: Path) -> "ModelFiles":
        """Read them. Raises ModelNotLoadable when it is no model that MLflow could call either."""
        try:
            said = yaml.safe_load((folder / "MLmodel").read_text())
            flavors = said["flavors"]
            generic = flavors["python_function"]
            loader = _loader(generic, flavors)
            own = flavors.get(loader, {})
            name = own.get("pickled_model" if loader == "sklearn" else "data", "")
            return cls(
                folder=folder,
                loader=loader,
                model=folder / name,
                serialization=own.get("serialization_format", "pickle" if loader == "sklearn" else "cloudpickle"),
                trusted=own.get("skops_trusted_types") or [],
                is_booster=loader == "lightgbm" and own.get("model_class", _BOOSTER) == _BOOSTER,
                has_code=bool(generic.get("code")),
                signature=said.get("signature"),
            )
        except FileNotFoundError:
            raise ModelNotLoadable("there is no file MLmodel in it, so MLflow did not write it") from None
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as problem:
            raise ModelNotLoadable(
                f"its file MLmodel describes nothing that predicts ({type(problem).__name__}: {_first_line(problem)})"
            ) from problem

    def unpickle(self) -> Any:
        """The object in the model's file. Raises anything: such files may run any code, by design.

        What protects us is that only trusted people write to the registry, and that each byte is the one they wrote.
        skops makes the types only that the model's own file lists, which protects from accidents.
        """
        if self.serialization == "skops":
            return skops.io.load(self.model, trusted=self.trusted)
        with self.model.open("rb") as file:
            return (pickle if self.serialization == "pickle" else cloudpickle).load(file)


def _loader(generic: dict[str, Any], flavors: dict[str, Any]) -> str:
    module = str(generic.get("loader_module", "")).removeprefix("mlflow.")
    return module if module in ("sklearn", "lightgbm") and module in flavors else "pyfunc"


def words_of(problem: BaseException) -> str:
    """What an exception says, as text that can be sent: models raise anything, and so may be what it is asked."""
    try:
        said = str(problem)
    except Exception:  # noqa: BLE001  # its class has to do
        return ""
    return said.encode("utf-8", "replace").decode()


def explain(what: str, problem: BaseException, folder: Path) -> str:
    """Why something could not be done, in a sentence without a traceback, with the way out where it is known."""
    if isinstance(problem, ModuleNotFoundError) and problem.name:
        package = problem.name.split(".")[0]
        return (
            f"it needs the Python package '{package}', which is not installed here. "
            f"Install it: pip install {_requirement(package, folder)}"
        )
    return f"{what} raised {type(problem).__name__}: {_first_line(problem)}"


def _requirement(module: str, folder: Path) -> str:
    """The package of this module as the model's own requirements name it, with its version; else its usual name."""
    package = _PACKAGES.get(module, module).replace("_", "-").lower()
    try:
        listed = (folder / "requirements.txt").read_text().splitlines()
    except OSError:
        return package
    wanted = [
        line for line in listed if re.split(r"[\s<>=!~;\[]", line.strip())[0].replace("_", "-").lower() == package
    ]
    return wanted[0].strip() if wanted else package


def _first_line(problem: BaseException) -> str:
    lines = words_of(problem).strip().splitlines()
    return lines[0][:_LONGEST] if lines else "(nothing more was said)"
