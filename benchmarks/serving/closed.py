"""Closed loop: everybody serves the same model, one after the other, in turns."""

from collections.abc import Sequence

from benchmarks.serving.candidates import Candidate
from benchmarks.serving.environments import NotInstalled
from benchmarks.serving.measure import Figures, Generator, NotStarted, WrongAnswers, figures, ready
from benchmarks.serving.models import BenchModel
from benchmarks.serving.results import Closed, Plan, Say
from benchmarks.waiting import NotInTime


def run_closed_loops(
    model: BenchModel, candidates: Sequence[Candidate], plan: Plan, generator: Generator, say: Say
) -> Closed:
    """Every candidate that serves this model; one that cannot be is noted with the reason."""
    chosen = [each for each in candidates if model.name in each.models]
    closed = Closed(model.name, model.title)
    for each in chosen:
        closed.titles[each.name] = each.title
        if each.is_ceiling:
            closed.ceilings.add(each.name)
    for number in range(plan.rounds):
        # Each round begins with another one, so that nobody always follows the same neighbour.
        for candidate in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            if candidate.title not in closed.absent and candidate.title not in closed.wrong:
                _turn(closed, candidate, model, number, plan, generator, say)
    return closed


def _turn(
    closed: Closed, candidate: Candidate, model: BenchModel, number: int, plan: Plan, generator: Generator, say: Say
) -> None:
    try:
        found = _measure(candidate, model, plan, generator)
    except WrongAnswers as problem:
        closed.wrong[candidate.title] = str(problem)
        say(f"WRONG ANSWERS {problem}")
        return
    except (NotInstalled, NotStarted, NotInTime) as problem:
        closed.absent[candidate.title] = f"round {number + 1}: {problem}"
        say(f"{candidate.title} is absent: {problem}")
        return
    for connections, each in found.items():
        closed.found.setdefault((candidate.name, connections), {})[number] = each
    shown = ", ".join(f"{each.load.rate:,.0f}/s at {count}" for count, each in found.items())
    say(f"{model.name}, round {number + 1}, {candidate.title}: {shown}")


def _measure(candidate: Candidate, model: BenchModel, plan: Plan, generator: Generator) -> dict[int, Figures]:
    with ready(candidate, model, generator) as server:
        return {
            count: figures(server, lambda count=count: generator(server.target, count, plan.seconds))  # type: ignore[misc]
            for count in candidate.connections
        }
