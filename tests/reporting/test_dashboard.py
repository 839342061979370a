import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest

from balsa_ray.reporting import dashboard as module
from balsa_ray.reporting.dashboard import SECTIONS, dashboard, text

ROOT = Path(__file__).parents[2]
METRIC = re.compile(r"\b(?:ray|autoscaler)_\w+")


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def shown() -> set[str]:
    return {name for expression in expressions() for name in METRIC.findall(expression)}


def sources(package: str, *patterns: str) -> str:
    spec = find_spec(package)
    assert spec
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    files = [file for pattern in patterns for file in sorted(root.glob(pattern))]
    assert files, patterns
    return "\n".join(file.read_text("utf-8") for file in files)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Names under which Prometheus has what Ray, vLLM and this project count."""
    names = set(METRIC.findall(sources("ray", "dashboard/modules/metrics/dashboards/*.py")))
    of_vllm = sources("vllm", "v1/metrics/loggers.py")
    for made, name in re.findall(r'_(counter|gauge|histogram)_cls\(\s*name="vllm:(\w+)"', of_vllm):
        names |= {f"ray_vllm_{name}{ending}" for ending in ENDINGS[made]}
    return names | ours()


ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def ours() -> set[str]:
    text = "\n".join(file.read_text("utf-8") for file in sorted((ROOT / "balsa_ray").rglob("*.py")))
    found = re.findall(r'\b(Counter|Gauge)\(\s*"(balsa_\w+)"', text)
    return {f"ray_{name}{ENDINGS[made.lower()][0]}" for made, name in found}


def test_the_file_is_what_the_program_makes() -> None:
    file = ROOT / "cluster" / "grafana" / "balsa_ray.json"
    assert file.read_text("utf-8") == text(), "python -m balsa_ray.reporting.dashboard > cluster/grafana/balsa_ray.json"
    assert json.loads(text()) == dashboard()


def test_every_metric_is_one_that_is_exported(known: set[str]) -> None:
    assert {"ray_vllm_generation_tokens_total", "ray_tasks", "ray_balsa_clips_total"} <= known
    assert not shown() - known
    assert not {"ray_vllm_generation_tokens", "ray_balsa_clips", "ray_task"} & known


def test_everything_that_this_project_counts_is_shown() -> None:
    assert len(ours()) == 13
    assert ours() <= shown()


def test_panels_lie_side_by_side() -> None:
    panels = dashboard()["panels"]
    places = [panel["gridPos"] for panel in panels]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(SECTIONS) + sum(map(len, SECTIONS.values()))
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_expressions_are_whole_and_their_legends_differ() -> None:
    for expression in expressions():
        assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))
    for panel in dashboard()["panels"]:
        targets = panel.get("targets", [])
        for key in ("refId", "legendFormat"):
            assert len({target[key] for target in targets}) == len(targets)
        for target in targets:  # a label in the legend is one that the query keeps
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \({label}\)", target["expr"]), target


def test_parts_of_expressions() -> None:
    assert module._share("a_total", "b_total") == (
        "sum (rate(a_total[$__rate_interval])) / sum (rate(b_total[$__rate_interval]))"
    )
    assert module._quantile(0.5, "m") == ("histogram_quantile(0.5, sum by (le) (rate(m_bucket[$__rate_interval])))")


@pytest.mark.slow
def test_ray_exports_what_jobs_count_under_the_names_that_are_shown(ray_session: None) -> None:
    import time

    import httpx
    import ray

    from balsa_ray.synthesis.meters import Meters as OfSynthesis
    from balsa_ray.training.meters import Meters as OfTraining

    of_synthesis, of_training = OfSynthesis(), OfTraining()
    one = {
        "kind": "of this test alone",
        "strategy": "",
        "gate": "passed",
        "rows": 3,
        "prompt_tokens": 5,
        "response_tokens": 7,
    }
    of_synthesis.add([one], left=4)
    line = {"step": 1, "loss": 0.5, "validation_loss": 0.6, "samples": 8, "seconds": 2.0, "workers": 1, "mfu": 0.4}
    of_training.show(line | {"tokens_per_second": 9.0})
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {name for name in ours() if "synthesis" in name or "training" in name}
    made, pace = "ray_balsa_synthesis_rows_total", "ray_balsa_training_samples_per_second"
    deadline = time.monotonic() + 60  # Ray gathers them every few seconds
    while True:
        seen = httpx.get(address, timeout=30).text
        values = re.findall(r"^(ray_balsa_\w+?){(.*)} (\S+)$", seen, re.MULTILINE)
        # Other tests' jobs count in the same Ray.
        rows = [float(value) for name, tags, value in values if name == made and one["kind"] in tags]
        paces = [float(value) for name, _, value in values if name == pace]
        missing = wanted - {name for name, _, _ in values}
        if not missing and rows == [3] and 4 in paces:
            break
        assert time.monotonic() < deadline, (missing, rows, paces)
        time.sleep(2)
