# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent, the service answers as its own description says: by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

pytest.importorskip("fastapi")
from services import client

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def description(trained: Path) -> Iterator[Any]:
    with client(trained, token="secret") as service:
        yield schemathesis.openapi.from_asgi("/openapi.json", service.app)


schema = schemathesis.pytest.from_fixture("description")


@schema.parametrize()
@hypothesis.settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_answers_are_as_described(case: Any) -> None:
    # A description cannot say of bytes that they are an image: such a request may be refused.
    from schemathesis.specs.openapi.checks import positive_data_acceptance as unfit

    case.call_and_validate(headers={"Authorization": "Bearer secret"}, excluded_checks=[unfit])
