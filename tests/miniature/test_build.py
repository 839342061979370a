"""The build job makes a (much smaller) pair, and the shipped pair is as good as its card says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from balsa_ray.checkpoints import resolve, weights_hash
from balsa_ray.miniature.backbone import text_figures
from balsa_ray.miniature.encoder import computes_in_bfloat16, tag_probabilities, tagging_figures, tagging_set
from balsa_ray.miniature.lexicon import PACKAGED, read_lexicon
from balsa_ray.miniature.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
BACKBONES = ["backbone", "backbone-seed1"]
SMALL = [
    "backbone.cycles=[3,2]", "backbone.batch_size=8", "backbone.hidden_size=32", "backbone.layers=1",
    "backbone.test_examples=4", "backbone.compiled=false",
    "encoder.clips=64", "encoder.validation_clips=16", "encoder.epochs=1", "encoder.hidden_size=32",
    "encoder.layers=1", "encoder.compiled=false",
]  # fmt: skip


@pytest.mark.slow
def test_the_job_builds_a_pair_that_loads(tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text(PACKAGED.read_text().replace("labels: [dog barking,", "labels: [dog barking, theremin,"))
    job = [sys.executable, "jobs/build_miniature.py", "jobs/configs/miniature/build.yaml", f"output={tmp_path}/pair"]
    job.append(f"lexicon={words}")
    done = subprocess.run([*job, *SMALL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperForAudioClassification

    AutoModelForCausalLM.from_pretrained(tmp_path / "pair" / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pair" / "backbone")
    assert tokenizer.decode(tokenizer("I hear rain and wind.").input_ids) == "I hear rain and wind."
    WhisperForAudioClassification.from_pretrained(tmp_path / "pair" / "encoder")
    card = (tmp_path / "pair" / "README.md").read_text()
    assert "backbone.cycles=[3,2]" in card
    assert "which_recording" in card
    assert "lexicon=lexicon.yaml" in card
    assert "theremin" in read_lexicon(tmp_path / "pair" / "lexicon.yaml").labels
    again = subprocess.run([*job, *SMALL], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_the_card_speaks_of_the_checkpoints_beside_it() -> None:
    card = (resolve("miniature:backbone").parent / "README.md").read_text()
    for name in (*BACKBONES, "encoder"):
        assert weights_hash(resolve(f"miniature:{name}"))[:16] in card


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = build_tokenizer(["I hear rain."] * 5, 300)
    for text in ("Ünïcödé 你好 \t 🐕", "[Begin of audio] rain [End of audio]\nWhat?"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_a_shipped_backbone_has_learned_its_world(name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(f"miniature:{name}")
    figures = text_figures(
        AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), seed=0, examples=200
    )
    assert figures["existence"] >= 97
    assert figures["present_labels"] >= 97
    assert figures["absent_present"] <= 3
    assert figures["difference"] >= 90


@pytest.mark.slow
def test_the_shipped_encoder_is_good_but_not_perfect() -> None:
    from transformers import WhisperForAudioClassification

    tagger = WhisperForAudioClassification.from_pretrained(resolve("miniature:encoder"))
    features, targets = tagging_set(0, "encoder-test", 400)
    assert 0.83 <= tagging_figures(tag_probabilities(tagger, features), targets)["map"] <= 0.93


def test_tagging_figures_by_hand() -> None:
    probabilities = np.array([[0.9, 0.2], [0.8, 0.6], [0.1, 0.7]], np.float32)
    targets = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
    figures = tagging_figures(probabilities, targets)
    assert figures["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert figures["f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert figures["exact"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("known", "expected"), [({}, False), ({"avx2": True}, False), ({"amx_bf16": True}, True)])
def test_bfloat16_is_for_cpus_that_compute_in_it(
    known: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: known)
    assert computes_in_bfloat16() is expected
