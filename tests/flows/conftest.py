"""A real Prefect server, in this process's reach, for the tests that run flows."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    """Prefect's own server on a database of its own. It takes seconds to start, so only who asks for it waits."""
    with prefect_test_harness(server_startup_timeout=90):
        yield
