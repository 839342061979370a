from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balsa_ray.findings import data
from balsa_ray.findings.config import ConditionConfig
from balsa_ray.miniature.soundscapes import labels_of_clip
from balsa_ray.prompts.render import questions, read_prompts
from balsa_ray.schema import read_manifest


@pytest.mark.parametrize("same_scene", [0.0, 0.8, 1.0])
def test_no_set_of_sounds_of_the_test_is_in_training(same_scene: float) -> None:
    condition = ConditionConfig(same_scene=same_scene)
    train, test = (
        {frozenset(labels_of_clip(0, split, i, data.world_of(condition, split != "train"))) for i in range(600)}
        for split in ("train", "test")
    )
    assert not train & test
    assert min(map(len, test)) == 2
    assert min(map(len, train)) == 1


def test_no_words_of_the_test_are_in_training(tmp_path: Path) -> None:
    files = data.prompt_files(tmp_path)
    train, test = ([prompt.text for prompt in read_prompts(files[split])] for split in ("train", "test"))
    assert not set(train) & set(test)
    assert {prompt.kind for prompt in read_prompts(files["test"])} == {
        prompt.kind for prompt in read_prompts(files["train"])
    }
    asked = [words for templates in questions().values() for words in templates]
    assert not set(train) & (set(asked) - set(questions()["audio_hallucination_generative"]))


def test_a_condition_changes_the_clips(tmp_path: Path) -> None:
    quiet = ConditionConfig(event_level_db=(-40.0, -30.0), noise_snr_db=(-20.0, -10.0))
    paths = [
        data.corpus(tmp_path / name, 0, "train", 3, data.world_of(condition, False))
        for name, condition in (("base", ConditionConfig()), ("quiet", quiet))
    ]
    one, other = ([clip["tags"] for clip in read_manifest(path)] for path in paths)
    assert sorted(map(sorted, one)) == sorted(map(sorted, other))  # the same sounds, heard otherwise
    loud, low = ((path.parent / "audio" / "train-0-000000.flac").read_bytes() for path in paths)
    assert loud != low


def test_templates_name_what_the_reply_named_and_leave_out_several_clips(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "kind": "present", "response": "I hear rain.", "present": ["wind", "rain"], "absent": []},
        {"id": "b", "kind": "combined", "response": "x", "present": ["rain"], "absent": ["siren", "flute"]},
        {"id": "c", "kind": "absent", "response": "x", "present": ["rain"], "absent": []},
        {"id": "d", "kind": "joint", "response": "x", "present": ["rain"], "absent": []},
    ]
    (tmp_path / "data" / "samples").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "samples" / "0.parquet")
    data.write_templates(tmp_path / "data", tmp_path / "template")
    written = pq.read_table(tmp_path / "template" / "samples" / "0.parquet").to_pylist()
    assert [row["response"] for row in written] == [
        "Sounds present: rain and wind.",
        "Sounds present: rain. Sounds absent: flute and siren.",
        "Sounds absent: none.",
    ]
