"""What Switchyard is measured against, one small file each, run by the Python of an environment of its own.

Those with a file of their own load the pickled model and are started by `python -m benchmarks.serving.peers.<name> PORT
MODEL`; MLServer, BentoML and MLflow are started by their own commands (benchmarks/serving/field.py). All run with one
thread for BLAS and their own defaults otherwise, as their documentation shows.

`requirements/<environment>.txt` pins what each is measured with, made by `uv pip compile` from the versions it begins
with.
"""

from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
