import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PreTrainedModel

from balsa_ray.model import reply_loss
from balsa_ray.model.reply_loss import head_of, reply_losses

SHAPE = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What stands behind their heads: nothing, a cap, two factors.
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.25),
    "granite": GraniteConfig(**SHAPE, logits_scaling=8.0),
}
LABELS = torch.full((3, 12), -100)
LABELS[0, 4:7], LABELS[0, 9:] = 5, 7
LABELS[2, 1] = 11


def frozen(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").eval().requires_grad_(False)


def hidden_states() -> Tensor:
    return torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_what_the_family_does_with_hidden_states(family: str) -> None:
    model = frozen(family)
    ids = torch.arange(3, 15)[None]
    hidden = model.base_model(ids).last_hidden_state
    torch.testing.assert_close(head_of(model)(hidden[0]), model(ids).logits[0])
    assert type(model.base_model).__name__ != "_NoBlocks"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("logits", [1, 150, 1 << 25])
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    family: str, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_loss, "LOGITS", logits)
    model, weights = frozen(family), torch.linspace(0.5, 2, 7)
    plain = hidden_states()
    scores = head_of(model)(plain.flatten(0, 1)).view(3, 12, -1)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(scores, LABELS[:, 1:].flatten(), reduction="none")
    expected = expected[LABELS[:, 1:].flatten() != -100]
    (expected * weights).sum().backward()

    chunked = hidden_states()
    losses = reply_losses(model, chunked, LABELS)
    assert losses.shape == (7,)
    (losses * weights).sum().backward()
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(chunked.grad, plain.grad)


def test_no_more_logits_exist_than_fit_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_loss, "LOGITS", 2 * 50)
    model, seen = frozen("llama"), []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    reply_losses(model, hidden_states(), LABELS)
    assert seen == [(1, 2, 50)] * 3 + [(1, 1, 50)]


def test_without_gradients_only_the_losses_are_made() -> None:
    with torch.no_grad():
        losses = reply_losses(frozen("llama"), hidden_states(), LABELS)
    assert not losses.requires_grad
    assert torch.isfinite(losses).all()
