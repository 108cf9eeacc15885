"""What predictions are: of every kind of model, of two versions at once, of one that changes under load, over V2."""

import math
import time
import uuid
from typing import Any

import hypothesis.strategies as st
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import arrays

from tests.e2e.house import ServingHouse, Traffic, columns_of, record_of
from tests.models import SERVABLE, Zoo, ZooModel

NUMBERS = {"double", "float"}
WHOLE = {"long", "integer"}


@pytest.fixture(scope="module")
def served(house: ServingHouse, zoo: Zoo) -> dict[str, ZooModel]:
    """Every model of the zoo that has no fault, each with all traffic of its own."""
    models = {name: zoo.get(name) for name in SERVABLE}
    for name, model in models.items():
        house.keep(model.folder, name, "1")
        house.route(name, {"1": 1.0})
    for name in models:
        house.wait_ready(name, "1")
    house.wait_applied()
    return models


@pytest.mark.parametrize("name", [name for name in SERVABLE if name != "tensor"])
def test_answers_are_those_of_mlflow(house: ServingHouse, served: dict[str, ZooModel], name: str) -> None:
    """A model would predict something else in service than it did for whoever trained it."""
    model = served[name]
    reference = mlflow.pyfunc.load_model(str(model.folder))

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(rows_for(model))
    def holds(rows: pd.DataFrame) -> None:
        found = house.ask(name, columns_of(rows))["predictions"]
        assert_same(found, reference.predict(rows), probabilities_of(reference, rows))

    holds()


def test_answers_of_a_model_of_tensors_are_those_of_mlflow(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """A model without named columns could be registered and never asked."""
    model = served["tensor"]
    reference = mlflow.pyfunc.load_model(str(model.folder))
    low, high = float(model.sample.min()), float(model.sample.max())

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(1, 6).flatmap(lambda size: tensors((size, *model.sample.shape[1:]), low, high)))
    def holds(rows: Any) -> None:
        found = house.ask("tensor", tensor_input(rows))["predictions"]
        assert_same(found, reference.predict(rows), probabilities_of(reference, rows))

    holds()


def test_a_record_and_columns_are_answered_alike(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """A client that sends one row as a record would get another prediction than one that sends it in a batch."""
    rows = served["columns"].sample.head(5)
    whole = house.ask("columns", columns_of(rows))["predictions"]
    for row in range(5):
        (alone,) = house.ask("columns", record_of(rows, row))["predictions"]
        assert_predictions_close(alone, whole[row])


def test_the_answer_has_the_promised_shape(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """Every client is written against these names and types."""
    given_id = str(uuid.uuid4())
    record = record_of(served["logistic"].sample)
    answer = house.predict("logistic", {"input_data": record, "request_id": given_id, "user_id": "ada"})
    body = answer.json()
    assert body.keys() == {
        "request_id", "predictions", "confidence_scores", "processing_time", "model_version", "metadata",
    }  # fmt: skip
    assert body["request_id"] == given_id
    assert body["model_version"] == "1"
    (prediction,) = body["predictions"]
    assert prediction.keys() == {"label", "probabilities"}
    assert prediction["label"] in (0, 1)
    assert prediction["probabilities"].keys() == {"0", "1"}
    assert math.isclose(sum(prediction["probabilities"].values()), 1.0)
    assert body["confidence_scores"] == [prediction["probabilities"][str(prediction["label"])]]
    assert 0 < body["processing_time"] < 5
    metadata = body["metadata"]
    assert {"model_id", "arm", "timings"} <= metadata.keys()
    assert (metadata["model_id"], metadata["arm"]) == ("logistic", None)
    assert metadata["timings"].keys() == {"queue", "compute"}
    assert 0 < metadata["timings"]["compute"] < body["processing_time"]
    assert 0 <= metadata["timings"]["queue"] < body["processing_time"]
    assert answer.headers["content-type"] == "application/json"


def test_a_request_without_an_id_gets_one(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """Nobody could say later which prediction an outcome belongs to."""
    record = record_of(served["logistic"].sample)
    ids = {uuid.UUID(house.ask("logistic", record)["request_id"]) for _ in range(20)}
    assert len(ids) == 20


def test_a_regressor_answers_values(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """A number would be dressed up as a class with a confidence it does not have."""
    body = house.ask("linear", record_of(served["linear"].sample))
    assert [each.keys() for each in body["predictions"]] == [{"value"}]
    assert body["confidence_scores"] == []


def test_parameters_do_what_they_say(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """A threshold that is taken and ignored would decide wrongly in silence."""
    columns = columns_of(served["logistic"].sample.head(50))
    plain = house.ask("logistic", columns)["predictions"]
    for threshold in (0.0, 0.9999, 1.0):
        found = house.ask("logistic", columns, parameters={"threshold": threshold})["predictions"]
        expected = [int(each["probabilities"]["1"] >= threshold) for each in plain]
        assert [each["label"] for each in found] == expected
    bare = house.ask("logistic", columns, parameters={"return_probabilities": False})
    assert all(each.keys() == {"label"} for each in bare["predictions"])
    assert len(bare["confidence_scores"]) == 50


def test_parameters_of_the_signature_reach_the_model(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """A model with parameters would always answer by its defaults."""
    asked = {"a": [1.0, 2.0], "b": [0.0, 0.0]}
    values = [each["value"] for each in house.ask("pyfunc-params", asked)["predictions"]]
    assert values == ["2m", "4m"]
    given_ones = house.ask("pyfunc-params", asked, parameters={"factor": 10.0, "unit": "ft"})["predictions"]
    assert [each["value"] for each in given_ones] == ["10ft", "20ft"]


def test_two_versions_share_traffic_by_their_weights(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """A new version would get more of the users than was decided, or the same user now this and now that one."""
    model = served["linear"]
    for version in ("1", "2"):
        house.keep(model.folder, "shared", version)
        house.want("shared", version)
    for version in ("1", "2"):
        house.wait_ready("shared", version)
    house.route("shared", {"1": 0.3, "2": 0.7})
    house.wait_applied()
    record = record_of(model.sample)
    users = [f"user-{each}" for each in range(1000)]
    first = [house.ask("shared", record, user_id=user)["model_version"] for user in users]
    share = first.count("2") / len(users)
    bound = 4 * math.sqrt(0.3 * 0.7 / len(users))
    assert abs(share - 0.7) < bound
    assert [house.ask("shared", record, user_id=user)["model_version"] for user in users[:200]] == first[:200]
    anonymous = [house.ask("shared", record)["model_version"] for _ in range(400)]
    assert abs(anonymous.count("2") / 400 - 0.7) < 4 * math.sqrt(0.3 * 0.7 / 400)


def test_a_promotion_under_load_drops_nothing(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """Every promotion would cost its users errors, or need a restart at night."""
    house.serve(served["linear"], "promoted")
    house.add(served["linear"], "promoted", "2")
    record = record_of(served["linear"].sample)
    with Traffic(house, "promoted", {"input_data": record}).running() as traffic:
        traffic.wait_for_more(100)
        promoted = time.monotonic()
        house.route("promoted", {"2": 1.0})
        house.wait_applied()
        took = time.monotonic() - promoted
        traffic.wait_for_more(100)
        applied = time.monotonic()
        traffic.wait_for_more(100)
    assert (traffic.statuses, traffic.errors) == ({200}, [])
    assert took < 10
    assert {body["model_version"] for at, _, body in traffic.answers if at < promoted} == {"1"}
    assert {body["model_version"] for at, _, body in traffic.answers if at > applied} == {"2"}


def test_open_inference_describes_a_model(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """Clients of the Open Inference Protocol ask for the inputs before they send any."""
    for path in ("/v2/models/linear", "/v2/models/linear/versions/1"):
        body = house.plane.get(path).json()
        assert (body["name"], body["versions"]) == ("linear", ["1"])
        assert "platform" in body
        inputs = {each["name"]: each for each in body["inputs"]}
        assert inputs.keys() == set(served["linear"].sample.columns)
        assert {(each["datatype"], tuple(each["shape"])) for each in body["inputs"]} <= {
            ("FP64", (-1,)),
            ("FP64", (-1, 1)),
        }
        assert body["outputs"]
        ready = house.plane.get(f"{path}/ready")
        assert ready.status_code == 200
        assert {"name": "linear", "ready": True}.items() <= ready.json().items()


def test_open_inference_answers_as_predict_does(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """The same model would say one thing to clients of one protocol and another to the rest."""
    rows = served["linear"].sample.head(4)
    expected = [each["value"] for each in house.ask("linear", columns_of(rows))["predictions"]]
    body = {"id": "abc", "inputs": v2_inputs(rows)}
    for path in ("/v2/models/linear/infer", "/v2/models/linear/versions/1/infer"):
        answer = house.plane.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["id"], found["model_name"], found["model_version"]) == ("abc", "linear", "1")
        (output,) = found["outputs"]
        assert output["shape"][0] == 4
        np.testing.assert_allclose(output["data"], expected)


def test_open_inference_reaches_a_version_that_has_no_traffic(house: ServingHouse, served: dict[str, ZooModel]) -> None:
    """A candidate could not be tried before it gets traffic."""
    house.serve(served["linear"], "tried")
    house.add(served["linear"], "tried", "2")
    house.wait_applied()
    body = {"inputs": v2_inputs(served["linear"].sample.head(2))}
    answer = house.plane.client.post("/v2/models/tried/versions/2/infer", json=body)
    assert (answer.status_code, answer.json()["model_version"]) == (200, "2")
    assert house.ask("tried", record_of(served["linear"].sample))["model_version"] == "1"
    unknown = house.plane.client.post("/v2/models/tried/versions/9/infer", json=body)
    assert unknown.status_code == 404
    assert isinstance(unknown.json()["error"], str)
    assert "9" in str(unknown.json())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2/models/nobody/infer", {"inputs": []}, 404),
        ("/v2/models/linear/infer", {"inputs": []}, 422),
        ("/v2/models/linear/infer", {}, 422),
        (
            "/v2/models/linear/infer",
            {"inputs": [{"name": "age", "shape": [2], "datatype": "FP64", "data": [1.0]}]},
            422,
        ),
        (
            "/v2/models/linear/infer",
            {"inputs": [{"name": "age", "shape": [1], "datatype": "FP63", "data": [1.0]}]},
            422,
        ),
    ],
)
def test_open_inference_refuses_in_its_own_shape(
    house: ServingHouse, served: dict[str, ZooModel], path: str, body: dict[str, Any], status: int
) -> None:
    """Clients of the protocol read `error` as a text, and would show their users nothing."""
    answer = house.plane.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["error"], str)


def tensors(shape: tuple[int, ...], low: float, high: float) -> st.SearchStrategy[Any]:
    """Arrays of 32-bit floats between these."""
    return arrays(np.float32, shape, elements=st.floats(low, high, width=32))


def rows_for(model: ZooModel) -> st.SearchStrategy[pd.DataFrame]:
    """Tables that the model's signature allows: numbers within those it was trained on, strings it never saw too."""
    sample: pd.DataFrame = model.sample
    inputs = model.signature["inputs"] if model.signature else _inferred(sample)
    cells = {each["name"]: _cells(each["type"], sample[each["name"]]) for each in inputs}

    @st.composite
    def rows(draw: st.DrawFn) -> pd.DataFrame:
        size = draw(st.integers(1, 6))
        columns = {name: draw(st.lists(each, min_size=size, max_size=size)) for name, each in cells.items()}
        return pd.DataFrame(columns).astype(dict(sample.dtypes))

    return rows()


def _inferred(sample: pd.DataFrame) -> list[dict[str, str]]:
    return [{"name": str(name), "type": "double"} for name in sample.columns]


def _cells(kind: str, seen: "pd.Series[Any]") -> st.SearchStrategy[Any]:
    present = seen.dropna()
    gap: st.SearchStrategy[Any] = st.just(None) if seen.isna().any() else st.nothing()
    if kind in NUMBERS:
        width = 32 if seen.dtype == np.float32 else 64
        low, high = np.floor(present.min()), np.ceil(present.max())
        return st.floats(float(low), float(high), width=width) | gap  # type: ignore[arg-type]
    if kind in WHOLE:
        return st.integers(int(present.min()), int(present.max())) | gap
    if kind == "boolean":
        return st.booleans()
    return st.sampled_from([*present.unique().tolist(), "never seen"]) | gap


def probabilities_of(reference: Any, rows: Any) -> Any:
    """The native model's probabilities; None where it has none."""
    try:
        native = reference.get_raw_model()
    except NotImplementedError:  # a generic pyfunc has nothing inside
        return None
    probabilities = getattr(native, "predict_proba", None)
    return probabilities(rows) if probabilities else None


def assert_same(found: list[dict[str, Any]], expected: Any, probabilities: Any) -> None:
    """Predictions as answered are those of pyfunc, whatever container it returns them in."""
    if isinstance(expected, pd.DataFrame):
        expected_rows: list[Any] = expected.to_dict("records")
    else:
        expected_rows = np.asarray(expected).tolist()
    assert len(found) == len(expected_rows)
    for row, (answer, native) in enumerate(zip(found, expected_rows, strict=True)):
        if "label" not in answer:
            assert_value_close(answer["value"], native)
        elif isinstance(native, float) and not isinstance(answer["label"], float) and "probabilities" in answer:
            # A booster's own predict is the probability of the second class.
            assert math.isclose(list(answer["probabilities"].values())[1], native, abs_tol=1e-9)
        elif isinstance(native, list):
            np.testing.assert_allclose(list(answer["probabilities"].values()), native, atol=1e-9)
        else:
            assert answer["label"] == native
        if probabilities is not None:
            np.testing.assert_allclose(list(answer["probabilities"].values()), probabilities[row], atol=1e-9)


def assert_value_close(found: Any, expected: Any) -> None:
    """Numbers up to rounding, all else exactly."""
    if isinstance(expected, float | list) and not isinstance(found, str):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_value_close(found[name], value)
    else:
        assert found == expected


def assert_predictions_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same label, and probabilities up to rounding."""
    assert one["label"] == other["label"]
    np.testing.assert_allclose(list(one["probabilities"].values()), list(other["probabilities"].values()), atol=1e-9)


def tensor_input(rows: Any) -> dict[str, Any]:
    """An array as `input_data`."""
    return {"inputs": rows.tolist()}


def v2_inputs(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A table of numbers as inputs of the Open Inference Protocol, one for each column."""
    return [
        {"name": name, "shape": [len(values)], "datatype": "FP64", "data": values}
        for name, values in columns_of(rows).items()
    ]
