"""Fitted pipelines as plain numpy: what scikit-learn answers, without its checks, DataFrames and thread pools.

A version is compiled when it is loaded, compared with its own `predict`, and used compiled only where every answer and
every refusal was the same; see `trial`. What the compiled form cannot answer itself it leaves to scikit-learn, batch
by batch.
"""

from serving.compiled.engine import CompiledEngine
from serving.compiled.trial import Tried, try_compiled

__all__ = ["CompiledEngine", "Tried", "try_compiled"]
