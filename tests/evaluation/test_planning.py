"""What is asked of a model without a server, before any engine starts."""

from pathlib import Path

import soundfile
from tiny_models import tone

from balsa_ray.evaluation.answers import AnswerFile
from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.offline import _Asking
from balsa_ray.evaluation.questions import Question


def test_recordings_of_two_benchmarks_with_one_id_are_not_mixed_up(tmp_path: Path) -> None:
    for name, pitch in (("a", 300), ("b", 900)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "1.wav", tone(pitch), 16_000)
    plans = {
        task: [
            Question(
                "q", "all", ({"id": "1.wav", "audio": str(tmp_path / name / "1.wav"), "tags": [name]},), "What?", ""
            )
        ]
        for task, name in (("existence", "a"), ("nonspeech7k", "b"))
    }
    for modality in ("audio", "metadata"):
        config = BenchmarkConfig.model_validate(
            {"output": tmp_path, "tasks": ["existence"], "data_root": tmp_path, "model": "m", "modality": modality}
        )
        with AnswerFile(tmp_path / f"{modality}.jsonl") as store:
            requests = _Asking(plans, config, store, "salt").requests.values()
        assert [request.askers for request in requests] == [[("existence", "q")], [("nonspeech7k", "q")]]
        if modality == "audio":
            assert [request.clips[0]["audio"] for request in requests] == [str(tmp_path / n / "1.wav") for n in "ab"]


def test_equal_recordings_are_asked_about_once(tmp_path: Path) -> None:
    for name in ("one.wav", "other.wav"):
        soundfile.write(tmp_path / name, tone(300), 16_000)
    questions = [
        Question(name, "all", ({"id": name, "audio": str(tmp_path / name)},), "What?", "")
        for name in ("one.wav", "other.wav")
    ]
    config = BenchmarkConfig.model_validate(
        {"output": tmp_path, "tasks": ["existence"], "data_root": tmp_path, "model": "m"}
    )
    with AnswerFile(tmp_path / "answers.jsonl") as store:
        (request,) = _Asking({"existence": questions}, config, store, "salt").requests.values()
    assert request.askers == [("existence", "one.wav"), ("existence", "other.wav")]
