"""`findings.json` and `findings.html`: every comparison with its intervals, beside the papers' own figures."""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from markupsafe import Markup

from balsa_ray.evaluation.report import write_text
from balsa_ray.findings.config import Arm, FindingsConfig
from balsa_ray.findings.plan import MAIN, backbone_of
from balsa_ray.findings.results import FIGURES, Seeds
from balsa_ray.reporting.page import Section, paragraph, table, write_page
from balsa_ray.reporting.plots import bars, lines, write_png

# As others report the papers' tables: no primary source could be read. Settings differ from ours in everything.
PAPERS: dict[str, dict[str, str]] = {
    "negatives": {"accuracy": "66.0 → 77.5 (LISTEN)", "weighted_f1": "63.7 → 77.1 (LISTEN)"},
    "multi_audio": {"which_recording": "SAKURA multi-hop: about +10 points (BALSa-MA)"},
    "text_only": {"accuracy": "Speech-IFEval 93.52 → 91.02 (BALSa)"},
}
NAMES = {
    "present_only": "present alone",
    "present_only_tokens": "present alone, as many samples and reply tokens",
    "listen": "with absent and combined",
    "guided": "the same, absent sounds given",
    "multi_audio": "and several clips",
    "lora": "and LoRA on the LLM",
    "template": "a template's words",
    "before": "the LLM as it came",
}
# Comparison to its two arms, the question that it answers, and where it is found in findings.json.
COMPARISONS: dict[str, tuple[Arm, Arm, str]] = {
    "negatives": ("present_only", "listen", "Do samples about what is absent help?"),
    "tokens": ("present_only_tokens", "listen", "Do they, if the other arm has as many samples and reply tokens?"),
    "guided": ("listen", "guided", "Is it better to give the LLM the absent sounds?"),
    "multi_audio": ("listen", "multi_audio", "Does a stage on several clips help?"),
    "lora": ("listen", "lora", "Does LoRA on the LLM help?"),
    "data": ("template", "listen", "Are the LLM's own words better than a template's?"),
}
# The same of what is asked in words, without audio.
IN_WORDS: dict[str, tuple[str, str, str]] = {
    "text_only": ("before", "listen", "Asked in words: does the adapter's training change the LLM?"),
    "text_only_lora": ("before", "lora", "Asked in words: does LoRA on the LLM?"),
}


def build(
    config: FindingsConfig,
    runs: Mapping[tuple[str, int, str], Seeds],
    text: Mapping[str, Seeds],
    curves: Sequence[Any],
    steps: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Returns the content of `findings.json`.

    Args:
        config: Of the job.
        runs: Condition, backbone and arm to their runs.
        text: Arm, or `before`, to its runs with the labels as text.
        curves: (steps, clips, arm) and the runs on validation clips.
        steps: Arm to the optimizer steps of its runs.
    """
    base = next(iter(config.conditions))
    asked = {**COMPARISONS, **IN_WORDS}
    pairs = {}
    for name, (first, other, _) in COMPARISONS.items():
        place = base, backbone_of(config, other)
        pairs[name] = _pair(runs.get((*place, first)), runs.get((*place, other)), first, other)
    for name, (before, after, _) in IN_WORDS.items():
        pairs[name] = _pair(text.get(before), text.get(after), before, after)
    found: dict[str, Any] = {
        name: {"question": asked[name][2], **pair, "papers": PAPERS.get(name, {})}
        for name, pair in pairs.items()
        if pair
    }
    places = [(name, 0) for name in config.conditions] + [(base, n) for n in range(1, len(config.backbones))]
    found["conditions"] = {
        f"{name}, backbone {backbone}": pair
        for name, backbone in places
        if (pair := _pair(runs.get((name, backbone, MAIN[0])), runs.get((name, backbone, MAIN[1])), *MAIN))
    }
    found["curves"] = [
        {"steps": steps, "clips": clips, "arm": arm, **of.over_seeds()} for (steps, clips, arm), of in curves
    ]
    found["design"] = {
        "config": config.model_dump(mode="json"),
        "steps": dict(steps),
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("balsa-ray", "torch", "transformers", "ray")},
    }
    return found


def _pair(first: Seeds | None, other: Seeds | None, a: str, b: str) -> dict[str, Any]:
    """Returns both arms and how much greater the other's figures are, on the seeds of both."""
    if first is None or other is None or not first.figures.keys() & other.figures.keys():
        return {}
    return {
        a: first.common(other).over_seeds(),
        b: other.common(first).over_seeds(),
        "difference": other.minus(first),
    }


def write(config: FindingsConfig, found: Mapping[str, Any]) -> None:
    """Writes `findings.json`, `findings.html` and a plot, `conditions.png`, and prints the main figures."""
    write_text(config.output / "findings.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    sections = [_section(name, found[name]) for name in [*COMPARISONS, *IN_WORDS] if name in found]
    if found["conditions"]:
        plot = _gains(found["conditions"])
        write_png(plot, config.output / "conditions.png")
        sections.append(_surface(found["conditions"], plot))
    usual = {"steps": config.steps, "clips": next(iter(config.conditions.values())).clips}
    sections += [*_curves(found["curves"], usual), _design(found["design"])]
    lead = (
        "Everything here is the miniature: a language model of a million parameters that knows 60 sounds, an encoder "
        "that has heard synthetic soundscapes, and clips whose sets of sounds no clip has that an adapter is trained "
        "on. Figures are means over seeds, in percent; intervals (95 %) and p (two-sided) hold the variance by test "
        "clips (paired bootstrap) and by seeds (standard error, Student's t). So many figures are compared that one in "
        "twenty is apart by chance; p is not corrected for it. The papers' figures are theirs, from other models and "
        "data, as others report them."
    )
    write_page(config.output / "findings.html", "Does it do what the papers say?", lead, sections)
    for name in COMPARISONS:
        if name in found:
            for figure in ("accuracy", "which_recording"):
                if figure in found[name]["difference"]:
                    print(f"{found[name]['question']} {figure}: {_change(found[name]['difference'][figure])}")
    print(f"findings: {config.output / 'findings.json'}, report: {config.output / 'findings.html'}")


def _cell(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:.1f} [{entry['low']:.1f}, {entry['high']:.1f}]"


def _change(entry: Mapping[str, Any]) -> str:
    seeds = f"{entry['seeds']} seed{'s' * (entry['seeds'] > 1)}"
    return f"{entry['value']:+.1f} [{entry['low']:+.1f}, {entry['high']:+.1f}], p {entry['p']:.3f}, {seeds}"


def _section(name: str, pair: Mapping[str, Any]) -> Section:
    first, other = (key for key in pair if key not in ("question", "difference", "papers"))
    header = ["", NAMES.get(first, first), NAMES.get(other, other), "difference", "papers (theirs)"]
    rows = [
        [
            figure.replace("_", " "),
            _cell(pair[first][figure]),
            _cell(pair[other][figure]),
            _change(pair["difference"][figure]),
            pair["papers"].get(figure, ""),
        ]
        for figure in FIGURES
        if figure in pair["difference"]
    ]
    return Section(pair["question"], [table(header, rows)])


def _gains(conditions: Mapping[str, Any]) -> Markup:
    names = [name.removesuffix(", backbone 0").replace(", ", ",\n") for name in conditions]
    shown = {"accuracy": "accuracy", "auc": "AUC", "described_f1": "F1 of described sounds"}
    gains = {
        title: [
            tuple(pair["difference"][figure][key] for key in ("value", "low", "high")) for pair in conditions.values()
        ]
        for figure, title in shown.items()
    }
    return bars(names, gains, "gain by negatives (points)", reference=0)


def _surface(conditions: Mapping[str, Any], plot: Markup) -> Section:
    shown = ("accuracy", "accuracy_adversarial", "auc", "described_f1")
    header = ["", *(figure.replace("_", " ") for figure in shown), "accuracy, present alone", "yes-rate, present alone"]
    rows = [
        [
            name,
            *(_change(pair["difference"][figure]) for figure in shown),
            _cell(pair["present_only"]["accuracy"]),
            _cell(pair["present_only"]["yes_rate"]),
        ]
        for name, pair in conditions.items()
    ]
    about = "How much greater each figure is with absent and combined samples, in each condition."
    return Section("When do they help?", [paragraph(about), plot, table(header, rows)])


def _curves(curves: Sequence[Mapping[str, Any]], usual: Mapping[str, int]) -> list[Section]:
    """Draws accuracy against steps with the usual number of clips, and against clips with that of steps."""
    parts: list[str | Markup] = []
    for axis, fixed in (("steps", "clips"), ("clips", "steps")):
        series = {}
        for arm in MAIN:
            of = [point for point in curves if point["arm"] == arm and point[fixed] == usual[fixed]]
            points = sorted((point[axis], point["accuracy"]["value"]) for point in of)
            if len(points) > 1:
                series[NAMES[arm]] = ([x for x, _ in points], [y for _, y in points])
        if series:
            parts.append(lines(series, axis, "accuracy on validation clips (%)"))
    return [Section("Is an arm undertrained?", parts)] if parts else []


def _design(design: Mapping[str, Any]) -> Section:
    rows = [[key, str(value)] for key, value in design.items() if key != "config"]
    rows += [[key, json.dumps(value)] for key, value in design["config"].items()]
    return Section("How it was run", [table(["", ""], rows)])
