from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from balsa_ray.model.packed_attention import Layout, attend_within_samples

SHAPE: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "mistral": MistralConfig(**SHAPE, sliding_window=6),
    "phi": PhiConfig(**SHAPE),
    "phi3": Phi3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=6, layer_types=["sliding_attention"] * 2),
}
LENGTHS = np.array([9, 4, 13, 1])
IDS = torch.randint(3, 99, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(0))


def language_model(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sample_is_read_as_if_it_stood_alone(family: str) -> None:
    model = language_model(FAMILIES[family])
    samples = IDS.split(LENGTHS.tolist())
    alone = torch.cat([model(sample[None]).logits[0] for sample in samples])
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    masked = model(IDS[None], position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(masked, alone, rtol=1e-4, atol=1e-4)

    attend_within_samples(model)
    embeds = model.get_input_embeddings()(IDS[None]).detach().requires_grad_()
    packed = model(
        inputs_embeds=embeds, attention_mask=torch.ones(1, len(IDS)), position_ids=positions,
        layout=Layout.of(LENGTHS), use_cache=False,
    ).logits[0]  # fmt: skip
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    # Only the third sample is asked for anything: no other gets a gradient.
    packed[13:26].sum().backward()
    touched = embeds.grad[0].abs().sum(dim=1) > 0
    assert touched[13:26].all()
    assert not touched[:13].any()
    assert not touched[26:].any()


def test_without_a_layout_the_model_works_as_before() -> None:
    model = language_model(FAMILIES["llama"])
    ids, mask = IDS[:20].view(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    before = model(ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, max_new_tokens=5)
    attend_within_samples(model)
    attend_within_samples(model)
    after = model(ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, max_new_tokens=5)
    assert all(map(torch.equal, before, after))


def test_another_kind_of_attention_is_refused() -> None:
    model = language_model(Gemma2Config(**SHAPE, head_dim=8))
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="Gemma2ForCausalLM runs with attention 'eager'; samples can be packed with"):
        attend_within_samples(model)


def test_layout_says_where_tokens_stand_when_each_sample_has_a_row() -> None:
    layout = Layout.of(np.array([2, 3, 1]))
    assert layout.places.tolist() == [0, 1, 3, 4, 5, 6]
    assert (layout.samples, layout.longest) == (3, 3)
