from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from balsa_ray.model.packed_attention import Layout, attend_within_samples, hidden_states

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
OTHER_FAMILIES = {
    "gemma2": (Gemma2Config(**SHAPE, head_dim=8), "has attention 'eager'"),
    "stablelm": (StableLmConfig(**SHAPE), "lets samples of one row see each other"),
    "nemotron": (NemotronConfig(**SHAPE), "lets samples of one row see each other"),
    "lfm2": (Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]), "lets samples of one row see each other"),
    "falcon": (FalconConfig(**SHAPE, alibi=True), "can't change its attention"),
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

    assert attend_within_samples(model)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_that_mix_samples_of_a_row_are_left_alone(
    family: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    config, why = OTHER_FAMILIES[family]
    model = language_model(config).to(dtype)
    before = model.config._attn_implementation
    assert not attend_within_samples(model)
    assert model.config._attn_implementation == before
    [warning] = [record.message for record in caplog.records if record.name.startswith("balsa_ray")]
    assert why in warning


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_no_reason_to_pad(family: str) -> None:
    assert attend_within_samples(language_model(FAMILIES[family]).bfloat16())


def test_experts_are_no_reason_to_pad() -> None:
    assert attend_within_samples(language_model(MixtralConfig(**SHAPE, num_local_experts=4)))


class TakesNoLayout(LlamaForCausalLM):
    """As a family whose blocks take no arguments but their own."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        forward = self.model.forward
        self.model.forward = lambda inputs_embeds, use_cache: forward(inputs_embeds=inputs_embeds, use_cache=use_cache)


def test_an_llm_that_takes_no_layout_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = TakesNoLayout(LlamaConfig(**SHAPE)).eval()
    assert not attend_within_samples(model)
    assert "takes no layout (TypeError" in caplog.text
    states = hidden_states(model, model.get_input_embeddings()(IDS[None]), Layout.of(LENGTHS))
    alone = [model.model(inputs_embeds=model.get_input_embeddings()(ids[None]), use_cache=False).last_hidden_state
             for ids in IDS.split(LENGTHS.tolist())]  # fmt: skip
    torch.testing.assert_close(states, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)


def test_long_rows_make_no_mask_of_the_row_squared() -> None:
    """Families with a sliding window get one otherwise, as soon as the row is longer than that."""
    model = language_model(FAMILIES["mistral"])
    assert attend_within_samples(model)
    shapes = []
    attention = model.model.layers[0].self_attn
    attention.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(kwargs["attention_mask"].shape), with_kwargs=True
    )
    hidden_states(model, model.get_input_embeddings()(IDS[None]), Layout.of(LENGTHS))
    assert shapes == [(1, 1, 1, 1)]


def test_layout_says_where_tokens_stand_when_each_sample_has_a_row() -> None:
    layout = Layout.of(np.array([2, 3, 1]))
    assert layout.places.tolist() == [0, 1, 3, 4, 5, 6]
    assert (layout.samples, layout.longest) == (3, 3)
    row = torch.arange(1, 7)
    assert layout.spread(row).tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    assert torch.equal(layout.gather(layout.spread(row)), row)
