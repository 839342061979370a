"""A model cut over two processes answers as one in a single process does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balsa_ray.model.configuration import AUDIO_TOKEN

PROMPTS = {0: "Rain is", 1: f"{AUDIO_TOKEN} What do you hear?", 2: f"{AUDIO_TOKEN} and {AUDIO_TOKEN} differ?",
           4: AUDIO_TOKEN * 4 + "?"}  # fmt: skip


def answers(engine: Any) -> list[tuple[list[int], float]]:
    """Greedy tokens and the first one's log-probability, of prompts with none to four clips."""
    from vllm import SamplingParams

    noise = np.random.default_rng(0)
    clips = [noise.normal(0, 0.1, 32_000).astype(np.float32) for _ in range(4)]
    asked = [{"prompt": prompt, "multi_modal_data": {"audio": clips[:n]} if n else {}} for n, prompt in PROMPTS.items()]
    sampling = SamplingParams(temperature=0, max_tokens=12, logprobs=1, ignore_eos=True)
    made = [reply.outputs[0] for reply in engine.generate(asked, sampling, use_tqdm=False)]
    return [(list(one.token_ids), one.logprobs[0][one.token_ids[0]].logprob) for one in made]


@pytest.mark.slow
def test_tensor_parallel_gives_the_same_answers(tiny_engine: Any, tiny_model: Path, tmp_path: Path) -> None:
    # Its workers import this file, and what it sets for them must not reach the other tests.
    command = [sys.executable, __file__, str(tiny_model), str(tmp_path / "answers.json")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True)
    for (tokens, first), (alone, first_alone) in zip(
        json.loads((tmp_path / "answers.json").read_text()), answers(tiny_engine), strict=True
    ):
        assert tokens == alone
        assert first == pytest.approx(first_alone, abs=1e-4)


if __name__ == "__main__":
    from tiny_models import tiny_vllm

    with tiny_vllm(Path(sys.argv[1]), tensor_parallel_size=2) as halves:
        Path(sys.argv[2]).write_text(json.dumps(answers(halves)))
