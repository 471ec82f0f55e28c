"""An index that tests fill by hand."""

import pytest
from comparisons import Results


@pytest.fixture
def results() -> Results:
    return Results()
