"""The spec that the server publishes, and requests made from it: what comes back is what the spec says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from chat_requests import KEY, PATIENT
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from balsa_ray.serving.server import Server

pytestmark = pytest.mark.slow
HEADERS = {"Authorization": f"Bearer {KEY}"}
OPERATIONS = [
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/chat/completions"),
]
# There is nothing that a request for it could have wrong.
NOTHING_WRONG = ("GET", "/healthz", GenerationMode.NEGATIVE)


@pytest.fixture(scope="package")
def spec(server: Server) -> Any:
    """The spec as a client gets it."""
    raw = httpx.get(f"{server.url}/openapi.json", headers=HEADERS, timeout=PATIENT).json()
    return schemathesis.openapi.from_dict(raw)


def test_the_spec_names_all_there_is(spec: Any) -> None:
    operations = [result.ok() for result in spec.get_all_operations()]
    assert sorted((operation.method.upper(), operation.path) for operation in operations) == OPERATIONS


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*one, mode) for one in OPERATIONS for mode in GenerationMode if (*one, mode) != NOTHING_WRONG],
)
def test_random_requests_get_the_answers_that_the_spec_names(
    server: Server, spec: Any, method: str, path: str, mode: GenerationMode
) -> None:
    @given(case=spec[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        # What a recording holds and what a model takes is beyond a schema.
        excluded = [positive_data_acceptance] if path.endswith("completions") else []
        response = case.call_and_validate(base_url=server.url, headers=HEADERS, timeout=60, excluded_checks=excluded)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    ask()


def test_the_least_the_most_and_what_lies_beyond_get_the_answers_that_the_spec_names(
    server: Server, tmp_path: Path
) -> None:
    """Each field at and beyond its limits, of other types and left out; other methods; no key and a wrong one."""
    run = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    run += ["--header", f"Authorization: {HEADERS['Authorization']}", "--request-timeout", "60", "--no-color"]
    run += ["--phases", "coverage", "--generation-deterministic", "--checks", "all"]
    run += ["--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(OPERATIONS)}" in done.stdout
