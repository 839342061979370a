"""The Grafana dashboard of a cluster, made from the list of its panels.

    python -m balsa_ray.reporting.dashboard > cluster/grafana/balsa_ray.json

What it shows comes from the Prometheus that scrapes Ray's nodes. Ray exports a metric NAME as `ray_NAME`, a counter as
`ray_NAME_total`; vLLM hands its own to Ray, `vllm:NAME` as `ray_vllm_NAME`, in engines that serve (those of Ray Data
tell nothing, to be faster).
"""

import json
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 8, 8
"""Of a panel, in Grafana's grid of 24 columns."""
_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """A chart over time.

    Attributes:
        title: What stands above it.
        unit: One of Grafana's names of units.
        queries: PromQL by legend.
        about: What to know when reading it.
    """

    title: str
    unit: str
    queries: dict[str, str]
    about: str = ""


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def _share(part: str, whole: str) -> str:
    return f"{_rate(part)} / {_rate(whole)}"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', 'le')})"


SECTIONS: dict[str, list[Panel]] = {
    "Synthesis": [
        Panel("Rows written", "rowsps", {"{{kind}}": _rate("ray_balsa_synthesis_rows_total", "kind")}),
        Panel(
            "Rows rejected and failed",
            "rowsps",
            {"{{gate}}": _rate('ray_balsa_synthesis_rows_total{gate!="passed"}', "gate")},
            "By gate; error: the engine could not answer.",
        ),
        Panel("Rows left", "short", {"left": "max(ray_balsa_synthesis_rows_left)"}),
        Panel(
            "Tokens",
            "short",
            {
                "read a second": _rate("ray_balsa_synthesis_prompt_tokens_total"),
                "written a second": _rate("ray_balsa_synthesis_reply_tokens_total"),
            },
        ),
        Panel(
            "Blocks that wait before a stage",
            "short",
            {"{{operator}}": "sum by (operator) (ray_data_num_external_inqueue_blocks)"},
            "The stage before which they grow is the bottleneck.",
        ),
        Panel(
            "Object store in use",
            "bytes",
            {"{{Location}}": "sum by (Location) (ray_object_store_memory)"},
            "SPILLED: what Ray had to write to disk.",
        ),
    ],
    "Training": [
        Panel(
            "Loss",
            "none",
            {"training": "max(ray_balsa_training_loss)", "held-out": "max(ray_balsa_training_validation_loss)"},
        ),
        Panel("Steps", "short", {"done": "max(ray_balsa_training_step)", "workers": "max(ray_balsa_training_workers)"}),
        Panel(
            "Speed",
            "short",
            {
                "tokens/s": "max(ray_balsa_training_tokens_per_second)",
                "samples/s": "max(ray_balsa_training_samples_per_second)",
            },
        ),
        Panel("Share of the GPUs' peak (MFU)", "percentunit", {"MFU": "max(ray_balsa_training_mfu)"}),
    ],
    "Serving": [
        Panel(
            "Requests",
            "reqps",
            {"{{status_code}}": _rate("ray_serve_num_http_requests_total", "status_code")},
            "429: refused, because as many wait as may.",
        ),
        Panel(
            "Requests in the engines",
            "short",
            {
                "running": "sum(ray_vllm_num_requests_running)",
                "waiting": "sum(ray_vllm_num_requests_waiting)",
            },
        ),
        Panel(
            "Seconds to the first token and to the last",
            "s",
            {
                f"{name}, {share:.0%}": _quantile(share, metric)
                for name, metric in (
                    ("first", "ray_vllm_time_to_first_token_seconds"),
                    ("last", "ray_vllm_e2e_request_latency_seconds"),
                )
                for share in (0.5, 0.99)
            },
        ),
        Panel(
            "Tokens",
            "short",
            {
                "read a second": _rate("ray_vllm_prompt_tokens_total"),
                "written a second": _rate("ray_vllm_generation_tokens_total"),
            },
        ),
        Panel(
            "Clips and seconds of audio",
            "short",
            {
                "clips a second": _rate("ray_balsa_clips_total"),
                "seconds of audio a second": _rate("ray_balsa_audio_seconds_total"),
            },
        ),
        Panel(
            "Found in the caches",
            "percentunit",
            {
                "processed clips": _share("ray_vllm_mm_cache_hits_total", "ray_vllm_mm_cache_queries_total"),
                "tokens of prompts": _share("ray_vllm_prefix_cache_hits_total", "ray_vllm_prefix_cache_queries_total"),
            },
        ),
        Panel("Memory for keys and values in use", "percentunit", {"most": "max(ray_vllm_kv_cache_usage_perc)"}),
    ],
    "Cluster": [
        Panel("GPUs in use", "percent", {"{{instance}}": "avg by (instance) (ray_node_gpus_utilization)"}),
        Panel("GPU memory in use", "mbytes", {"{{instance}}": "sum by (instance) (ray_node_gram_used)"}),
        Panel("CPUs in use", "percent", {"{{instance}}": "avg by (instance) (ray_node_cpu_utilization)"}),
        Panel("Free disk", "bytes", {"{{instance}}": "min by (instance) (ray_node_disk_free)"}),
        Panel(
            "Failures",
            "short",
            {
                "tasks failed": 'sum(ray_tasks{State="FAILED"})',
                "workers that died": "sum(ray_node_manager_unexpected_worker_failure_total)",
                "ended for lack of memory": "sum(ray_memory_manager_worker_eviction_total)",
            },
            "Since the cluster's start. Jobs make good what was lost: figures that keep growing are what counts.",
        ),
        Panel(
            "Nodes",
            "short",
            {
                "{{NodeType}}": "sum by (NodeType) (autoscaler_active_nodes)",
                "{{NodeType}}, coming": "sum by (NodeType) (autoscaler_pending_nodes)",
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Returns what Grafana imports."""
    panels: list[dict[str, Any]] = []
    top = 0
    for section, charts in SECTIONS.items():
        panels.append({"type": "row", "title": section, "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1}})
        top += 1
        for number, chart in enumerate(charts):
            line, column = divmod(number, _COLUMNS // WIDTH)
            place = {"x": column * WIDTH, "y": top + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_timeseries(chart, place))
        top += HEIGHT * -(-len(charts) // (_COLUMNS // WIDTH))
    return {
        "uid": "balsa-ray",
        "title": "balsa_ray",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, start=1)],
    }


def text() -> str:
    """Returns the content of the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _timeseries(chart: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": chart.title,
        "description": chart.about,
        "gridPos": place,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": chart.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "legendFormat": legend, "expr": expression, "datasource": _DATASOURCE}
            for number, (legend, expression) in enumerate(chart.queries.items())
        ],
    }


if __name__ == "__main__":
    print(text(), end="")
