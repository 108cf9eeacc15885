"""The compiled form of a pipeline: it answers as scikit-learn does, or not at all."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression, Ridge, RidgeClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from examples.flights.data import FEATURES, STRINGS, WEATHER
from examples.flights.data import NUMBERS as NUMBERS_OF_FLIGHTS
from examples.flights.training import build_pipeline
from serving.compiled.columns import RowEncoder
from serving.compiled.engine import FAILURES, WITHIN, CompiledEngine
from serving.compiled.plan import Plan, compile_plan
from serving.compiled.refusals import AskNative, CannotCompile
from serving.compiled.trial import Tried, try_compiled, try_plan
from serving.compiled.verdicts import place_of, recall
from serving.engines import Engine, Predicted, engine_of_estimator
from serving.model_input import Column, ModelInput, Raw

pytestmark = [
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker. A pool of threads on busy cores takes seconds for what takes milliseconds."""
    with threadpool_limits(1):
        yield


ROWS = 400
MIXED = [
    Column("carrier", "string", required=False),
    Column("origin", "string", required=True),
    Column("distance", "double", required=True),
    Column("temp", "double", required=False),
    Column("wind", "float", required=True),
    Column("hour", "long", required=True),
    Column("night", "boolean", required=True),
]
NUMBERS = [Column(f"x{place}", "double", required=False) for place in range(5)]


def mixed_table(rows: int = ROWS) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Flights of mixed columns with gaps, and targets of each kind."""
    random = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "carrier": random.choice(["UA", "AA", "DL", "B6"], rows),
            "origin": random.choice(["JFK", "LGA", "EWR"], rows),
            "distance": random.integers(100, 3000, rows).astype(float),
            "temp": random.normal(50, 20, rows).round(1),
            "wind": random.normal(10, 5, rows).astype(np.float32),
            "hour": random.integers(0, 24, rows),
            "night": random.random(rows) < 0.3,
        }
    )
    score = table["temp"] / 20 + (table["carrier"] == "UA") + random.normal(0, 0.5, rows)
    table.loc[random.random(rows) < 0.1, "carrier"] = None
    table.loc[random.random(rows) < 0.1, "temp"] = np.nan
    return table, _targets(score.to_numpy())


def number_table(rows: int = ROWS) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Plain numbers, and targets of each kind."""
    random = np.random.default_rng(2)
    table = pd.DataFrame(random.normal(size=(rows, len(NUMBERS))), columns=[each.name for each in NUMBERS])
    return table, _targets((table["x0"] + table["x1"] ** 2 + random.normal(0, 0.3, rows)).to_numpy())


def _targets(score: Any) -> dict[str, Any]:
    return {
        "two": (score > np.median(score)).astype(int),
        "three": np.array(["low", "mid", "high"])[np.digitize(score, np.quantile(score, [0.33, 0.66]))],
        "value": score,
    }


def numbers_imputed() -> Any:
    return Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())])


def columns(*, dense: bool, strings: str = "hot", numbers: Any = None) -> ColumnTransformer:
    """A ColumnTransformer over the mixed columns, of several shapes."""
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    texts: dict[str, Any] = {
        "hot": OneHotEncoder(handle_unknown="ignore"),
        "ordinal": ordinal,
        "imputed": make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
        "scaled": make_pipeline(ordinal, MinMaxScaler(clip=True)),
        "strict": OneHotEncoder(handle_unknown="error"),
    }
    return ColumnTransformer(
        [
            ("texts", texts[strings], ["carrier", "origin"]),
            ("numbers", numbers_imputed() if numbers is None else numbers, ["temp", "distance"]),
            ("wind", MinMaxScaler(), ["wind"]),
            ("hour", OneHotEncoder(handle_unknown="ignore"), ["hour"]),
            ("night", FunctionTransformer(None), ["night"]),
        ],
        sparse_threshold=0.0 if dense else 1.0,
    )


def boosted_columns() -> ColumnTransformer:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    return ColumnTransformer([("texts", encoder, ["origin", "carrier"])], remainder="passthrough")


MIXED_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "logistic, sparse": (lambda: make_pipeline(columns(dense=False), LogisticRegression(max_iter=500)), "two"),
    "logistic, three": (lambda: make_pipeline(columns(dense=True), LogisticRegression(max_iter=500)), "three"),
    "logistic, imputed texts": (
        lambda: make_pipeline(columns(dense=True, strings="imputed"), LogisticRegression(max_iter=500)),
        "two",
    ),
    "ridge, ordinal": (lambda: make_pipeline(columns(dense=True, strings="ordinal"), Ridge()), "value"),
    "elastic net, scaled codes": (lambda: make_pipeline(columns(dense=True, strings="scaled"), ElasticNet()), "value"),
    "logistic, strict": (
        lambda: make_pipeline(columns(dense=True, strings="strict"), LogisticRegression(max_iter=500)),
        "two",
    ),
    "scaled twice": (lambda: make_pipeline(columns(dense=True), StandardScaler(), Ridge()), "value"),
    "forest": (
        lambda: make_pipeline(columns(dense=True), RandomForestClassifier(15, random_state=0, n_jobs=1)),
        "three",
    ),
    "forest, sparse, with gaps": (
        lambda: make_pipeline(
            columns(dense=False, numbers="passthrough", strings="imputed"),
            RandomForestRegressor(10, random_state=0, n_jobs=1),
        ),
        "value, no gaps",
    ),
    "boosting": (lambda: make_pipeline(boosted_columns(), HistGradientBoostingClassifier(max_iter=20)), "two"),
    "boosting, three": (lambda: make_pipeline(boosted_columns(), HistGradientBoostingClassifier(max_iter=8)), "three"),
    "boosted values": (lambda: make_pipeline(boosted_columns(), HistGradientBoostingRegressor(max_iter=20)), "value"),
    "lightgbm": (
        lambda: make_pipeline(boosted_columns(), lightgbm.LGBMClassifier(n_estimators=10, verbosity=-1, n_jobs=1)),
        "two",
    ),
    "naive Bayes": (lambda: make_pipeline(columns(dense=True), GaussianNB()), "three"),
    "gradient boosting": (
        lambda: make_pipeline(columns(dense=True), GradientBoostingClassifier(n_estimators=10, random_state=0)),
        "two",
    ),
}
NUMBER_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "logistic": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), "two"),
    "logistic, three": (lambda: make_pipeline(MinMaxScaler(), LogisticRegression()), "three"),
    "imputed": (lambda: make_pipeline(SimpleImputer(), StandardScaler(with_std=False), LogisticRegression()), "two"),
    "no probabilities": (lambda: make_pipeline(StandardScaler(), RidgeClassifier()), "three"),
    "linear": (LinearRegression, "value"),
    "descent": (lambda: make_pipeline(StandardScaler(), SGDRegressor(random_state=0)), "value"),
    "forest": (lambda: RandomForestClassifier(100, random_state=0, n_jobs=1), "two"),
    "forest of values": (lambda: RandomForestRegressor(20, random_state=0, n_jobs=1), "value"),
    "extra trees": (lambda: ExtraTreesClassifier(20, random_state=0, n_jobs=1), "three"),
    "extra trees of values": (lambda: make_pipeline(StandardScaler(), ExtraTreesRegressor(10, n_jobs=1)), "value"),
    "tree": (lambda: DecisionTreeClassifier(random_state=0), "three"),
    "tree of values": (lambda: DecisionTreeRegressor(random_state=0), "value"),
    "boosting": (lambda: HistGradientBoostingClassifier(max_iter=30), "two"),
    "boosting, three": (lambda: HistGradientBoostingClassifier(max_iter=10), "three"),
    "boosted counts": (lambda: HistGradientBoostingRegressor(loss="poisson", max_iter=10), "count"),
    "lightgbm": (lambda: lightgbm.LGBMClassifier(n_estimators=10, verbosity=-1, n_jobs=1), "three"),
    "lightgbm of values": (lambda: lightgbm.LGBMRegressor(n_estimators=10, verbosity=-1, n_jobs=1), "value"),
}
for kind in ("boosting", "logistic"):
    MIXED_MODELS[f"flights example, {kind}"] = (functools.partial(build_pipeline, kind), "two")
EXACT = ("forest", "trees", "tree", "boost", "lightgbm")


class Case:
    """A fitted model, what calls it, and its compiled form."""

    def __init__(self, model: Any, model_input: ModelInput, trial: Raw, *, arrays: bool) -> None:
        self.model, self.input, self.trial, self.arrays = model, model_input, trial, arrays
        self.engine: Engine = engine_of_estimator(model, "sklearn")
        self.plan: Plan = compile_plan(model, self.engine, model_input, arrays=arrays)

    def native(self, raw: Raw) -> Predicted:
        given_to = self.input.to_array(raw) if self.arrays else self.input.to_frame(raw, None)
        return self.engine.predict(given_to, None)

    def tried(self, home: Path) -> Tried:
        return try_compiled(self.model, self.engine, self.input, self.native, self.trial, arrays=self.arrays, home=home)


_CASES: dict[str, Case] = {}


def mixed_case(name: str) -> Case:
    """Fitted once."""
    if name not in _CASES:
        make, target = MIXED_MODELS[name]
        if name.startswith("flights example"):
            _CASES[name] = _flights_case(make())
            return _CASES[name]
        table, targets = mixed_table()
        if target.endswith("no gaps"):
            table["temp"] = table["temp"].fillna(0.0)
        model = make().fit(table, targets[target.split(",")[0]])
        rows = [
            [None if pd.isna(cell) else cell for cell in row]
            for row in table.head(20).astype(object).to_numpy().tolist()
        ]
        _CASES[name] = Case(model, ModelInput(MIXED), rows, arrays=False)
    return _CASES[name]


def _flights_case(pipeline: Any) -> Case:
    """The example's own pipeline and signature, on made-up flights."""
    random = np.random.default_rng(3)
    table = pd.DataFrame({name: random.normal(50, 20, ROWS).round(1) for name in NUMBERS_OF_FLIGHTS})
    for name in STRINGS:
        table.insert(0, name, random.choice(["UA", "AA", "DL"], ROWS))
    table.loc[random.random(ROWS) < 0.1, "pressure"] = np.nan
    late = (table["temp"] + 10 * (table["carrier"] == "UA") > 55).astype(int)
    columns = [
        Column(name, "string" if name in STRINGS else "double", required=name not in WEATHER) for name in FEATURES
    ]
    rows = table[FEATURES].head(20).astype(object).to_numpy().tolist()
    cells = [[None if pd.isna(cell) else cell for cell in row] for row in rows]
    return Case(pipeline.fit(table[FEATURES], late), ModelInput(columns), cells, arrays=False)


def number_case(name: str) -> Case:
    """Fitted once."""
    key = f"numbers: {name}"
    if key not in _CASES:
        make, target = NUMBER_MODELS[name]
        table, targets = number_table()
        targets["count"] = np.abs(targets["value"]).round()
        model = make().fit(table, targets[target])
        _CASES[key] = Case(model, ModelInput(NUMBERS), table.head(20).to_numpy(), arrays=True)
    return _CASES[key]


def attempt(answer: Callable[[Raw], Predicted], raw: Raw) -> Any:
    try:
        with np.errstate(all="ignore"):  # outside of tests numpy's warnings are no errors
            return answer(raw)
    except Exception as problem:  # noqa: BLE001  # the kind is what is compared
        return problem


def check(case: Case, raw: Raw, *, exact: bool) -> None:
    """The compiled form answers as the model does, or leaves the rows to it."""
    ours, theirs = attempt(case.plan, raw), attempt(case.native, raw)
    if isinstance(ours, AskNative):
        return
    if isinstance(theirs, Exception):
        assert isinstance(ours, Exception), f"answered what the model refuses: {theirs!r}"
        return
    assert not isinstance(ours, Exception), f"raised where the model answers: {ours!r}"
    if exact:
        np.testing.assert_array_equal(ours, theirs)
    else:
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-11, atol=1e-11)


floats = st.one_of(
    st.floats(-100, 100),
    st.sampled_from([0.0, -0.0, 1e-300, 1e30, -1e39, 1e308, 2.0**53 + 2]),
    st.floats(allow_nan=False),
)
singles = st.floats(-(2.0**100), 2.0**100, width=32)
mixed_rows = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from(["UA", "AA", "DL", "B6", "never", "", "ua", "UA\0"])),
        st.sampled_from(["JFK", "LGA", "EWR", "EWR ", "öäü"]),
        floats,
        st.one_of(st.none(), floats, st.integers(-100, 100)),
        singles,
        st.integers(-5, 30) | st.sampled_from([2**53 + 1, -(2**62)]),
        st.booleans(),
    ).map(list),
    min_size=1,
    max_size=20,
)
number_rows = st.lists(
    st.lists(st.one_of(floats, st.just(float("nan"))), min_size=5, max_size=5), min_size=1, max_size=20
)
many = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", [name for name in MIXED_MODELS if "flights" not in name])
def test_mixed_columns_are_answered_as_scikit_learn_does(name: str) -> None:
    """The same model would answer otherwise because it was made faster, and nobody would notice."""
    case = mixed_case(name)

    @many
    @given(mixed_rows)
    @example([["UA", "JFK", 1.0, 2.0, 3.0, 4, True]])
    def holds(rows: list[list[Any]]) -> None:
        check(case, rows, exact=any(each in name for each in EXACT))
        for row in rows[:1]:
            check(case, [row], exact=any(each in name for each in EXACT))

    holds()


@pytest.mark.parametrize("kind", ["boosting", "logistic"])
def test_the_flights_example_is_answered_as_scikit_learn_does(kind: str) -> None:
    """The model that everybody tries first would answer otherwise than it does in its notebook."""
    case = mixed_case(f"flights example, {kind}")
    cell = st.one_of(st.none(), floats)

    @many
    @given(st.lists(st.tuples(*[st.sampled_from(["UA", "AA", "never", ""])] * 3, *[cell] * 10).map(list), min_size=1))
    def holds(rows: list[list[Any]]) -> None:
        check(case, rows, exact=kind == "boosting")

    holds()


@pytest.mark.parametrize("name", NUMBER_MODELS)
def test_numbers_are_answered_as_scikit_learn_does(name: str) -> None:
    """The same model would answer otherwise because it was made faster, and nobody would notice."""
    case = number_case(name)

    @many
    @given(number_rows)
    def holds(rows: list[list[float]]) -> None:
        check(case, np.array(rows), exact=any(each in name for each in EXACT))

    holds()


@pytest.mark.parametrize("name", ["forest", "boosting", "boosting, three", "forest of values"])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 64, 300, 1000])
def test_trees_are_added_up_in_the_models_own_order(name: str, rows: int) -> None:
    """The last digits would differ by the size of the batch that a row happened to be in."""
    case = number_case(name)
    raw = np.random.default_rng(rows).normal(size=(rows, 5))
    np.testing.assert_array_equal(case.plan(raw), case.native(raw))


@pytest.mark.parametrize("name", ["logistic, sparse", "logistic, imputed texts", "ridge, ordinal", "boosting"])
def test_the_matrix_is_the_transformers_own(name: str) -> None:
    """Every estimator behind it would be given something else than it was trained on."""
    case = mixed_case(name)
    transformer = case.model[0]
    raw: list[list[Any]] = [list(row) for row in case.trial]
    raw += [["never", "never", 1.5, None, 2.5, 99, False], [None, "JFK", -0.0, -0.0, 0.0, 23, True]]
    found = transformer.transform(case.input.to_frame(raw, None))
    expected = (found.toarray() if hasattr(found, "toarray") else np.asarray(found)).astype(np.float64)
    np.testing.assert_array_equal(RowEncoder(transformer, case.input)(raw), expected)


@pytest.mark.parametrize(
    "name", [*(f"mixed {each}" for each in MIXED_MODELS), *(f"plain {each}" for each in NUMBER_MODELS)]
)
def test_the_check_at_load_passes_what_is_right(name: str, tmp_path: Path) -> None:
    """Nothing would ever be made faster, or only on a machine without load."""
    kind, _, which = name.partition(" ")
    found = (mixed_case(which) if kind == "mixed" else number_case(which)).tried(tmp_path)
    assert found.record["rows"] >= 100 or "strict" in name, found.record
    assert found.record["max_difference"] <= 1e-9
    if found.plan is None:
        assert "x as fast" in found.record["reason"], found.record
    else:
        assert found.record["used"]
        assert found.record["compiled_us_1"] < found.record["native_us_1"]


def broken(plan: Plan, change: Callable[[Any, Any], Any]) -> Plan:
    """A plan whose answers are changed by this function of the rows and the right answers."""

    class Broken(Plan):
        def __call__(self, raw: Raw) -> Any:
            return change(raw, plan(raw))

    return Broken(plan.read, plan.steps, plan.finish)


def a_row_off(raw: Any, answers: Any) -> Any:
    del raw
    answers[-1, -1] += 1e-6
    return answers


def another_label(raw: Any, answers: Any) -> Any:
    if len(raw) == 16:
        answers[3, 0] = 1 - answers[3, 0]
    return answers


def turned(raw: Any, answers: Any) -> Any:
    return answers[::-1] if len(raw) == 64 else answers


def gap_is_zero(raw: Any, answers: Any) -> Any:
    if any(cell is None for row in raw for cell in row):
        answers[:, 1:] = 0.5
    return answers


def knows_all(raw: Any, answers: Any) -> Any:
    if any("never seen" in row for row in raw):
        answers[:, 1:] *= 0.999
    return answers


def raises_at_large(raw: Any, answers: Any) -> Any:
    if any(isinstance(cell, float) and cell > 1e20 for row in raw for cell in row):
        raise ZeroDivisionError
    return answers


@pytest.mark.parametrize("change", [a_row_off, another_label, turned, gap_is_zero, knows_all, raises_at_large])
def test_the_check_at_load_finds_a_wrong_answer(change: Callable[[Any, Any], Any]) -> None:
    """A mistake in the compiled form would go out to clients, since a check that passes everything proves nothing."""
    case = mixed_case("boosting")
    found = try_plan(broken(case.plan, change), case.engine.kind, case.input, case.native, case.trial, seconds=60)
    assert found.plan is None
    assert not found.record["used"]
    assert any(word in found.record["reason"] for word in ("differ", "raised")), found.record


def test_the_check_at_load_finds_thresholds_rounded_to_float32() -> None:
    """The classic mistake of such engines: right on all ordinary rows, wrong where a number is just at a branch."""
    case = number_case("boosting")
    nodes = case.model._predictors[0][0].nodes.copy()
    plan = compile_plan(case.model, case.engine, case.input, arrays=True)
    joined: Any = plan.finish.answer
    joined._joined["num_threshold"] = joined._joined["num_threshold"].astype(np.float32)
    found = try_plan(plan, case.engine.kind, case.input, case.native, case.trial)
    assert found.plan is None
    assert "differ" in found.record["reason"]
    assert np.array_equal(case.model._predictors[0][0].nodes["num_threshold"], nodes["num_threshold"])


def test_what_was_found_is_kept_beside_the_version(tmp_path: Path) -> None:
    """A worker that comes back after a crash would compare each of its versions for a second before it answers."""
    case = mixed_case("boosting")
    first = case.tried(tmp_path)
    asked: list[int] = []

    def watched(raw: Raw) -> Predicted:
        asked.append(len(raw))
        return case.native(raw)

    again = try_compiled(case.model, case.engine, case.input, watched, case.trial, arrays=False, home=tmp_path)
    assert again.plan is not None
    assert again.record == first.record
    assert asked == [64, 1]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"used": true}', b'{"used": false}'])
def test_a_verdict_that_cannot_be_read_is_found_anew(tmp_path: Path, content: bytes) -> None:
    """A damaged file would let a form be used that nobody has compared, or stop the version from loading."""
    case = mixed_case("boosting")
    place = place_of(tmp_path)
    place.parent.mkdir()
    place.write_bytes(content)
    assert case.tried(tmp_path).record["rows"] >= 100
    assert recall(place) is not None


def test_an_old_verdict_does_not_cover_other_answers(tmp_path: Path) -> None:
    """What was right on another machine would be used here though it answers otherwise."""
    case = mixed_case("boosting")
    assert case.tried(tmp_path).plan is not None

    def other(raw: Raw) -> Predicted:
        return np.asarray(case.native(raw)) * 0.999

    found = try_compiled(case.model, case.engine, case.input, other, case.trial, arrays=False, home=tmp_path)
    assert found.plan is None
    assert "differ" in found.record["reason"]


def test_a_refusal_that_is_lost_is_found() -> None:
    """Rows that scikit-learn refuses would be answered with a number out of nowhere."""
    case = number_case("logistic")

    class Careless(Plan):
        def __call__(self, raw: Raw) -> Any:
            return case.plan(np.nan_to_num(np.asarray(raw), posinf=0.0, neginf=0.0))

    careless = Careless(case.plan.read, case.plan.steps, case.plan.finish)
    found = try_plan(careless, case.engine.kind, case.input, case.native, case.trial)
    assert found.plan is None
    assert "refuses with ValueError" in found.record["reason"]


def test_refusals_are_the_models_own() -> None:
    """A client would be told something else, or nothing, about a row that its model cannot take."""
    strict, logistic = mixed_case("logistic, strict"), number_case("logistic")
    unknown: Raw = [["UA", "nowhere", 1.0, 1.0, 1.0, 1, True]]
    infinite: Raw = np.array([[np.inf, 0, 0, 0, 0]])
    for case, raw, words in ((strict, unknown, "Found unknown categories"), (logistic, infinite, "infinity")):
        served = CompiledEngine(case.plan, case.engine, case.native, about={})
        with pytest.raises(ValueError, match=words):
            served.predict(raw, None)
        assert served.left == 1
        assert served.is_on
        np.testing.assert_allclose(
            np.asarray(served.predict(case.trial, None)), np.asarray(case.native(case.trial)), atol=1e-9
        )


def test_a_failure_is_answered_by_the_model_and_the_third_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fault of the compiled form would fail requests, or be paid for at every batch for ever."""
    case = number_case("logistic")
    calls = []

    class Failing(Plan):
        def __call__(self, raw: Raw) -> Any:
            calls.append(len(raw))
            raise ZeroDivisionError

    now = [1000.0]
    monkeypatch.setattr("serving.compiled.engine.time.monotonic", lambda: now[0])
    failing = Failing(case.plan.read, case.plan.steps, case.plan.finish)
    served = CompiledEngine(failing, case.engine, case.native, about={"model_id": "m"})
    expected = np.asarray(case.native(case.trial))
    for _ in range(FAILURES - 1):
        np.testing.assert_array_equal(np.asarray(served.predict(case.trial, None)), expected)
    now[0] += WITHIN + 1
    for call in range(FAILURES + 2):
        np.testing.assert_array_equal(np.asarray(served.predict(case.trial, None)), expected)
        assert served.is_on == (call < FAILURES - 1)
    assert len(calls) == 2 * FAILURES - 1


def test_rows_that_the_model_refuses_too_do_not_switch_it_off() -> None:
    """Three bad requests of one client would make everybody's model slow."""
    case = mixed_case("boosting")
    served = CompiledEngine(case.plan, case.engine, case.native, about={})
    for _ in range(FAILURES + 1):
        with pytest.raises(ValueError, match="could not convert"):
            served.predict([["UA", "JFK", "far", 1.0, 1.0, 1, True]], None)
    assert served.is_on


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (make_pipeline(PolynomialFeatures(), LinearRegression()), "PolynomialFeatures is not compiled"),
        (make_pipeline(SimpleImputer(add_indicator=True), LinearRegression()), "adds columns"),
        (GaussianNB(), "nothing in front of it"),
    ],
)
def test_what_is_not_understood_is_named(model: Any, reason: str) -> None:
    """Nobody could tell why a model is slow, or what to change in it."""
    table, targets = number_table()
    fitted = model.fit(table, targets["two"])
    with pytest.raises(CannotCompile, match=reason):
        compile_plan(fitted, engine_of_estimator(fitted, "sklearn"), ModelInput(NUMBERS), arrays=True)
