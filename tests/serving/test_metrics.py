from prometheus_client.parser import text_string_to_metric_families

from balsa_ray.serving.ingress import merged

NODE = """\
# HELP clips_total Audio clips.
# TYPE clips_total counter
clips_total{{node="{0}"}} {1}
# HELP queue Requests that wait.
# TYPE queue gauge
queue{{node="{0}"}} {1}
"""


def test_what_two_nodes_export_is_one_block_a_family() -> None:
    text = merged([NODE.format("a", 1.0), "", NODE.format("b", 2.0)])
    assert [line for line in text.splitlines() if line.startswith("# TYPE")] == [
        "# TYPE clips_total counter",
        "# TYPE queue gauge",
    ]
    found = {
        family.name: [(s.labels["node"], s.value) for s in family.samples]
        for family in text_string_to_metric_families(text)
    }
    assert found == {"clips": [("a", 1.0), ("b", 2.0)], "queue": [("a", 1.0), ("b", 2.0)]}
    assert merged([]) == ""
