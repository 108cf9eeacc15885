"""The instrument of benchmarks/serving: what it computes from what it saw, and that it sees what happens."""

import dataclasses
import math
import re
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.candidates import OURS, Candidate, Prepared, Said
from benchmarks.serving.closed import run_closed_loops
from benchmarks.serving.environments import NotInstalled
from benchmarks.serving.features import FULL, ONE_VERSION, THREE_MODELS, WITHOUT_THE_LOG
from benchmarks.serving.field import EMPTY, LITSERVE, PEERS
from benchmarks.serving.generator import Log, end_of_answer, header
from benchmarks.serving.lag import is_gone
from benchmarks.serving.load import run_closed, summarise
from benchmarks.serving.measure import Figures
from benchmarks.serving.models import BenchModel, Version
from benchmarks.serving.ours import Shape, switchyard
from benchmarks.serving.outcome import Load, Question, percentile
from benchmarks.serving.overload import grows
from benchmarks.serving.peers import REQUIREMENTS
from benchmarks.serving.plot import draw
from benchmarks.serving.report import section
from benchmarks.serving.results import QUICK, Closed, Features, Idle, Lag, OpenLoops, Overload, Results
from benchmarks.serving.targets import NOT_MEASURED, Verdict, verdicts
from serving.spool import SpoolState

MODEL = BenchModel("tiny", "tiny", (Version(None, ((1.0,),)), Version(None, ((1.0,),))), ("x",), True, ({"x": 1.0},))


def load(rate: float = 100.0, p50: float = 0.001, p99: float = 0.002, **fields: Any) -> Load:
    """A measurement of one second."""
    given: dict[str, Any] = {"errors": {}, "generator_cpu": 0.1, "generator_late": None, **fields}
    return Load(seconds=1.0, answered=int(rate), p50=p50, p95=p99, p99=p99, **given)


def figures(rate: float = 100.0, **fields: Any) -> Figures:
    """A measurement with what it took."""
    return Figures(load(rate, **fields), cpu_per_request=0.0001, pss=100 * 2**20, others=0.0)


def closed(model: str = "logistic", **rates: tuple[float, ...]) -> Closed:
    """Requests/s of each candidate at 32 connections and at one, by round."""
    found = Closed(model, model)
    for name, rounds in {key.replace("_", "-"): value for key, value in rates.items()}.items():
        found.titles[name] = name
        for count in (1, 32):
            found.found[name, count] = {number: figures(rate) for number, rate in enumerate(rounds)}
    found.ceilings.add(EMPTY)
    return found


def results(**parts: Any) -> Results:
    """A run with these parts."""
    return Results("own", QUICK, **parts)


def verdict(found: Results, what: str) -> Verdict:
    """The first that speaks of this."""
    return next(each for each in verdicts(found) if what in each.what)


OVERLOAD = Overload(
    title="forest",
    maximum=1000.0,
    load=load(950.0, offered=2000.0, errors={"429": 1000}, refused_p99=0.02, retry_after={"1": 1000}),
    limit=256,
    under_way=[200.0, 250.0, 240.0, 256.0, 250.0, 255.0],
    attempts=[1, 2],
    unserved=0,
    crowd_refused=100,
    crowd_served=100,
)


class TestPureParts:
    """From what was seen to figures."""

    @pytest.mark.parametrize(("percent", "expected"), [(50, 50.0), (95, 95.0), (99, 99.0), (100, 100.0), (0, 1.0)])
    def test_percentiles_are_ranks(self, percent: int, expected: float) -> None:
        """A p99 that is the p98 would flatter every server."""
        assert percentile([float(each) for each in range(1, 101)], percent) == expected

    def test_nothing_has_no_percentile(self) -> None:
        """A server that answered nothing would be shown as instant."""
        assert math.isnan(percentile([], 99))

    def test_an_answer_ends_where_it_says(self) -> None:
        """Half an answer would count as one, or two as one."""
        answer = b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n{}"
        assert end_of_answer(answer) == len(answer)
        assert end_of_answer(answer[:-10]) is None
        assert header(answer, b"retry-after") == "3"
        assert header(answer, b"after") is None
        with pytest.raises(ValueError, match="without content-length"):
            end_of_answer(b"HTTP/1.1 200 OK\r\n\r\n")

    def test_generators_side_by_side_are_one_load(self) -> None:
        """Rates would be halved, or percentiles averaged, with two generators."""
        one = Log(times=array("d", [0.1, 0.2]), done=array("d", [0.5, 2.5]), late=array("d", [0.001]))
        other = Log(times=array("d", [0.4]), done=array("d", [1.0]), errors={"429": 1}, refused=array("d", [0.01]))
        found = summarise([one, other], seconds=2.0, rate=5.0)
        assert found.answered == 2, "what came after the end is no throughput"
        assert (found.answered_in_all, found.p50, found.p99) == (3, 0.2, 0.4)
        assert (found.errors, found.refused_p99, found.generator_late) == ({"429": 1}, 0.01, 0.001)

    def test_a_queue_that_grows_is_seen(self) -> None:
        """An overload that eats the memory slowly would pass."""
        assert grows([float(each) for each in range(0, 3000, 100)])
        assert not grows([0.0, 256.0, 250.0, 256.0, 240.0, 256.0, 255.0, 250.0, 256.0])

    def test_a_lag_of_payloads_is_a_lag(self) -> None:
        """What requests carried could wait on disk for minutes, and the lag would be called gone."""
        assert is_gone(SpoolState(waiting_bytes=2**20, oldest_seconds=0.2, dropped=0))
        assert not is_gone(SpoolState(waiting_bytes=2**20, oldest_seconds=3.0, dropped=0))
        assert not is_gone(SpoolState(waiting_bytes=64 * 2**20, oldest_seconds=0.2, dropped=0))

    def test_costs_are_within_an_alternation(self) -> None:
        """Noise between alternations would be taken for the cost of a feature."""
        full = [figures(90), figures(45)]
        found = Features({FULL: full, WITHOUT_THE_LOG: [figures(100), figures(50)]}, {})
        assert found.cost(FULL, WITHOUT_THE_LOG) == pytest.approx(0.1)
        assert found.cost(FULL, ONE_VERSION) is None


class TestTargets:
    """Met, missed, or not measured."""

    def test_nothing_measured_is_nothing_met(self) -> None:
        """A part that was left out would count as met."""
        assert {each.met for each in verdicts(results())} == {None}
        assert {each.found for each in verdicts(results())} == {NOT_MEASURED}

    def test_ratios_are_taken_round_by_round(self) -> None:
        """A round in which the machine was busy would decide."""
        found = results(closed=[closed(switchyard=(1500.0, 150.0), litserve=(100.0, 10.0), empty=(2000.0, 300.0))])
        against = verdict(found, "stock LitServe")
        assert (against.found, against.met) == ("15.0 x", True)
        share = verdict(found, "empty route")
        assert (share.found, share.met) == ("62%", True)

    def test_the_ceiling_is_no_peer(self) -> None:
        """The best peer would be a route that serves no model."""
        found = results(closed=[closed(switchyard=(700.0,), litserve=(10.0,), mlserver=(101.0,), empty=(900.0,))])
        best = verdict(found, "best peer")
        assert "mlserver" in best.what
        assert (best.found, best.met) == ("6.9 x", False)

    def test_the_better_fastapi_counts(self) -> None:
        """We would choose the opponent that suits us."""
        flights = closed("flights", switchyard=(700.0,), fastapi_def=(50.0,), fastapi_async=(140.0,))
        found = verdict(results(closed=[flights]), "flights, 32")
        assert (found.found, found.met) == ("5.0 x", False)

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"load": dataclasses.replace(OVERLOAD.load, answered=880)}, "goodput"),
            ({"load": dataclasses.replace(OVERLOAD.load, errors={"429": 1, "504": 1})}, "refused with 429"),
            ({"load": dataclasses.replace(OVERLOAD.load, refused_p99=0.06)}, "refused within"),
            ({"load": dataclasses.replace(OVERLOAD.load, retry_after={"none": 3})}, "waits as told"),
            ({"crowd_served": 99}, "waits as told"),
            ({"under_way": [1.0, 1.0, 10.0, 10.0, 90.0, 90.0]}, "queue"),
            ({"under_way": []}, "queue"),
            ({"load": dataclasses.replace(OVERLOAD.load, thirds=(0.1, 0.3, 0.6))}, "queue"),
        ],
    )
    def test_each_side_of_an_overload_can_fail(self, change: dict[str, Any], what: str) -> None:
        """A check that cannot fail would hide what breaks under overload."""
        assert verdict(results(overload=OVERLOAD), what).met
        assert not verdict(results(overload=dataclasses.replace(OVERLOAD, **change)), what).met

    def test_a_tail_does_not_pass_because_everything_is_slow(self) -> None:
        """A server that cannot keep up at 75 % would have the best ratio of all."""
        slow = OpenLoops("m", 100.0, {0.75: figures(p50=1.0, p99=1.1, answered_in_all=100, held_back=40)})
        found = verdict(results(open=[slow]), "open loop")
        assert found.met is False
        assert "40% had to wait" in found.found

    def test_the_rest(self) -> None:
        """A tail, a lag, or an idle process that burns a core would pass unseen."""
        loops = OpenLoops("m", 100.0, {0.75: figures(p50=0.001, p99=0.0051)})
        lag = Lag(load(), 1, 1.0, 50.0, 61.0, 61.0)
        idle = Idle(15.0, 0.02, 700_000_000, 6)
        features = Features({ONE_VERSION: [figures(100)], THREE_MODELS: [figures(85)]}, {})
        found = verdicts(results(open=[loops], lag=lag, idle=idle, features=features))
        missed = [each.what for each in found if each.met is False]
        assert len(missed) == 5, missed
        assert verdict(results(lag=dataclasses.replace(lag, gone_after=None)), "lag").met is False

    def test_what_cannot_be_left_out_is_said(self) -> None:
        """The cost of the log would be zero because there was no way to be without it."""
        features = Features({FULL: [figures()]}, {WITHOUT_THE_LOG: "no such setting"})
        found = verdict(results(features=features), "prediction log")
        assert (found.met, found.found) == (None, f"{NOT_MEASURED}: no such setting")


class TestReport:
    """What people read."""

    def test_absence_and_errors_are_in_the_page(self) -> None:
        """A peer that did not start would silently be no competition."""
        ours = closed(switchyard=(100.0,))
        ours.found[OURS, 32] = {0: figures(100.0, errors={"503": 2})}
        ours.absent["MLServer"] = "it has ended"
        ours.wrong["BentoML"] = "0.4, expected 0.5"
        found = results(closed=[ours], overload=OVERLOAD, broken={"lag": "waited 60 s"})
        page = section(found, ["--quick"], None)
        for words in ("Not measured: MLServer on logistic, it has ended", "BentoML: 0.4", "503: 2", "lag: waited 60 s"):
            assert words in page
        assert found.our_errors() == {"503": 2}

    def test_every_part_is_in_the_page_and_drawn(self, tmp_path: Path) -> None:
        """`make bench ARGS=--write` would break off after twenty minutes."""
        loops = OpenLoops("logistic", 100.0, {share: figures(100 * share) for share in (0.25, 0.5, 0.75, 0.9)})
        found = results(
            closed=[closed(switchyard=(100.0,), empty=(120.0,))],
            open=[loops],
            overload=OVERLOAD,
            features=Features({FULL: [figures(90)], ONE_VERSION: [figures(100)]}, {}),
            lag=Lag(load(), 2**20, 3.0, 50.0, 4.0, 4.0),
            idle=Idle(15.0, 0.002, 500_000_000, 6),
        )
        page = section(found, [], "plot.svg")
        for words in ("open loop", "closed loop, 1 connection", "Retry-After", "111.1%", "gone after 4.0 s", "0.20%"):
            assert words in page
        assert draw(found, tmp_path / "plot.svg")
        assert "<svg" in (tmp_path / "plot.svg").read_text()
        assert not draw(results(), tmp_path / "nothing.svg")


class TestField:
    """Who takes part."""

    def test_everybody_is_there(self) -> None:
        """Ratios to the best peer would be those to the best of whom we like."""
        names = {each.name for each in PEERS}
        assert names == {
            LITSERVE, "mlserver", "kserve", "bentoml", "ray", "mlflow", "fastapi-def", "fastapi-async", EMPTY,
        }  # fmt: skip

    @pytest.mark.parametrize("listed", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda each: each.stem)
    def test_versions_are_pinned_and_the_models_fit(self, listed: Path) -> None:
        """Next month's figures would be those of other software, or a pickled model would not load."""
        lines = listed.read_text().splitlines()
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ]+( ; .*)?", each) for each in lines), lines
        assert "scikit-learn==1.9.1" in lines

    def test_who_cannot_be_measured_is_noted_with_the_reason(self) -> None:
        """A peer that cannot be installed or does not start would be left out, or end the whole run."""

        def not_there(*_: object) -> Prepared:
            raise NotInstalled("x", "no wheel")

        def ends(*_: object) -> Prepared:
            return Prepared([sys.executable, "-c", "raise SystemExit('port is cursed')"])

        peers = [
            Candidate(name, name, prepare, lambda _: (Question("/", b"", 0),), lambda _: Said(1, ()), models=("tiny",))
            for name, prepare in (("uninstalled", not_there), ("broken", ends))
        ]
        found = run_closed_loops(MODEL, peers, QUICK, run_closed, lambda _: None)
        assert "no wheel" in found.absent["uninstalled"]
        assert "port is cursed" in found.absent["broken"]

    def test_ours_is_asked_for_each_of_its_models(self) -> None:
        """Three models would be one model with two that idle."""
        questions = switchyard(shape=Shape(models=3)).ask(MODEL)
        assert [each.path for each in questions] == [
            f"/ml/models/{name}/predict" for name in ("tiny", "tiny-2", "tiny-3")
        ]
        assert all(b'"user_id"' in each.body for each in questions)
