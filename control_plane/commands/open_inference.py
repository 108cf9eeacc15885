"""Our questions and answers in the words of the Open Inference Protocol V2, which asks a version by name. Pure."""

from typing import Any

from control_plane.commands.columns import Column

Json = dict[str, Any]

_DATATYPES = {
    "double": "FP64",
    "float": "FP32",
    "long": "INT64",
    "integer": "INT32",
    "boolean": "BOOL",
    "string": "BYTES",
    "datetime": "BYTES",
}


def as_infer(body: Json, columns: list[Column] | None) -> Json:
    """A question of ours (`input_data`, `request_id`, `parameters`) as an inference request, one input a column."""
    kinds = {each.name: each.type for each in columns or []}
    inputs = []
    for name, given in body["input_data"].items():
        data = given if isinstance(given, list) else [given]
        datatype = _DATATYPES.get(kinds.get(name, "any")) or _guess(data)
        inputs.append({"name": name, "shape": [len(data)], "datatype": datatype, "data": data})
    asked: Json = {"inputs": inputs}
    if "request_id" in body:
        asked["id"] = body["request_id"]
    if "parameters" in body:
        asked["parameters"] = body["parameters"]
    return asked


def from_infer(answer: Json, request_id: str | None) -> Json:
    """An inference answer as ours: `predictions`, `confidence_scores`, `model_version`, `request_id`."""
    outputs = {each["name"]: each for each in answer["outputs"]}
    shown = outputs.get("label") or outputs.get("value") or answer["outputs"][0]
    word = "value" if shown["name"] == "value" else "label"
    predictions: list[Json] = [{word: each} for each in _rows(shown)]
    confidence: list[float] = []
    if probabilities := outputs.get("probabilities"):
        classes = (probabilities.get("parameters") or {}).get("classes")
        for prediction, row in zip(predictions, _rows(probabilities), strict=True):
            names = classes or range(len(row))
            by_class = {str(name): each for name, each in zip(names, row, strict=True)}
            prediction["probabilities"] = by_class
            confidence.append(by_class.get(str(prediction[word]), max(row)))  # of its label, wherever the threshold is
    return {
        "request_id": answer.get("id") or request_id,
        "predictions": predictions,
        "confidence_scores": confidence,
        "model_version": answer.get("model_version"),
    }


def _rows(output: Json) -> list[Any]:
    """The data by row; a matrix comes flat."""
    data, shape = output["data"], output["shape"]
    if len(shape) < 2 or (data and isinstance(data[0], list)):
        return list(data)
    width = shape[1]
    return [data[at : at + width] for at in range(0, len(data), width)]


def _guess(data: list[Any]) -> str:
    there = [each for each in data if each is not None]
    if there and all(isinstance(each, bool) for each in there):
        return "BOOL"
    is_number = bool(there) and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in there)
    return "FP64" if is_number else "BYTES"
