"""Small real models of every kind, saved as MLflow saves them, without a server: what the data plane has to serve."""

import json
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")

import lightgbm
import mlflow.lightgbm
import mlflow.pyfunc
import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from serving.artifacts import ArtifactStore
from serving.contracts import ModelKind

PILL = -666.0
"""The value of column `a` that the models `raises` and `kills` cannot bear."""

_SAVED: dict[str, Any] = {"pip_requirements": ["scikit-learn"]}
_TREE = "sklearn.tree._tree.Tree"


@dataclass(frozen=True)
class ZooModel:
    """A saved model and what is known about it."""

    name: str
    folder: Path
    sample: Any  # DataFrame, or ndarray for a signature of tensors: rows it can answer for
    signature: dict[str, Any] | None  # with lists in it, not texts
    kind: ModelKind


class Zoo:
    """The models under one folder, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, ZooModel] = {}

    def get(self, name: str) -> ZooModel:
        """One of NAMES."""
        if name not in self._made:
            folder = self._folder / name
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow's hints at integer columns, scikit-learn's at what will go
                sample, signature, kind = _MAKERS[name](folder)
            listed = _listed(signature) if signature is not None else None
            self._made[name] = ZooModel(name, folder, sample, listed, kind)
        return self._made[name]


Made = tuple[Any, ModelSignature | None, ModelKind]


def registered(model: ZooModel, store: ArtifactStore) -> str:
    """The digest under which the store keeps the model from now on."""
    return store.put(lambda folder: shutil.copytree(model.folder, folder, dirs_exist_ok=True)).digest


def _listed(signature: ModelSignature) -> dict[str, Any]:
    parts = {name: getattr(signature, name) for name in ("inputs", "outputs", "params")}
    listed = {name: part.to_dict() if part else None for name, part in parts.items()}
    read: dict[str, Any] = json.loads(json.dumps(listed))  # as it comes out of the database: no tuples
    return read


def _save_sklearn(
    folder: Path, model: Any, features: Any, serialization_format: str = "cloudpickle", **more: Any
) -> ModelSignature:
    signature: ModelSignature = infer_signature(features, model.predict(features))
    mlflow.sklearn.save_model(
        model, str(folder), signature=signature, serialization_format=serialization_format, **_SAVED, **more
    )
    return signature


def _tumours() -> tuple[pd.DataFrame, Any]:
    """569 rows of 30 numbers, and whether each is benign."""
    found = load_breast_cancer(as_frame=True)
    return found.data, found.target


def _logistic(folder: Path, **how: Any) -> Made:
    features, target = _tumours()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features, target)
    return features, _save_sklearn(folder, model, features, **how), ModelKind.CLASSIFIER


def _logistic_skops(folder: Path) -> Made:
    return _logistic(folder, serialization_format="skops")


def _forest(folder: Path) -> Made:
    found = load_iris(as_frame=True)
    kind_of = np.array(["setosa", "versicolor", "virginica"])[found.target]
    model = RandomForestClassifier(10, random_state=0, n_jobs=2).fit(found.data, kind_of)
    saved = _save_sklearn(folder, model, found.data, "skops", skops_trusted_types=[_TREE], input_example=found.data[:3])
    return found.data, saved, ModelKind.CLASSIFIER


def _boosting_with_gaps(folder: Path) -> Made:
    features, target = _tumours()
    features = features.iloc[:, :6].copy()
    random = np.random.default_rng(0)
    for column in features.columns[:3]:
        features.loc[random.random(len(features)) < 0.2, column] = np.nan
    model = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(features, target)
    # The example has gaps too, which MLflow writes as a bare NaN.
    return features, _save_sklearn(folder, model, features, input_example=features[:5]), ModelKind.CLASSIFIER


def _flights(rows: int = 300) -> tuple[pd.DataFrame, Any]:
    """Made-up flights of mixed columns, some with gaps."""
    random = np.random.default_rng(1)
    features = pd.DataFrame(
        {
            "carrier": random.choice(["UA", "AA", "DL", "B6"], rows),
            "origin": random.choice(["JFK", "LGA", "EWR"], rows),
            "distance": random.integers(100, 3000, rows),
            "temp": random.normal(50, 20, rows).round(1),
            "wind": random.normal(10, 5, rows).astype(np.float32),
            "night": random.random(rows) < 0.3,
            "hour": random.integers(0, 24, rows).astype(np.int32),
        }
    )
    target = ((features["temp"] > 55) ^ (features["carrier"] == "UA")).astype(int)
    features.loc[random.random(rows) < 0.1, "carrier"] = None
    features.loc[random.random(rows) < 0.1, "temp"] = np.nan
    return features, target


def _columns(folder: Path, **more: Any) -> Made:
    features, target = _flights()
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer(
        [
            ("carrier", OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
            ("origin", encoder, ["origin"]),
            ("numbers", "passthrough", ["distance", "temp", "wind", "night", "hour"]),
        ],
        sparse_threshold=0.0,
    )
    model = Pipeline([("columns", columns), ("model", HistGradientBoostingClassifier(max_iter=20, random_state=0))])
    model.fit(features, target)
    return features, _save_sklearn(folder, model, features, **more), ModelKind.CLASSIFIER


def _named_numbers(folder: Path) -> Made:
    """Numbers only, and yet its ColumnTransformer knows them by name."""
    features, target = _tumours()
    features = features.iloc[:, :4]
    columns = ColumnTransformer([("scaled", StandardScaler(), list(features.columns[1:]))], remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression(max_iter=500)).fit(features, target)
    return features, _save_sklearn(folder, model, features), ModelKind.CLASSIFIER


def _linear(folder: Path) -> Made:
    found = load_diabetes(as_frame=True)
    model = LinearRegression().fit(found.data, found.target)
    return found.data, _save_sklearn(folder, model, found.data), ModelKind.REGRESSOR


def _multi_output(folder: Path) -> Made:
    found = load_diabetes(as_frame=True)
    model = LinearRegression().fit(found.data, np.column_stack([found.target, found.target**2]))
    return found.data, _save_sklearn(folder, model, found.data), ModelKind.REGRESSOR


def _booster(folder: Path) -> Made:
    features, target = _tumours()
    quiet = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    model = lightgbm.train(quiet, lightgbm.Dataset(features, target), num_boost_round=10)
    signature: ModelSignature = infer_signature(features, model.predict(features))
    mlflow.lightgbm.save_model(model, str(folder), signature=signature, pip_requirements=["lightgbm"])
    return features, signature, ModelKind.CLASSIFIER


def _booster_multiclass(folder: Path) -> Made:
    found = load_iris(as_frame=True)
    quiet = {"objective": "multiclass", "num_class": 3, "verbosity": -1, "num_threads": 1}
    model = lightgbm.train(quiet, lightgbm.Dataset(found.data, found.target), num_boost_round=5)
    signature: ModelSignature = infer_signature(found.data, model.predict(found.data))
    mlflow.lightgbm.save_model(model, str(folder), signature=signature, pip_requirements=["lightgbm"])
    return found.data, signature, ModelKind.CLASSIFIER


def _lgbm(folder: Path) -> Made:
    features, target = _tumours()
    model = lightgbm.LGBMClassifier(n_estimators=10, verbosity=-1, n_jobs=1).fit(features, target == 1)
    signature: ModelSignature = infer_signature(features, model.predict(features))
    mlflow.lightgbm.save_model(
        model, str(folder), signature=signature, serialization_format="cloudpickle", pip_requirements=["lightgbm"]
    )
    return features, signature, ModelKind.CLASSIFIER


def _booster_regression(folder: Path) -> Made:
    found = load_diabetes(as_frame=True)
    quiet = {"objective": "regression", "verbosity": -1, "num_threads": 1}
    model = lightgbm.train(quiet, lightgbm.Dataset(found.data, found.target), num_boost_round=10)
    signature: ModelSignature = infer_signature(found.data, model.predict(found.data))
    mlflow.lightgbm.save_model(model, str(folder), signature=signature, pip_requirements=["lightgbm"])
    return found.data, signature, ModelKind.REGRESSOR


def _lgbm_regressor(folder: Path) -> Made:
    found = load_diabetes(as_frame=True)
    model = lightgbm.LGBMRegressor(n_estimators=10, verbosity=-1, n_jobs=1).fit(found.data, found.target)
    signature: ModelSignature = infer_signature(found.data, model.predict(found.data))
    mlflow.lightgbm.save_model(
        model, str(folder), signature=signature, serialization_format="cloudpickle", pip_requirements=["lightgbm"]
    )
    return found.data, signature, ModelKind.REGRESSOR


def _svc(folder: Path) -> Made:
    """Its labels are not where its probabilities are largest: those come from another fit."""
    features, target = _tumours()
    features = features.iloc[:120, :2]
    model = SVC(probability=True, random_state=0).fit(features, target[:120])
    return features, _save_sklearn(folder, model, features), ModelKind.CLASSIFIER


def _linear_svc(folder: Path) -> Made:
    """Has no probabilities."""
    found = load_iris(as_frame=True)
    model = make_pipeline(StandardScaler(), LinearSVC(random_state=0)).fit(found.data, found.target)
    return found.data, _save_sklearn(folder, model, found.data), ModelKind.CLASSIFIER


def _two_columns(rows: int = 100) -> tuple[pd.DataFrame, Any]:
    random = np.random.default_rng(2)
    features = pd.DataFrame(random.normal(size=(rows, 2)), columns=["a", "b"])
    return features, (features["a"] > 0).astype(int)


def _save_pyfunc(folder: Path, model: Any, signature: ModelSignature, **more: Any) -> None:
    mlflow.pyfunc.save_model(
        str(folder), python_model=model, signature=signature, pip_requirements=["cloudpickle"], **more
    )


def _pyfunc(folder: Path) -> Made:
    # A class inside a function is pickled whole, so that it loads where these tests are not.
    class Greeter(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: pd.DataFrame) -> pd.DataFrame:
            said = [f"{name} is {age:g}" for name, age in zip(model_input["name"], model_input["age"], strict=True)]
            return pd.DataFrame({"said": said, "older": model_input["age"] + 1})

    features = pd.DataFrame({"name": ["ada", "grace", "emmy"], "age": [36.0, 85.0, 53.0]})
    outputs = pd.DataFrame({"said": ["ada is 36"], "older": [37.0]})
    signature = infer_signature(features, outputs)
    _save_pyfunc(folder, Greeter(), signature)
    return features, signature, ModelKind.GENERIC


def _pyfunc_params(folder: Path) -> Made:
    class Scaled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[str]:
            given = params or {}
            return [f"{value * given['factor']:g}{given['unit']}" for value in model_input["a"]]

    features, _ = _two_columns(5)
    params = ParamSchema([ParamSpec("factor", "double", 2.0), ParamSpec("unit", "string", "m")])
    inferred = infer_signature(features, ["2m"])
    signature = ModelSignature(inputs=inferred.inputs, outputs=inferred.outputs, params=params)
    _save_pyfunc(folder, Scaled(), signature)
    return features, signature, ModelKind.GENERIC


def optional_signature(*names: str) -> ModelSignature:
    """Of these columns, in this order: x, and perhaps a truth value b and a whole number n."""
    kinds = {"x": "double", "b": "boolean", "n": "long"}
    return ModelSignature(inputs=Schema([ColSpec(kinds[name], name, required=name == "x") for name in names]))


def _pyfunc_optional(folder: Path) -> Made:
    class Counts(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[str]:
            columns = ",".join(f"{name}:{model_input[name].dtype}" for name in model_input.columns)
            return [f"{x:g} {columns}" for x in model_input["x"]]

    signature = optional_signature("x", "n")
    _save_pyfunc(folder, Counts(), signature)
    return pd.DataFrame({"x": [1.0, 2.0], "n": [3, 4]}), signature, ModelKind.GENERIC


def _lgbm_optional(folder: Path) -> Made:
    """Its signature has the columns in another order, so it is given DataFrames."""
    random = np.random.default_rng(3)
    features = pd.DataFrame({"x": random.normal(size=300), "b": random.random(300) < 0.5})
    model = lightgbm.LGBMClassifier(n_estimators=5, verbosity=-1, n_jobs=1)
    model.fit(features, (features["x"] > 0) ^ features["b"])
    signature = optional_signature("b", "x")
    mlflow.lightgbm.save_model(
        model, str(folder), signature=signature, serialization_format="cloudpickle", pip_requirements=["lightgbm"]
    )
    return features[["b", "x"]], signature, ModelKind.CLASSIFIER


def _tensor(folder: Path) -> Made:
    features, target = _tumours()
    values = features.to_numpy().astype(np.float32)[:, :8]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(values, target)
    return values, _save_sklearn(folder, model, values), ModelKind.CLASSIFIER


def _unsigned(folder: Path) -> Made:
    features, target = _two_columns()
    mlflow.sklearn.save_model(
        LogisticRegression().fit(features, target), str(folder), serialization_format="cloudpickle", **_SAVED
    )
    return features, None, ModelKind.CLASSIFIER


def _raises(folder: Path) -> Made:
    class Choosy(LogisticRegression):  # type: ignore[misc]
        def predict_proba(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
            if (np.asarray(X)[:, 0] == PILL).any():
                raise ArithmeticError("it cannot bear that row")
            return super().predict_proba(X)

    features, target = _two_columns()
    return features, _save_sklearn(folder, Choosy().fit(features, target), features), ModelKind.CLASSIFIER


def _kills(folder: Path) -> Made:
    class Deadly(LinearRegression):  # type: ignore[misc]
        def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
            if (np.asarray(X)[:, 0] == PILL).any():
                os._exit(9)
            return super().predict(X)

    features, target = _two_columns()
    return features, _save_sklearn(folder, Deadly().fit(features, target), features), ModelKind.REGRESSOR


def _sleeps(folder: Path) -> Made:
    """Takes as many seconds as the largest value of its first column says."""

    class Sleepy(LinearRegression):  # type: ignore[misc]
        def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
            time.sleep(max(0.0, float(np.asarray(X)[:, 0].max())))
            return super().predict(X)

    features = pd.DataFrame({"seconds": [0.0, -1.0, -2.0], "b": [1.0, 2.0, 4.0]})
    model = Sleepy().fit(features, [1.0, 2.0, 3.0])
    return features, _save_sklearn(folder, model, features, input_example=features), ModelKind.REGRESSOR


def _shrinks(folder: Path) -> Made:
    """Leaves out the rows it does not like, as no model may."""

    class Shrinking(LinearRegression):  # type: ignore[misc]
        def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
            return super().predict(X)[np.asarray(X)[:, 0] != PILL]

    features, target = _two_columns()
    return features, _save_sklearn(folder, Shrinking().fit(features, target), features), ModelKind.REGRESSOR


def _with_pickle(folder: Path, content: bytes) -> Made:
    """A model whose file was exchanged for this one."""
    made = _unsigned(folder)
    (folder / "model.pkl").write_bytes(content)
    return made


class _Call:
    """Unpickled, it calls this function instead."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _unpickling_raises(folder: Path) -> Made:
    return _with_pickle(folder, pickle.dumps(_Call(exec, "raise RuntimeError('no licence found\\nat all')")))


def _unpickling_kills(folder: Path) -> Made:
    return _with_pickle(folder, pickle.dumps(_Call(os._exit, 9)))


def _unpickling_exits(folder: Path) -> Made:
    return _with_pickle(folder, pickle.dumps(_Call(exec, "raise SystemExit(0)")))


def _unpickling_hangs(folder: Path) -> Made:
    return _with_pickle(folder, pickle.dumps(_Call(time.sleep, 3600)))


def _unpickling_hangs_all(folder: Path) -> Made:
    """No other thread of the process goes on meanwhile: this search never lets go of the interpreter."""
    return _with_pickle(folder, pickle.dumps(_Call(exec, "import re; re.match('(a+)+$', 'a' * 64 + 'b')")))


def _unpickling_eats(folder: Path) -> Made:
    """Takes 20 MB more every 20 ms, up to 4 GB, and then as long as a hang."""
    eat = "import time; eaten = []\nfor _ in range(200): eaten.append(bytearray(b'x') * 20_000_000); time.sleep(0.02)\n"
    return _with_pickle(folder, pickle.dumps(_Call(exec, eat + "time.sleep(3600)")))


def deadly_beside(trigger: Path, folder: Path) -> ZooModel:
    """Ends its process when it is loaded while the file `trigger` is there; else it is as good as any."""
    sample, _, kind = _unsigned(folder)
    whole = (folder / "model.pkl").read_bytes()
    fuse = f"__import__('os')._exit(9) if __import__('os').path.exists({str(trigger)!r}) else __import__('pickle').loads({whole!r})"
    (folder / "model.pkl").write_bytes(pickle.dumps(_Call(eval, fuse)))
    return ZooModel("deadly", folder, sample, None, kind)


def _missing_package(folder: Path) -> Made:
    made = _with_pickle(folder, b"cno_such_package.models\nThing\n.")
    (folder / "requirements.txt").write_text("mlflow==3.17.2\nno-such-package==1.2.3\n")
    return made


_MAKERS: dict[str, Callable[[Path], Made]] = {
    "logistic": _logistic,
    "logistic-skops": _logistic_skops,
    "forest": _forest,
    "boosting-with-gaps": _boosting_with_gaps,
    "columns": _columns,
    "named-numbers": _named_numbers,
    "linear": _linear,
    "multi-output": _multi_output,
    "booster": _booster,
    "booster-multiclass": _booster_multiclass,
    "booster-regression": _booster_regression,
    "lgbm": _lgbm,
    "lgbm-regressor": _lgbm_regressor,
    "svc": _svc,
    "linear-svc": _linear_svc,
    "pyfunc": _pyfunc,
    "pyfunc-params": _pyfunc_params,
    "tensor": _tensor,
    "unsigned": _unsigned,
    "raises": _raises,
    "pyfunc-optional": _pyfunc_optional,
    "lgbm-optional": _lgbm_optional,
    "kills": _kills,
    "sleeps": _sleeps,
    "shrinks": _shrinks,
    "unpickling-raises": _unpickling_raises,
    "unpickling-kills": _unpickling_kills,
    "unpickling-exits": _unpickling_exits,
    "unpickling-hangs": _unpickling_hangs,
    "unpickling-hangs-all": _unpickling_hangs_all,
    "unpickling-eats": _unpickling_eats,
    "missing-package": _missing_package,
}

NAMES = tuple(_MAKERS)
"""Every model there is."""

SERVABLE = NAMES[: NAMES.index("raises")]
"""Those without a fault."""
