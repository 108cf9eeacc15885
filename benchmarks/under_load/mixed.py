"""Item 8 under load: thousands of different questions at once, each answer against a direct call of the model."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from benchmarks.kills.verdict import Verdict
from benchmarks.serving.models import MODELS, BenchModel
from benchmarks.under_load.exchange import Question
from benchmarks.under_load.judging import judge_outcomes, times_of
from benchmarks.under_load.plane import fresh_house, serve_saved, serve_telltale
from benchmarks.under_load.telltale import MOST_A, MOST_B, predict_path, telltale_question
from benchmarks.under_load.traffic import ask_all, tally
from tests.e2e.house import ServingHouse

AT_ONCE = 200
_TELLTALES = {"left": 10, "right": 11}
_SIZES = (1, 1, 1, 2, 7, 40)
_SAME = 1e-9
"""Libraries of linear algebra add in another order in batches of another size."""
_CONFIG = {"max_concurrent_requests": 100_000}


def mix_questions(verdict: Verdict, rng: random.Random, questions: int) -> None:
    """On a data plane of its own, with two HTTP processes."""
    with fresh_house(api_processes=2) as house:
        mix_on(house, verdict, rng, questions)


def mix_on(house: ServingHouse, verdict: Verdict, rng: random.Random, questions: int) -> None:
    """Telltales with two versions each at half of the traffic, and three models of scikit-learn."""
    for model_id, number in _TELLTALES.items():
        serve_telltale(house, model_id, number, versions=2, **_CONFIG)
        house.route(model_id, {"1": 0.5, "2": 0.5})
    for name, make in MODELS.items():
        serve_saved(house, name, make().saved(1), **_CONFIG)
    house.wait_applied()
    makers = [
        *(_about_telltale(*each) for each in _TELLTALES.items()),
        *(_about_model(each()) for each in MODELS.values()),
    ]
    asked = [rng.choice(makers)(rng) for _ in range(questions)]
    outcomes = ask_all(house.plane.port, asked, AT_ONCE)
    judge_outcomes(verdict, f"{AT_ONCE} at once", outcomes)
    verdict.figure(f"questions, {AT_ONCE} at once, answered", f"{len(asked)}, {tally(outcomes)}")
    models = Counter(question.path.split("/")[3] for question in asked)
    verdict.figure("of each model", ", ".join(f"{count} {name}" for name, count in sorted(models.items())))
    versions = Counter(
        each.version for each, question in zip(outcomes, asked, strict=True) if question.path in _telltale_paths()
    )
    verdict.figure("of two versions", f"{versions['1']} and {versions['2']} answers")
    verdict.require(min(versions["1"], versions["2"]) > 0, "only one of two versions answered: nothing was mixed")
    verdict.figure("answered in", times_of(outcomes))


def _telltale_paths() -> set[str]:
    return {predict_path(each) for each in _TELLTALES}


def _about_telltale(model_id: str, number: int) -> Callable[[random.Random], Question]:
    def ask(rng: random.Random) -> Question:
        rows = [(rng.randrange(MOST_A), rng.randrange(MOST_B)) for _ in range(rng.choice(_SIZES))]
        return telltale_question(model_id, number, rows, turned=rng.random() < 0.5)

    return ask


def _about_model(model: BenchModel) -> Callable[[random.Random], Question]:
    def ask(rng: random.Random) -> Question:
        places = [rng.randrange(len(model.records)) for _ in range(rng.choice(_SIZES))]
        columns = list(model.columns)
        rng.shuffle(columns)
        data = {name: [model.records[place][name] for place in places] for name in columns}
        body = orjson.dumps(
            {"input_data": data, "parameters": {"return_probabilities": True}}, option=orjson.OPT_SERIALIZE_NUMPY
        )
        return Question(predict_path(model.name), body, lambda answer: _fault_of(model, places, answer))

    return ask


def _fault_of(model: BenchModel, places: list[int], answer: dict[str, Any]) -> str | None:
    """What differs from the model's own answer to these records."""
    said = answer["predictions"]
    if len(said) != len(places):
        return f"{model.name} answered {len(said)} rows of {len(places)}"
    for place, each in zip(places, said, strict=True):
        expected = model.expected(1, place)
        probabilities = list(each["probabilities"].values())
        if any(abs(mine - own) > _SAME for mine, own in zip(probabilities, expected, strict=True)):
            return f"{model.name} answered {probabilities}, and by itself {list(expected)}"
        if each["label"] != model.versions[0].fitted.classes_[max(range(len(expected)), key=expected.__getitem__)]:
            return f"{model.name} answered label {each['label']} to {list(expected)}"
    return None
