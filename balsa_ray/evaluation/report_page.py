"""`report.html` of a run: figures with intervals, where the model errs, and failures to listen to."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from balsa_ray.evaluation.answers import audio_name
from balsa_ray.evaluation.metrics import Metric
from balsa_ray.evaluation.questions import Answer, Outcome
from balsa_ray.evaluation.tasks import TASKS
from balsa_ray.identity import unit
from balsa_ray.reporting.page import Section, paragraph, recording_player, table, write_page
from balsa_ray.reporting.plots import bars, heatmap, scatter

FAILURES = 50
_WORST = 15
_CHARACTERS = 400  # of a reply
_FEW_READINGS = 12  # more different ones than these make no table
LEAD = "All figures are percentages with their 95 % interval by a bootstrap over clips."


def write_report(path: Path, scores: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> None:
    """Writes the page.

    Args:
        path: The HTML file.
        scores: Content of `scores.json`.
        outcomes: What came of each task.
    """
    sections = []
    for name, entry in scores.items():
        sections += [_figures(name, entry), *_errors(name, outcomes[name].answers)]
    write_page(path, "Benchmarks", LEAD, sections)


def blocks(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Metric]]]:
    """Yields task, split, block and metrics."""
    for name, entry in scores.items():
        for split, of_split in entry["splits"].items():
            for block in TASKS[name].PARSERS:
                if of_split.get(block):
                    yield name, split, block, of_split[block]


def cell(metric: Metric) -> str:
    """Returns a metric in words."""
    return f"{metric['value']:.1f} [{metric['low']:.1f}, {metric['high']:.1f}]"


def figures(name: str, entry: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a task's table, with the papers' figures below, named as theirs."""
    rows = list(blocks({name: entry}))
    columns = list(dict.fromkeys(column for *_, metrics in rows for column in metrics))
    out = [
        [f"{split} ({block})", *(cell(metrics[c]) if c in metrics else "" for c in columns)]
        for _, split, block, metrics in rows
    ]
    theirs: dict[str, Any] = published().get(name, {})
    for model, splits in theirs.get("rows", {}).items():
        for split, values in splits.items():
            known = dict(zip(theirs["columns"], values, strict=True))
            cells = ["" if known.get(c) is None else f"{known[c]:g}" for c in columns]
            if any(cells):
                out.append([f"{split}: {model}, as published", *cells])
    return ["", *columns], out


@cache
def published() -> dict[str, Any]:
    """Returns the figures of papers by task."""
    found: dict[str, Any] = yaml.safe_load(files("balsa_ray.evaluation").joinpath("published.yaml").read_text("utf-8"))
    return found


def _figures(name: str, entry: Mapping[str, Any]) -> Section:
    """Returns a task's figures, and bars of the first of them by split."""
    from_file = {"name": "answers from a file", "fingerprint": (entry["predictions"] or {}).get("sha256", "")[:16]}
    model = entry["model"] or from_file
    how = f"{entry['modality']}, templates {entry['templates']}, " if entry["modality"] else ""
    about: list[str | Markup] = [
        paragraph(entry["about"]),
        paragraph(
            f"{entry['answered']} questions answered, {entry['errors']} not; model {model['name']} "
            f"({model['fingerprint']}), {how}parsers {', '.join(entry['parsers'].values())}."
        ),
    ]
    rows = list(blocks({name: entry}))
    if not rows:
        return Section(name, about)
    about.append(table(*figures(name, entry)))
    if name in published():
        about.append(paragraph(f"As published: {published()[name]['source']}. Not measured here."))
    block = next((block for *_, block, _ in rows if block == "strict"), rows[0][2])
    shown = {split: metrics for _, split, of, metrics in rows if of == block}
    columns = [c for c in ("accuracy", "f1_score", "yes_rate") if all(c in metrics for metrics in shown.values())]
    series = {c: [(m[c]["value"], m[c]["low"], m[c]["high"]) for m in shown.values()] for c in columns}
    return Section(name, [*about, bars(list(shown), series, "percent", 50)] if series else about)


def _errors(name: str, answers: Sequence[Answer]) -> list[Section]:
    """Returns what is confused with what, the labels that go wrong, and some failures."""
    task = TASKS[name]
    read = [(answer, task.parse(answer)) for answer in answers]
    wrong = [(answer, parsed) for answer, parsed in read if task.correct(answer, parsed) is False]
    parts: list[str | Markup] = [*_confusion(read), *_by_label(name, read)]
    out = [Section(f"{name}: where it errs", parts)] if parts else []
    if wrong:
        chosen = sorted(wrong, key=lambda pair: unit(0, "failures", pair[0].question.id))[:FAILURES]
        rows = [_failure(answer, parsed) for answer, parsed in chosen]
        text = f"{len(chosen)} of {len(wrong)} answers that count as wrong, drawn at random."
        header = ["recording", "question", "reply", "read as", "right"]
        out.append(Section(f"{name}: failures", [paragraph(text), table(header, rows)]))
    return out


def _confusion(read: Sequence[tuple[Answer, Any]]) -> list[Markup]:
    pairs = Counter(
        (answer.question.reference, parsed or "unparsed")
        for answer, parsed in read
        if isinstance(answer.question.reference, str) and isinstance(parsed, str)
    )
    names = sorted({name for pair in pairs for name in pair})
    if not 1 < len(names) <= _FEW_READINGS:
        return []
    values = np.array([[pairs[right, said] for said in names] for right in names])
    return [paragraph("Right answers (rows) and what was read (columns):"), heatmap(names, values, "confusion")]


def _by_label(name: str, read: Sequence[tuple[Answer, Any]]) -> list[Markup]:
    """Returns the labels with the most wrong answers, and for yes/no questions how often each is heard."""
    task = TASKS[name]
    right: dict[str, list[bool]] = defaultdict(list)
    yes: dict[str, list[bool]] = defaultdict(list)
    for answer, parsed in read:
        if label := answer.question.object:
            right[label].append(task.correct(answer, parsed) is True)
            if answer.question.reference in ("yes", "no"):
                yes[label].append(parsed == "yes")
    if not right:
        return []
    worst = sorted(right, key=lambda label: (np.mean(right[label]), -len(right[label]), label))[:_WORST]
    rows = [[label, f"{100 * np.mean(right[label]):.0f}", f"{len(right[label])}"] for label in worst]
    out = [paragraph("Labels with the fewest right answers:"), table(["label", "right (%)", "questions"], rows)]
    if yes:
        present = Counter(a.question.object for a, _ in read if a.question.reference == "yes")
        points = [(float(present[label]), 100 * float(np.mean(said))) for label, said in yes.items()]
        out.append(scatter(points, "questions about the label where it is there", "answers yes (%)"))
    return out


def _failure(answer: Answer, parsed: Any) -> list[str | Markup]:
    question = answer.question
    players = [_player(clip) for clip in question.clips]
    reply = answer.response
    return [
        Markup("<br>").join(players),
        question.prompt,
        reply if len(reply) <= _CHARACTERS else reply[:_CHARACTERS] + "…",
        _words(parsed) or "unparsed",
        _words(question.reference),
    ]


def _player(clip: dict[str, Any]) -> Markup:
    audio = clip["audio"]
    source = (audio.get("bytes") or audio["path"]) if isinstance(audio, dict) else audio
    player = recording_player(source, start=clip.get("start"), duration=clip.get("duration"))
    return Markup("{}<br>{}").format(player, audio_name(clip))


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
