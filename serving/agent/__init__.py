"""The agent: a process that brings workers to hold what should be served, and tells HTTP processes how to route.

Light to import: what its process needs is imported there.
"""

from serving.agent.options import AgentOptions
from serving.agent.run import run_agent

__all__ = ["AgentOptions", "run_agent"]
