from pathlib import Path

import pytest
from transformers import AutoConfig, LlamaConfig, WhisperConfig

from balsa_ray.model.configuration import BalsaConfig, quarter_depths


@pytest.mark.parametrize(
    ("layers", "taps"), [(12, [3, 6, 9, 12]), (32, [8, 16, 24, 32]), (4, [1, 2, 3, 4]), (3, [1, 2, 3]), (1, [1])]
)
def test_taps_lie_at_quarter_depths(layers: int, taps: list[int]) -> None:
    assert quarter_depths(layers)[-1] == layers
    assert set(quarter_depths(layers)) <= set(taps)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = BalsaConfig(
        text_config=LlamaConfig(hidden_size=64, tie_word_embeddings=True),
        audio_config=WhisperConfig(encoder_layers=8, d_model=32, encoder_attention_heads=2),
        taps=[2, 8],
        text_model="some/llm",
        audio_token_id=320,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, BalsaConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert (loaded.taps, loaded.qformer_heads, loaded.qformer_intermediate_size) == ([2, 8], 2, 128)


@pytest.mark.parametrize("tied", [True, False])
def test_the_top_level_says_whether_the_llm_is_tied(tied: bool) -> None:
    """VLLM copies the top-level flag onto the LLM; a wrong one gives zero logits without an error."""
    assert BalsaConfig(text_config=LlamaConfig(tie_word_embeddings=tied)).tie_word_embeddings is tied


@pytest.mark.parametrize("taps", [[0], [5], [1, -1]])
def test_a_tap_outside_the_encoder_is_refused(taps: list[int]) -> None:
    with pytest.raises(ValueError, match="the encoder has blocks 1 to 4"):
        BalsaConfig(audio_config=WhisperConfig(encoder_layers=4), taps=taps)
