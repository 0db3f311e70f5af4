"""A pathctld that answers from a table."""

from collections.abc import Iterator
from pathlib import Path

import fakeapi
import pytest


@pytest.fixture
def api(tmp_path: Path) -> Iterator[fakeapi.Api]:
    api = fakeapi.Api(tmp_path)
    yield api
    api.close()
