"""What a version takes and gives, and what it answered, in the protocol's shapes."""

from collections.abc import Sequence
from typing import Any

import orjson

from serving.contracts import Held, InferenceResponse, ModelKind
from serving.errors import FieldProblem, ValidationFailed
from serving.input_schema import InputSchema
from serving.open_inference.datatypes import datatype_of

PREDICT, PROBABILITIES = "predict", "probabilities"


def model_metadata(model_id: str, versions: Sequence[str], schema: InputSchema, held: Held) -> dict[str, Any]:
    """Body of `GET /v2/models/{m}`. Without a signature `inputs` is empty: any columns are taken.

    Of a generic model it is not known beforehand what it answers; BYTES is named, and numbers come as numbers.
    """
    inputs = [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in schema.describe()]
    return {
        "name": model_id,
        "versions": list(versions),
        "platform": f"mlflow_{held.engine}",
        "inputs": inputs,
        "outputs": _described_outputs(held),
    }


def _described_outputs(held: Held) -> list[dict[str, Any]]:
    match held.kind:
        case ModelKind.CLASSIFIER:
            datatype = datatype_of(held.classes)
        case ModelKind.REGRESSOR:
            datatype = "FP64"
        case _:
            datatype = "BYTES"
    outputs = [{"name": PREDICT, "datatype": datatype, "shape": [-1]}]
    if held.kind is ModelKind.CLASSIFIER and held.probabilities:
        outputs.append({"name": PROBABILITIES, "datatype": "FP64", "shape": [-1, len(held.classes)]})
    return outputs


def write_infer(
    request_id: str, response: InferenceResponse, held: Held, wanted: Sequence[str] | None
) -> dict[str, Any]:
    """Body of the answer to `POST .../infer`: outputs `predict` [n] (label or value; [n, k] of k values) and, where
    there are any, `probabilities` [n, classes]; or those of them that are `wanted`. Data are flat, in row-major order.

    Raises:
        ValidationFailed: probabilities are wanted, and there are none.
    """
    outputs = {PREDICT: _predict(response.predictions, held)}
    probabilities = [each.get(PROBABILITIES) for each in response.predictions]
    if all(probabilities):
        outputs[PROBABILITIES] = _probabilities([list(each.values()) for each in probabilities if each])
    return {
        "model_name": held.model_id,
        "model_version": response.model_version,
        "id": request_id,
        "outputs": [_chosen(outputs, each) for each in (outputs if wanted is None else wanted)],
    }


def _chosen(outputs: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in outputs:
        problem = FieldProblem("outputs", f"no output '{name}' here", f"one of {', '.join(outputs)}")
        raise ValidationFailed([problem])
    return outputs[name]


def _predict(predictions: list[dict[str, Any]], held: Held) -> dict[str, Any]:
    if held.kind is ModelKind.CLASSIFIER:
        return _tensor([each["label"] for each in predictions], datatype_of(held.classes))
    values = [each["value"] for each in predictions]
    widths = {len(each) if isinstance(each, list) else None for each in values}
    flat = [inner for each in values for inner in each] if None not in widths else []
    if len(widths) == 1 and flat and not any(isinstance(each, list | dict) for each in flat):
        return {**_tensor(flat, datatype_of(flat)), "shape": [len(values), len(flat) // len(values)]}
    datatype = datatype_of(values)
    # As its metadata promise, also where a regressor happens to answer whole numbers only.
    return _tensor(values, "FP64" if datatype == "INT64" and held.kind is ModelKind.REGRESSOR else datatype)


def _tensor(values: list[Any], datatype: str) -> dict[str, Any]:
    if datatype == "BYTES" and not all(each is None or isinstance(each, str) for each in values):
        values = [orjson.dumps(each).decode() for each in values]
    return {"name": PREDICT, "datatype": datatype, "shape": [len(values)], "data": values}


def _probabilities(rows: list[list[float]]) -> dict[str, Any]:
    flat = [each for row in rows for each in row]
    return {"name": PROBABILITIES, "datatype": "FP64", "shape": [len(rows), len(rows[0])], "data": flat}
