"""A synthesis output of short tones: small enough that twelve steps take a second."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from tiny_models import TinyCheckpoints, tone

from balsa_ray.schema import SAMPLE
from balsa_ray.training.config import TrainConfig

CLIPS = 64
REPLIES = {"present": "I hear a dog barking.", "absent": "no cat", "difference": "rain and wind, then a siren"}


@pytest.fixture(scope="session")
def synthesis_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of one clip for every clip, half of them `present`, half `absent`, and a `difference` for every pair."""
    root = tmp_path_factory.mktemp("synthesis")
    paths = [root / f"{index}.wav" for index in range(CLIPS)]
    for index, path in enumerate(paths):
        soundfile.write(path, tone(200 + 50 * index, 0.2), 16_000)
    rows = []
    for index, path in enumerate(paths):
        kind = ("present", "absent")[index % 2]
        rows.append(sample(f"{index:02}-{kind}", kind, [path]))
        rows.append(sample(f"{index:02}-difference", "difference", [path, paths[(index + 5) % CLIPS]]))
    (root / "samples").mkdir()
    for part in (0, 1):
        pq.write_table(pa.Table.from_pylist(rows[part::2], schema=SAMPLE), root / "samples" / f"{part}.parquet")
    return root


def sample(name: str, kind: str, clips: list[Path]) -> dict[str, object]:
    """A row of the samples; what training doesn't read is left empty."""
    empty = dict.fromkeys(SAMPLE.names)
    audio = [str(path) for path in clips]
    return empty | {"id": name, "kind": kind, "audio": audio, "prompt": "Describe", "response": REPLIES[kind]}


@pytest.fixture
def train_config(
    synthesis_output: Path, tiny_checkpoints: TinyCheckpoints, tmp_path: Path
) -> Callable[..., TrainConfig]:
    """Makes a configuration of twelve steps in two stages; keyword arguments replace its values."""

    def make(**values: object) -> TrainConfig:
        defaults = {
            "output": tmp_path / "run",
            "data": [synthesis_output],
            "text_model": tiny_checkpoints.text,
            "audio_model": tiny_checkpoints.audio,
            "adapter": {"num_query_tokens": 4, "audio_begin": "[Begin of audio]", "audio_end": " [End of audio]"},
            "stages": [
                {"name": "single", "kinds": ["present", "absent"], "steps": 8},
                {"name": "multi", "kinds": ["difference"], "steps": 4, "replay": 0.5},
            ],
            "batch_size": 8,
            "micro_batch_tokens": 64,
            "learning_rate": 2e-3,
            "warmup_steps": 2,
            "checkpoint_every": 5,
            "device": "cpu",
            "encoder_cache": "memory",
        }
        return TrainConfig.model_validate(defaults | values)

    return make
