"""From a kept folder to a model that answers as MLflow's own would, for every kind of model."""

import ctypes
import gc
import importlib.metadata
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import orjson
import pandas as pd
import psutil
import pytest

from serving.artifacts import ArtifactStore
from serving.contracts import Encoding, ModelKind
from serving.errors import ArtifactDamaged, ArtifactMissing, ModelNotLoadable
from serving.loader import LoadedModel, ModelLoader
from serving.pyfunc import rows_of
from tests.models import NAMES, PILL, SERVABLE, Zoo, ZooModel, registered
from tests.processes import ROOT

pytestmark = [
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),  # as ModelLoader does for its process
    pytest.mark.filterwarnings("ignore:X has feature names:UserWarning"),
]

NUMBERS = {"double", "float", "long", "integer", "boolean"}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An empty artifact store."""
    return ArtifactStore(tmp_path / "artifacts")


def load(store: ArtifactStore, model: ZooModel, *, batch_size: int = 64, warmup_requests: int = 3) -> LoadedModel:
    """The model by way of the store."""
    digest = registered(model, store)
    return ModelLoader(store).load("m", "1", digest, batch_size=batch_size, warmup_requests=warmup_requests)


def inputs(model: ZooModel) -> list[dict[str, Any]]:
    return model.signature["inputs"] if model.signature else []


def random_rows(model: ZooModel, rows: int, seed: int) -> Any:
    """Rows like those of its sample, with values it has never seen, and gaps where it may have them."""
    random = np.random.default_rng(seed)
    picked = random.integers(0, len(model.sample), rows)
    if isinstance(model.sample, np.ndarray):
        return model.sample[picked] + random.normal(size=(rows, model.sample.shape[1])).astype(model.sample.dtype)
    frame = model.sample.iloc[picked].reset_index(drop=True).copy()
    for column in inputs(model):
        name = column["name"]
        if column["type"] == "double":
            frame[name] = frame[name] * random.normal(1.0, 0.3, rows)
        unseen = random.random(rows) < 0.2
        if column["type"] == "string":
            frame.loc[unseen, name] = "never seen"
        if not column["required"]:
            frame.loc[random.random(rows) < 0.3, name] = None
    return frame


def travelling(model: ZooModel, rows: Any) -> tuple[Encoding, list[list[Any]], bytes]:
    """The rows as an HTTP process would send them: encoding, each row's cells, and the variant."""
    if isinstance(rows, np.ndarray):
        return Encoding.FLOATS, rows.astype(float).tolist(), b""
    cells = [[None if pd.isna(cell) else cell for cell in row] for row in rows.astype(object).to_numpy().tolist()]
    if not inputs(model):
        return Encoding.JSON, cells, orjson.dumps({"columns": list(rows.columns)})
    numeric = all(column["type"] in NUMBERS for column in inputs(model))
    return Encoding.FLOATS if numeric else Encoding.JSON, cells, b""


def body(encoding: Encoding, cells: list[list[Any]]) -> bytes:
    if encoding is Encoding.FLOATS:
        return np.array(cells, np.float64).astype("<f8").tobytes()
    return orjson.dumps(cells)


def ask(loaded: LoadedModel, model: ZooModel, rows: Any, sizes: list[int], variant: bytes = b"") -> list[Any]:
    """One answer per row: an array row, or a JSON value. The rows are dealt out to requests of these sizes."""
    encoding, cells, columns = travelling(model, rows)
    bodies, start = [], 0
    for size in sizes:
        bodies.append(body(encoding, cells[start : start + size]))
        start += size
    found: list[Any] = []
    for piece, size in zip(loaded.predict(encoding, bodies, sizes, variant or columns).pieces, sizes, strict=True):
        if piece.encoding is Encoding.FLOATS:
            answers = np.frombuffer(piece.body, "<f8").reshape(size, piece.width)
            assert len(piece.body) == size * piece.width * 8
            found += list(answers)
        else:
            found += orjson.loads(piece.body)
    return found


def same(one: Any, other: Any) -> bool:
    return bool(np.allclose(np.asarray(one, float), np.asarray(other, float), rtol=1e-12, atol=1e-12))


@pytest.mark.parametrize("name", SERVABLE)
def test_it_answers_as_mlflow_does(zoo: Zoo, store: ArtifactStore, name: str) -> None:
    """A model would behave differently in service from what its author saw in the notebook."""
    model = zoo.get(name)
    loaded = load(store, model)
    reference = mlflow.pyfunc.load_model(str(model.folder))
    assert loaded.held.kind is model.kind
    for seed in range(6):
        rows = random_rows(model, 23, seed)
        answers = ask(loaded, model, rows, [1, 5, 2, 15])
        expected = reference.predict(rows)
        if model.kind is ModelKind.GENERIC:
            assert answers == orjson.loads(orjson.dumps(rows_of(expected, 23), option=orjson.OPT_SERIALIZE_NUMPY))
        elif model.kind is ModelKind.REGRESSOR:
            assert same(answers, np.asarray(expected).reshape(23, -1))
        elif name.startswith("booster"):
            shares = np.array(answers)[:, 1:]
            assert same(shares[:, 1] if name == "booster" else shares, expected)
            assert np.array_equal(np.array(answers)[:, 0], shares.argmax(axis=1))
        else:
            labels = [loaded.held.classes[int(answer[0])] for answer in answers]
            assert labels == np.asarray(expected).tolist()
            if loaded.held.probabilities:
                assert same(np.array(answers)[:, 1:], reference.get_raw_model().predict_proba(rows))
            else:
                assert len(answers[0]) == 1


@pytest.mark.parametrize(
    ("name", "engine", "reason", "classes"),
    [
        ("logistic", "sklearn", "arrays: answered", [0, 1]),
        ("logistic-skops", "sklearn", "arrays: answered", [0, 1]),
        ("forest", "sklearn", "arrays: answered", ["setosa", "versicolor", "virginica"]),
        ("boosting-with-gaps", "sklearn", "arrays: answered", [0, 1]),
        ("columns", "sklearn", "not all columns are numbers", [0, 1]),
        ("named-numbers", "sklearn", "ColumnTransformer goes by names", [0, 1]),
        ("booster", "lightgbm", "arrays: answered", [0, 1]),
        ("booster-multiclass", "lightgbm", "arrays: answered", [0, 1, 2]),
        ("lgbm", "lightgbm", "arrays: answered", [False, True]),
        ("tensor", "sklearn", "as its signature says", [0, 1]),
        ("unsigned", "sklearn", "no signature", [0, 1]),
        ("pyfunc", "pyfunc", "no format", []),
    ],
)
def test_it_says_what_computes_and_why(
    zoo: Zoo, store: ArtifactStore, name: str, engine: str, reason: str, classes: list[Any]
) -> None:
    """Nobody could tell why one model is ten times slower than another, or what its probabilities belong to."""
    held = load(store, zoo.get(name)).held
    assert (held.engine, held.classes) == (engine, classes)
    assert [type(each) for each in held.classes] == [type(each) for each in classes]
    assert reason in held.reason
    assert held.compilation is not None
    assert held.compilation["used"] or held.compilation["reason"]
    assert orjson.loads(orjson.dumps(held))["kind"] == held.kind.value
    assert len(held.warmup_seconds) == 3
    assert all(seconds > 0 for seconds in [held.load_seconds, *held.warmup_seconds])


@pytest.mark.parametrize("name", ["logistic", "columns", "forest"])
def test_a_version_is_compiled_unless_it_is_told_not_to(zoo: Zoo, store: ArtifactStore, name: str) -> None:
    """Nothing would be faster, or its owner could not switch it off."""
    model = zoo.get(name)
    digest = registered(model, store)
    loaded = load(store, model)
    assert loaded.held.compilation is not None
    assert loaded.held.compilation["used"], loaded.held.compilation
    assert loaded.held.compilation["rows"] >= 100
    plain = ModelLoader(store).load("m", "1", digest, batch_size=64, warmup_requests=1, compiled=False)
    assert plain.held.compilation is None
    rows = random_rows(model, 50, seed=3)
    assert same(ask(loaded, model, rows, [50]), ask(plain, model, rows, [50]))


def test_a_label_is_the_models_own_and_not_its_largest_probability(zoo: Zoo, store: ArtifactStore) -> None:
    """Support vector machines would answer other labels than they do in scikit-learn."""
    model = zoo.get("svc")
    raw = mlflow.pyfunc.load_model(str(model.folder)).get_raw_model()
    # Where the other fit is undecided: the two disagree only there.
    random = np.random.default_rng(0)
    low, high = model.sample.min(), model.sample.max()
    rows = pd.DataFrame(random.uniform(low, high, (3000, 2)), columns=model.sample.columns)
    by_share = raw.predict_proba(rows).argmax(axis=1)
    answers = ask(load(store, model), model, rows, [3000])
    assert [int(each[0]) for each in answers] == raw.predict(rows).tolist()
    assert (by_share != raw.predict(rows)).any()


def test_two_equal_probabilities_are_decided_by_the_model(zoo: Zoo, store: ArtifactStore) -> None:
    """On the edge, where both are 0.5, the label would differ from scikit-learn's."""
    model = zoo.get("unsigned")
    raw = mlflow.pyfunc.load_model(str(model.folder)).get_raw_model()
    (slope, other), (offset,) = raw.coef_[0], raw.intercept_
    edges = [np.nextafter(-offset / slope, way) for way in (-np.inf, 0.0, np.inf)]
    rows = pd.DataFrame({"a": [*edges, -offset / slope, 1.0], "b": 0.0})
    assert (np.abs(raw.predict_proba(rows)[:4, 1] - 0.5) < 1e-12).all()
    answers = ask(load(store, model), model, rows, [5])
    assert [int(each[0]) for each in answers] == raw.predict(rows).tolist()
    assert other != 0


def test_a_request_of_more_rows_than_a_call_takes_is_cut(zoo: Zoo, store: ArtifactStore) -> None:
    """batch_size would not hold for large requests, and their memory would be unbounded."""
    model = zoo.get("linear")
    loaded = load(store, model, batch_size=10)
    whole = ask(load(store, model, batch_size=1000), model, model.sample, [len(model.sample)])
    seen: list[int] = []
    engine: Any = loaded._engine
    predict = engine.predict

    def watched(rows: Any, params: Any) -> Any:
        seen.append(len(rows))
        return predict(rows, params)

    engine.predict = watched
    assert same(ask(loaded, model, model.sample, [len(model.sample)]), whole)
    assert max(seen) == 10
    assert sum(seen) == len(model.sample)


def test_params_reach_the_model(zoo: Zoo, store: ArtifactStore) -> None:
    """Parameters of the signature would be accepted and ignored."""
    model = zoo.get("pyfunc-params")
    loaded = load(store, model)
    rows = pd.DataFrame({"a": [1.0, 2.0], "b": [0.0, 0.0]})
    assert ask(loaded, model, rows, [2]) == ["2m", "4m"]
    assert ask(loaded, model, rows, [2], orjson.dumps({"params": {"factor": 10.0, "unit": "ft"}})) == ["10ft", "20ft"]


def test_a_row_is_answered_the_same_in_any_company(zoo: Zoo, store: ArtifactStore) -> None:
    """A prediction would depend on who else asked in the same millisecond: a gap alone made another type of its column."""
    model = zoo.get("columns")
    loaded = load(store, model)
    rows = random_rows(model, 40, seed=9)
    assert rows.isna().any().sum() == 2
    assert same(ask(loaded, model, rows, [40]), ask(loaded, model, rows, [1] * 40))
    _, cells, _ = travelling(model, rows)
    together = loaded._input.to_frame(cells, None)
    for place, row in enumerate(cells):
        alone = loaded._input.to_frame([row], None)
        pd.testing.assert_frame_equal(alone, together.iloc[[place]].reset_index(drop=True))


def test_one_changed_byte_is_refused(zoo: Zoo, store: ArtifactStore) -> None:
    """A pickle with a damaged byte may load without complaint and answer nonsense."""
    digest = registered(zoo.get("forest"), store)
    file = store.root / "sha256" / digest / "content" / "model.skops"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"model\.skops"):
        ModelLoader(store).load("m", "1", digest, batch_size=1, warmup_requests=0)
    with pytest.raises(ArtifactMissing):
        ModelLoader(store).load("m", "1", "0" * 64, batch_size=1, warmup_requests=0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unpickling-raises", r"RuntimeError: no licence found$"),
        ("unpickling-exits", r"SystemExit: 0$"),
        ("missing-package", r"'no_such_package'.*pip install no-such-package==1\.2\.3$"),
    ],
)
def test_what_cannot_be_loaded_says_why(zoo: Zoo, store: ArtifactStore, name: str, reason: str) -> None:
    """Whoever promotes a broken version would get a traceback, or the worker would end with it."""
    with pytest.raises(ModelNotLoadable, match=reason) as caught:
        load(store, zoo.get(name))
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("MLmodel", None, "no file MLmodel"),
        ("MLmodel", "- just\n- a list\n", "describes nothing that predicts"),
        (
            "MLmodel",
            "flavors: {python_function: {loader_module: mlflow.sklearn}}\nsignature: {inputs: '['}",
            "signature",
        ),
        ("model.pkl", None, "FileNotFoundError"),
        ("model.pkl", "", "EOFError"),
        ("model.pkl", "\x80\x04\x95", "UnpicklingError|EOFError"),
    ],
)
def test_a_damaged_model_says_what_is_wrong(
    zoo: Zoo, store: ArtifactStore, tmp_path: Path, file: str, content: str | None, reason: str
) -> None:
    """A model that was logged by halves would end the worker or be refused without a word."""
    copy = tmp_path / "copy"
    shutil.copytree(zoo.get("unsigned").folder, copy)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content.encode("latin-1"))
    broken = ZooModel("broken", copy, None, None, ModelKind.CLASSIFIER)
    with pytest.raises(ModelNotLoadable, match=reason):
        load(store, broken)


def test_a_model_that_fails_its_warm_up_is_refused(zoo: Zoo, store: ArtifactStore, tmp_path: Path) -> None:
    """A model that answers nothing would be found out by its first users."""
    copy = tmp_path / "copy"
    shutil.copytree(zoo.get("raises").folder, copy)
    example = {"dataframe_split": {"columns": ["a", "b"], "data": [[PILL, 1.0]]}}
    (copy / "serving_input_example.json").write_bytes(orjson.dumps(example))
    poisoned = ZooModel("poisoned", copy, None, None, ModelKind.CLASSIFIER)
    with pytest.raises(ModelNotLoadable, match="input_example raised ArithmeticError: it cannot bear that row"):
        load(store, poisoned)
    assert load(store, poisoned, warmup_requests=0).held.warmup_seconds == []


def test_rows_are_made_up_of_what_the_model_knows(store: ArtifactStore, tmp_path: Path) -> None:
    """A model that bears known texts only could never be promoted, unless it was logged with an example."""
    from mlflow.models import infer_signature
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    features = pd.DataFrame({"carrier": ["UA", "AA", "UA", "DL"], "late": [1.0, 2.0, 3.0, 4.0]})
    strict = ColumnTransformer([("c", OneHotEncoder(handle_unknown="error"), ["carrier"])], remainder="passthrough")
    pipeline = make_pipeline(strict, LogisticRegression()).fit(features, [0, 1, 0, 1])
    mlflow.sklearn.save_model(
        pipeline, str(tmp_path / "strict"), signature=infer_signature(features), pip_requirements=["scikit-learn"]
    )
    model = ZooModel("strict", tmp_path / "strict", features, None, ModelKind.CLASSIFIER)
    assert len(load(store, model).held.warmup_seconds) == 3


@pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning")
def test_every_scalar_type_arrives_as_its_own(store: ArtifactStore, tmp_path: Path) -> None:
    """Times, bytes and whole numbers would reach models as texts and fractions."""

    class Telling(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: pd.DataFrame) -> list[str]:
            dtypes = " ".join(f"{name}:{dtype}" for name, dtype in model_input.dtypes.items())
            return [f"{dtypes} | {row}" for row in model_input.astype(object).to_numpy().tolist()]

    types = ["double", "float", "long", "integer", "boolean", "string", "datetime", "binary"]
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(Schema([ColSpec(each, each) for each in types]), Schema([ColSpec("string")]))
    mlflow.pyfunc.save_model(
        str(tmp_path / "telling"), python_model=Telling(), signature=signature, pip_requirements=["cloudpickle"]
    )
    loaded = load(store, ZooModel("telling", tmp_path / "telling", None, None, ModelKind.GENERIC))
    row = [1, 2.5, 3, 4, True, "ä", "2013-04-01T05:00:00", "YWI="]
    (piece,) = loaded.predict(Encoding.JSON, [orjson.dumps([row])], [1], b"").pieces
    frame = pd.DataFrame([[1.0, 2.5, 3, 4, True, "ä", pd.Timestamp("2013-04-01T05:00:00"), b"ab"]], columns=types)
    frame = frame.astype({"float": "float32", "integer": "int32"})
    assert orjson.loads(piece.body) == mlflow.pyfunc.load_model(str(tmp_path / "telling")).predict(frame)


def test_no_native_model_imports_mlflow(zoo: Zoo, store: ArtifactStore) -> None:
    """Each worker would take seconds and a hundred megabytes more, and end with what MLflow's import may do."""
    native = ("logistic", "logistic-skops", "columns", "booster", "lgbm")
    digests = [registered(zoo.get(name), store) for name in native]
    script = (
        "import sys; from pathlib import Path; from serving.artifacts import ArtifactStore\n"
        "from serving.loader import ModelLoader\n"
        f"loader = ModelLoader(ArtifactStore(Path({str(store.root)!r})))\n"
        f"for digest in {digests!r}: loader.load('m', '1', digest, batch_size=8, warmup_requests=2)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('mlflow', 'prefect', 'evidently')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_what_models_are_made_of_is_installed_with_us() -> None:
    """A fresh installation would load none of the common models."""
    for package in ("cloudpickle", "skops", "scikit-learn", "pandas", "pyyaml", "psutil"):
        assert importlib.metadata.version(package)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim")
def test_a_closed_model_gives_its_memory_back(zoo: Zoo, store: ArtifactStore, tmp_path: Path) -> None:
    """Each promotion would make the workers larger, until the kernel ends them."""
    copy = tmp_path / "large"
    shutil.copytree(zoo.get("unsigned").folder, copy)
    estimator = pickle.loads((copy / "model.pkl").read_bytes())
    estimator.ballast = [place.to_bytes(1000) for place in range(80_000)]
    (copy / "model.pkl").write_bytes(pickle.dumps(estimator))
    del estimator
    digest = registered(ZooModel("large", copy, None, None, ModelKind.CLASSIFIER), store)
    loader = ModelLoader(store)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have left would else be room enough for it
    before = psutil.Process().memory_info().rss
    loaded = loader.load("m", "1", digest, batch_size=1, warmup_requests=0)
    assert loaded.held.memory_mb > 60
    later = [bytes(1000) for _ in range(100)]  # what lives on top of it keeps the allocator from shrinking by itself
    loaded.close()
    assert psutil.Process().memory_info().rss - before < 40 * 2**20
    del later


def test_all_faults_of_the_zoo_are_tried_somewhere() -> None:
    """A faulty model that nobody tests would only look like coverage."""
    assert set(NAMES) - set(SERVABLE) == {
        "raises", "kills", "sleeps", "shrinks",
        "unpickling-raises", "unpickling-kills", "unpickling-exits", "missing-package",
        "unpickling-hangs", "unpickling-hangs-all", "unpickling-eats",
        "pyfunc-optional", "lgbm-optional",  # good ones, which MLflow refuses to ask with gaps
    }  # fmt: skip


def test_a_null_in_an_optional_whole_number_is_a_row_without_it(zoo: Zoo, store: ArtifactStore) -> None:
    """MLflow refuses such a table as a whole, and the client would be told that the model is broken."""
    model = zoo.get("pyfunc-optional")
    loaded = load(store, model)
    body = orjson.dumps([[1.0, 3], [2.0, None], [4.0, 5]])
    (piece,) = loaded.predict(Encoding.JSON, [body], [3], b"").pieces
    assert orjson.loads(piece.body) == ["1 x:float64,n:int64", "2 x:float64", "4 x:float64,n:int64"]
    direct = mlflow.pyfunc.load_model(str(model.folder))
    assert orjson.loads(piece.body)[1:2] == direct.predict(pd.DataFrame({"x": [2.0]}))
    floats = np.array([[1.0, np.nan], [2.0, np.nan]])
    (piece,) = loaded.predict(Encoding.FLOATS, [floats.tobytes()], [2], b"").pieces
    assert orjson.loads(piece.body) == ["1 x:float64", "2 x:float64"]


def test_lightgbm_takes_gaps_among_truth_values(zoo: Zoo, store: ArtifactStore) -> None:
    """A model that was trained with gaps could not be asked with one, and its error would count against it."""
    model = zoo.get("lgbm-optional")
    loaded = load(store, model)
    assert loaded.held.reason.startswith("DataFrames")
    rows = np.array([[np.nan, 0.5], [1.0, 0.5]])
    (piece,) = loaded.predict(Encoding.FLOATS, [rows.tobytes()], [2], b"").pieces
    raw = mlflow.pyfunc.load_model(str(model.folder)).get_raw_model()
    expected = raw.predict_proba(pd.DataFrame(rows, columns=["b", "x"]))
    assert np.allclose(np.frombuffer(piece.body).reshape(2, 3)[:, 1:], expected)
