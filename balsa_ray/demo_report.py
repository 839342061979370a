"""The demo's table and report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from balsa_ray.evaluation import metrics
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.tasks import existence
from balsa_ray.identity import rng
from balsa_ray.prompts.render import labels_of
from balsa_ray.reporting.page import Section, audio_player, paragraph, table, write_page
from balsa_ray.reporting.plots import bars, lines, spectrogram
from balsa_ray.schema import read_manifest

Metrics = dict[str, metrics.Metric]
MOST_SECONDS = 3600.0
ROWS = {
    "text": "LLM reading the labels as text (upper bound)",
    "tagger": "encoder's own tagging head",
    "trained": "trained model, from audio",
    "untrained": "untrained adapter (chance)",
}
QUESTIONS = (
    "Accuracy in percent, with 95 % intervals, on clips that nothing was trained on. Half of the right answers are no. "
    "The absent sounds that are asked for are drawn at random, are the most frequent ones of the corpus, or are easily "
    "confused with a sound that is there (adversarial)."
)
READERS = (
    "The first row shows what the language model can do when nothing is lost on the way: it reads the labels instead "
    "of hearing, and no trained model can be expected to pass it. The second shows what the frozen audio encoder "
    "knows: its tagging head says yes above a probability of one half."
)


@dataclass(frozen=True)
class Results:
    """What the demo's steps left.

    Attributes:
        output: The demo's folder.
        scores: Content of `scores.json` for `trained`, `text` and `untrained`.
        replies: Clip id to (prompt, reply) pairs of the trained model.
        recipe: The benchmark of the trained model.
        encoder: The encoder that it hears with.
    """

    output: Path
    scores: dict[str, dict[str, Any]]
    replies: dict[str, list[tuple[str, str]]]
    recipe: BenchmarkConfig
    encoder: str

    def existence(self, run: str, split: str) -> Metrics:
        """Returns the strict metrics of a run's existence questions."""
        block: Metrics = self.scores[run]["existence"]["splits"][split]["strict"]
        return block


def write_report(results: Results, path: Path, seconds: float) -> str:
    """Writes the report and returns the table for the terminal.

    Args:
        results: What the steps left.
        path: The HTML file.
        seconds: How long this run took, steps that were reused included.
    """
    clips = read_manifest(results.output / "corpus" / "test.jsonl")
    rows = {run: {split: results.existence(run, split) for split in existence.SPLITS}
            for run in ("text", "trained", "untrained")}  # fmt: skip
    rows["tagger"] = tagger_metrics(clips, results.recipe, results.encoder)
    accuracy = {
        ROWS[run]: [(m["value"], m["low"], m["high"]) for m in (rows[run][s]["accuracy"] for s in existence.SPLITS)]
        for run in ROWS
    }
    steps = [json.loads(line) for line in (results.output / "training" / "metrics.jsonl").read_text().splitlines()]
    cells = [[ROWS[run], *(_cell(rows[run][split]["accuracy"]) for split in existence.SPLITS)] for run in ROWS]
    yes = [[ROWS[run], *(_cell(rows[run][split]["yes_rate"]) for split in existence.SPLITS)] for run in ROWS]
    header = ["", *existence.SPLITS]
    other = other_figures(results)
    sections = [
        Section(
            "Is there a sound of …?",
            [
                paragraph(QUESTIONS),
                table(header, cells), bars(list(existence.SPLITS), accuracy, "accuracy (%)", reference=50),
                paragraph(READERS),
                paragraph("Share of answers that say yes, in percent (50 is right):"), table(header, yes),
            ],
        ),
        Section("Other questions", [table(["", "trained model", "LLM reading the labels"], other)]),
        Section("Training", [lines(loss_curves(steps), "step", "loss per reply token (nats)")]),
        Section("Thirty test clips and what the model says about them", [sample_table(results, clips)]),
    ]  # fmt: skip
    lead = (
        f"Everything here was computed by the run that wrote this page ({seconds / 60:.0f} minutes, without steps that "
        "were complete before), except the two miniature base models: they come with the package, see their card."
    )
    write_page(path, "balsa_ray: the pipeline in miniature", lead, sections)
    return text_table(header, cells) + "\n" + text_table(["", "trained", "text"], other)


def tagger_metrics(clips: Sequence[dict[str, Any]], recipe: BenchmarkConfig, encoder: str) -> dict[str, Metrics]:
    """Answers the existence questions by the encoder's tagging head: yes above a probability of one half.

    Of a clip that is longer than the encoder's window the highest probability counts; a label that the head does not
    have is not there.
    """
    import torch
    from transformers import AutoFeatureExtractor, WhisperForAudioClassification

    from balsa_ray.audio.decode import decode
    from balsa_ray.audio.features import log_mel, windows_of
    from balsa_ray.checkpoints import resolve
    from balsa_ray.miniature.encoder import tag_probabilities

    folder = resolve(encoder)
    tagger = WhisperForAudioClassification.from_pretrained(folder, dtype=torch.float32)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    heard = [decode(clip["audio"], max_seconds=MOST_SECONDS) for clip in clips]
    of_windows = tag_probabilities(tagger, log_mel(extractor, heard))
    first = np.cumsum([0, *windows_of(heard, extractor)[:-1]])
    probabilities = np.maximum.reduceat(of_windows, first, axis=0)
    found = {
        (clip["id"], label): probabilities[row, column] > 0.5
        for row, clip in enumerate(clips)
        for label, column in tagger.config.label2id.items()
    }
    questions = existence.plan(clips, recipe.seed, **recipe.settings("existence"))
    out = {}
    for split in existence.SPLITS:
        asked = [q for q in questions if q.split == split]
        said = ["yes" if found.get((q.clips[0]["id"], str(q.object))) else "no" for q in asked]
        counts = metrics.yes_no_counts([str(q.reference) for q in asked], said)
        summed = metrics.per_cluster([q.cluster for q in asked], counts)
        draw = rng(recipe.seed, "bootstrap", "tagger", split)
        out[split] = metrics.bootstrap(summed, metrics.strict_yes_no_metrics, len(asked), draw)
    return out


def other_figures(results: Results) -> list[list[str]]:
    """Returns rows of (what, trained model, LLM reading the labels)."""
    wanted = [
        ("describe", "f1_score", "labels in descriptions, F1"),
        ("describe", "repeated", "descriptions that name a sound twice"),
        ("which_recording", "accuracy", "which of two recordings has the sound, accuracy"),
    ]
    out = []
    for task, metric, name in wanted:
        blocks = [next(iter(results.scores[run][task]["splits"].values()))["strict"] for run in ("trained", "text")]
        out.append([name, *(_cell(block[metric]) for block in blocks)])
    runs = ("trained", "text")
    unparsed = [[results.existence(run, split)["unparsed"] for split in existence.SPLITS] for run in runs]
    share = [float(np.average([m["value"] for m in row], weights=[m["n"] for m in row])) for row in unparsed]
    return [*out, ["answers to yes/no questions that are neither", *(f"{value:.1f}" for value in share)]]


def loss_curves(steps: Sequence[dict[str, Any]], window: int = 20) -> dict[str, tuple[list[float], list[float]]]:
    """Returns the loss of each stage against the step, as a running mean."""
    out = {}
    for stage in dict.fromkeys(step["stage"] for step in steps):
        of_stage = [step for step in steps if step["stage"] == stage]
        losses = np.array([step["loss"] for step in of_stage])
        kernel = np.ones(min(window, len(losses))) / min(window, len(losses))
        xs = [float(step["step"]) for step in of_stage][len(kernel) - 1 :]
        out[str(stage)] = (xs, list(np.convolve(losses, kernel, "valid")))
    return out


def sample_table(results: Results, clips: Sequence[dict[str, Any]]) -> Markup:
    """Returns a table of clips: player, spectrogram, labels and the replies to each kind of prompt."""
    import soundfile

    rows = []
    for clip in clips:
        if clip["id"] in results.replies:
            samples, rate = soundfile.read(clip["audio"], dtype="float32")
            heard = Markup("{}<br>{}").format(audio_player(Path(clip["audio"])), spectrogram(samples, rate))
            replies = Markup("<br>").join(
                Markup('<span class="quiet">{}</span> {}').format(prompt, reply)
                for prompt, reply in results.replies[clip["id"]]
            )
            rows.append([heard, ", ".join(labels_of(clip)), replies])
    return table(["clip", "sounds in it", "what the model says (two-clip prompts: this clip and the next)"], rows)


def _cell(metric: metrics.Metric) -> str:
    return f"{metric['value']:.1f} [{metric['low']:.1f}, {metric['high']:.1f}]"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in fixed-width text."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
    )
