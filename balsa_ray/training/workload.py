"""What a run works on, for an estimate: how many samples of which length, from the samples or else by assumption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from balsa_ray.config import UserError
from balsa_ray.identity import rng
from balsa_ray.model.processing import BalsaProcessor
from balsa_ray.model.shapes import local_folder
from balsa_ray.prompts.render import ABOUT_SEVERAL
from balsa_ray.training.config import Kind, StageConfig, TrainConfig
from balsa_ray.training.data import read_columns

COLUMNS = ["kind", "audio", "prompt", "response", "prompt_tokens", "response_tokens"]
TOKENISED = 2000  # samples, drawn at random: their mean length is within a percent or two of that of all
# Ours, for as long as there are no samples: a chat template with a question, a paragraph, and a long one.
PROMPT_TOKENS, REPLY_TOKENS, LONGEST_REPLY = 48, 120, 256


@dataclass(frozen=True)
class Lengths:
    """Of the samples of a kind.

    Attributes:
        samples: How many there are; None if that isn't known.
        tokens: Mean length in tokens, the embeddings of the clips included.
        reply_tokens: Mean length of the reply, a part of it.
        clips: Mean number of clips.
        longest: Tokens, reply tokens and clips of the longest sample.
    """

    samples: int | None
    tokens: float
    reply_tokens: float
    clips: float
    longest: tuple[int, int, int]


@dataclass(frozen=True)
class Workload:
    """What a run works on.

    Attributes:
        kinds: Lengths of the samples of each kind that some stage wants.
        clips: Different clips; None if that isn't known.
        notes: Where the numbers come from, in sentences.
    """

    kinds: Mapping[Kind, Lengths]
    clips: int | None
    notes: list[str]

    def longest(self) -> tuple[int, int, int]:
        """Returns tokens, reply tokens and clips of the longest sample."""
        return max(lengths.longest for lengths in self.kinds.values())

    def shares(self, stages: Sequence[StageConfig], index: int) -> dict[Kind, float]:
        """Returns the share of each kind in the samples that a stage draws; kinds of unknown number count alike."""
        stage = stages[index]
        replayed = {kind for before in stages[:index] for kind in before.kinds} - set(stage.kinds)
        new = self._proportions(stage.kinds)
        old = self._proportions(sorted(replayed)) if stage.replay else {}
        return {kind: share * (1 - stage.replay) for kind, share in new.items()} | {
            kind: share * stage.replay for kind, share in old.items()
        }

    def _proportions(self, kinds: Sequence[Kind] | Mapping[Kind, float]) -> dict[Kind, float]:
        weighted = kinds if isinstance(kinds, Mapping) else {}
        sizes = {kind: weighted.get(kind) or self.kinds[kind].samples or 1 for kind in kinds}
        return {kind: size / sum(sizes.values()) for kind, size in sizes.items()}


def workload(config: TrainConfig, context: int) -> Workload:
    """Measures the samples in `data`, or assumes some where there are none yet.

    Args:
        config: Of the run.
        context: Most tokens that the LLM takes.

    Raises:
        UserError: If there are samples, but none of a kind that a stage wants, or if those of a kind are too long.
    """
    limit = min(config.max_length or context, context)
    wanted = sorted({kind for stage in config.stages for kind in stage.kinds})
    missing = [folder for folder in config.data if not list((folder / "samples").glob("*.parquet"))]
    present = [folder for folder in config.data if folder not in missing]
    if not present:
        return _assumed(config, wanted, limit)
    notes = [f"left out, no samples there yet: {', '.join(map(str, missing))}"] if missing else []
    return _measured(config, _read(present), wanted, limit, notes)


def _assumed(config: TrainConfig, wanted: Sequence[Kind], limit: int) -> Workload:
    kinds = {}
    for kind in wanted:
        clips = 2 if kind in ABOUT_SEVERAL else 1
        prompt = clips * config.adapter.num_query_tokens + PROMPT_TOKENS
        longest = min(prompt + LONGEST_REPLY, limit)
        reply = min(REPLY_TOKENS, longest - prompt)
        if reply < 1:
            raise UserError(f"{limit} tokens a sample are no room for kind {kind!r}: its prompt has about {prompt}")
        kinds[kind] = Lengths(None, prompt + reply, reply, clips, (longest, longest - prompt, clips))
    return Workload(
        kinds,
        None,
        [
            f"no samples in {', '.join(map(str, config.data))} yet; assumed: all kinds equally often, prompts of "
            f"{PROMPT_TOKENS} tokens beside their clips, replies of {REPLY_TOKENS}, the longest {LONGEST_REPLY}, "
            f"two clips in {' and '.join(sorted(ABOUT_SEVERAL))}"
        ],
    )


def _read(folders: Sequence[Path]) -> pa.Table:
    files = [file for folder in folders for file in sorted((folder / "samples").glob("*.parquet"))]
    return pa.concat_tables(read_columns(file, COLUMNS) for file in files)


def _measured(config: TrainConfig, samples: pa.Table, wanted: Sequence[Kind], limit: int, notes: list[str]) -> Workload:
    """Of all samples the number, of some of each kind the length."""
    processor = _processor(config)
    if processor is None:
        notes.append(
            "no tokenizer here; lengths are those of the synthesis, which read metadata where training has clips"
        )
    kinds = {}
    too_long = looked_at = 0
    for kind in wanted:
        of_kind = samples.filter(pc.equal(samples["kind"], kind))
        if not len(of_kind):
            raise UserError(f"{', '.join(map(str, config.data))}: a stage wants kind {kind!r}, but no sample is of it")
        drawn = rng(config.seed, "dry_run", kind).permutation(len(of_kind))[: TOKENISED // len(wanted)]
        rows = [_lengths(row, processor, config) for row in of_kind.take(drawn).to_pylist()]
        fitting = [row for row in rows if row[0] <= limit]
        looked_at, too_long = looked_at + len(rows), too_long + len(rows) - len(fitting)
        if not fitting:
            raise UserError(f"{', '.join(map(str, config.data))}: samples of kind {kind!r} are longer than {limit}")
        tokens, replies, clips = zip(*fitting, strict=True)
        kinds[kind] = Lengths(
            round(len(of_kind) * len(fitting) / len(rows)),
            sum(tokens) / len(fitting),
            sum(replies) / len(fitting),
            sum(clips) / len(fitting),
            max(fitting),
        )
    notes.insert(0, f"{len(samples):,} samples in {', '.join(map(str, config.data))}; lengths of {looked_at:,} of them")
    if too_long:
        notes.append(f"{too_long:,} of those are longer than {limit} tokens and would be skipped")
    clips_known = {audio for of_sample in samples["audio"].to_pylist() for audio in of_sample}
    return Workload(kinds, len(clips_known), notes)


def _lengths(row: dict[str, Any], processor: BalsaProcessor | None, config: TrainConfig) -> tuple[int, int, int]:
    """Tokens, reply tokens and clips of a sample."""
    clips = len(row["audio"])
    if processor is None:
        reply = (row["response_tokens"] or 0) + 1  # and the end of the turn
        return (row["prompt_tokens"] or 0) + clips * config.adapter.num_query_tokens + reply, reply, clips
    ids, labels = processor.encode_example(row["prompt"], [1] * clips, row["response"])
    return len(ids), sum(label >= 0 for label in labels), clips


def _processor(config: TrainConfig) -> BalsaProcessor | None:
    """The run's processor, if all of it is on this machine."""
    text, audio = local_folder(config.text_model), local_folder(config.audio_model)
    if not text or not (text / "tokenizer_config.json").is_file():
        return None
    if not audio or not (audio / "preprocessor_config.json").is_file():
        return None
    adapter = config.adapter
    return BalsaProcessor.assemble(
        str(text),
        str(audio),
        num_query_tokens=adapter.num_query_tokens,
        audio_begin=adapter.audio_begin,
        audio_end=adapter.audio_end,
        max_audio_seconds=adapter.max_audio_seconds,
    )
