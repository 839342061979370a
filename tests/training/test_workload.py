from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balsa_ray.config import UserError
from balsa_ray.schema import SAMPLE
from balsa_ray.training import data
from balsa_ray.training.config import TrainConfig
from balsa_ray.training.worker import make_processor
from balsa_ray.training.workload import LONGEST_REPLY, PROMPT_TOKENS, REPLY_TOKENS, workload

Make = Callable[..., TrainConfig]
HUB = {"text_model": "Qwen/Qwen2.5-7B-Instruct", "audio_model": "openai/whisper-small"}


def test_lengths_are_those_that_training_sees(train_config: Make) -> None:
    config = train_config()
    table = data.read_samples(config.data)
    encoded = data.EncodedSamples.of(data.encode(table, make_processor(config), data.clip_seconds(table), 512, 2.0)[0])
    work = workload(config, 512)
    assert work.clips == 64
    for kind, lengths in work.kinds.items():
        rows = [row for row, other in enumerate(encoded.kinds) if other == kind]
        replies = encoded.tokens[rows] - encoded.prompt_tokens[rows]
        assert lengths.samples == len(rows)
        assert lengths.tokens == pytest.approx(encoded.tokens[rows].mean())
        assert lengths.reply_tokens == pytest.approx(replies.mean())
        assert lengths.clips == (2 if kind == "difference" else 1)
        assert lengths.longest == (encoded.tokens[rows].max(), replies.max(), lengths.clips)
    assert work.notes == [f"128 samples in {config.data[0]}; lengths of 128 of them"]


def test_without_a_tokenizer_the_synthesis_has_counted(
    train_config: Make, synthesis_output: Path, tmp_path: Path
) -> None:
    table = pq.read_table(synthesis_output / "samples", partitioning=None)
    rows = [row | {"prompt_tokens": 30, "response_tokens": 9} for row in table.to_pylist()]
    (tmp_path / "data" / "samples").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE), tmp_path / "data" / "samples" / "0.parquet")
    work = workload(train_config(**HUB, data=[tmp_path / "data", tmp_path / "later"]), 512)
    assert work.kinds["present"].tokens == 30 + 4 + 10
    assert work.kinds["difference"].tokens == 30 + 8 + 10
    assert work.longest() == (48, 10, 2)
    assert [note for note in work.notes if "no tokenizer" in note]
    assert [note for note in work.notes if note == f"left out, no samples there yet: {tmp_path / 'later'}"]


def test_without_samples_lengths_are_assumed(train_config: Make, tmp_path: Path) -> None:
    config = train_config(data=[tmp_path / "later"])
    work = workload(config, 4096)
    assert work.clips is None
    assert work.kinds["absent"].tokens == 4 + PROMPT_TOKENS + REPLY_TOKENS
    assert work.longest() == (8 + PROMPT_TOKENS + LONGEST_REPLY, LONGEST_REPLY, 2)
    assert "later yet; assumed" in work.notes[0]
    # A sample never becomes longer than the recipe, or the LLM, allows.
    assert workload(config, 100).longest()[0] == 100
    assert workload(config.model_copy(update={"max_length": 90}), 100).kinds["absent"].tokens == 90
    with pytest.raises(UserError, match="50 tokens a sample are no room for kind 'absent': its prompt has about 52"):
        workload(config, 50)


def test_a_stage_draws_its_kinds_and_replays_the_others(train_config: Make, tmp_path: Path) -> None:
    config = train_config()
    assert workload(config, 512).shares(config.stages, 0) == {"absent": 0.5, "present": 0.5}
    assert workload(config, 512).shares(config.stages, 1) == {"difference": 0.5, "absent": 0.25, "present": 0.25}


def test_samples_that_do_not_fit_or_are_not_there(train_config: Make) -> None:
    longest = workload(train_config(), 512).kinds["difference"].longest[0]
    short = workload(train_config(max_length=longest - 1, stages=[stage("present")]), 512)
    assert short.longest()[0] < longest
    with pytest.raises(UserError, match="samples of kind 'difference' are longer than 8"):
        workload(train_config(max_length=8, stages=[stage("difference")]), 512)
    with pytest.raises(UserError, match="a stage wants kind 'joint', but no sample is of it"):
        workload(train_config(stages=[stage("joint")]), 512)


def stage(kind: str) -> dict[str, object]:
    return {"name": kind, "kinds": [kind], "steps": 5}
