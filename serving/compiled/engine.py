"""The compiled form in service: it answers what it can, and stands back for good when it fails too often."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from serving.compiled.plan import Plan
from serving.compiled.refusals import AskNative
from serving.engines import Engine, Predicted
from serving.logs import logger
from serving.model_input import Raw

FAILURES, WITHIN = 3, 300.0
"""So many failures within so many seconds, and a version is not answered by its compiled form any more."""

Native = Callable[[Raw], Predicted]
"""The same rows, answered by the model as it is."""

log = logger(__name__)


class CompiledEngine:
    """An engine that takes rows as they travelled. Whatever it cannot answer, the model itself does."""

    def __init__(self, plan: Plan, engine: Engine, native: Native, *, about: dict[str, str]) -> None:
        """`about`: what the log says of a failure, such as the version."""
        self.name = engine.name
        self.kind = engine.kind
        self.classes = engine.classes
        self.probabilities = engine.probabilities
        self.left = 0
        """Batches that were the model's own to answer."""
        self._plan: Plan | None = plan
        self._native = native
        self._about = about
        self._failed_at: deque[float] = deque(maxlen=FAILURES)

    @property
    def is_on(self) -> bool:
        """Whether the compiled form still answers."""
        return self._plan is not None

    def predict(self, raw: Raw, params: dict[str, Any] | None) -> Predicted:  # noqa: ARG002  # see Engine
        """See Engine."""
        if self._plan is None:
            return self._native(raw)
        try:
            return self._plan(raw)
        except AskNative:
            self.left += 1
            return self._native(raw)
        except Exception as problem:  # noqa: BLE001  # private parts of a library may raise anything
            answers = self._native(raw)  # raises as well where it is the rows' fault
            self._note_failure(problem)
            return answers

    def _note_failure(self, problem: Exception) -> None:
        self.left += 1
        now = time.monotonic()
        self._failed_at.append(now)
        # Not the problem's text, which may quote a value.
        log.warning("compiled form failed, the model answered", problem=type(problem).__name__, **self._about)
        if len(self._failed_at) == FAILURES and now - self._failed_at[0] <= WITHIN:
            self._plan = None
            log.error("compiled form switched off, the model answers from now on", failures=FAILURES, **self._about)
