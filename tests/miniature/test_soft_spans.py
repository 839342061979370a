import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balsa_ray.identity import rng
from balsa_ray.miniature.soft_spans import Tokens, add_bag, add_jitter, embed

WORDS = list(range(10, 40))
LABELS = [[10, 11], [12], [13, 14, 15]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 3))
def test_a_bag_holds_every_label_in_some_slot(seed: int, count: int) -> None:
    tokens = Tokens()
    add_bag(tokens, rng(seed, "bag"), LABELS[:count], [], WORDS)
    assert len(tokens.ids) == len(tokens.slots)
    for label in LABELS[:count]:
        shares = [
            sum(w for source, w in zip(sources[1:], weights[1:], strict=True) if source in label)
            for _, sources, weights in tokens.slots
        ]
        assert max(shares) > 0.6
    for _, _, weights in tokens.slots:
        assert sum(weights) == pytest.approx(1, abs=0.1)


def test_ghosts_are_hinted_at_less_clearly_than_what_is_there() -> None:
    present, ghost = [[10, 11]], [[16]]
    strongest: dict[str, list[float]] = {"present": [], "ghost": []}
    for seed in range(100):
        tokens = Tokens()
        add_bag(tokens, rng(seed, "bag"), present, ghost, list(range(20, 40)))
        for name, ids in (("present", present[0]), ("ghost", ghost[0])):
            strongest[name].append(
                max(
                    sum(w for source, w in zip(sources, weights, strict=True) if source in ids)
                    for _, sources, weights in tokens.slots
                )
            )
    assert min(strongest["ghost"]) > 0
    assert np.mean(strongest["ghost"]) < 0.4 < 0.6 < np.mean(strongest["present"])
    overlap = np.mean([g > p for g in strongest["ghost"] for p in strongest["present"]])
    assert 0.01 < overlap < 0.2


def test_jitter_keeps_the_words_and_their_order() -> None:
    tokens = Tokens()
    add_jitter(tokens, rng(0, "jitter"), [20, 21, 22], WORDS)
    strongest = [sources[0] for _, sources, weights in tokens.slots if weights[0] >= 0.6]
    assert strongest == [20, 21, 22]


def test_only_slots_are_changed_and_they_are_as_long_as_words() -> None:
    table = torch.nn.Embedding(64, 32)
    plain, soft = Tokens(ids=[5, 6, 7], reply_start=2), Tokens(ids=[5], noise=0.5)
    add_bag(soft, rng(1, "bag"), LABELS, [[16]], WORDS)
    soft.ids += [6, 7]
    ids, embeddings = embed([plain, soft], table, torch.Generator().manual_seed(0))
    torch.testing.assert_close(embeddings[0, :3], table(torch.tensor([5, 6, 7])))
    torch.testing.assert_close(embeddings[1, 0], table(torch.tensor(5)))
    end = len(soft.ids)
    torch.testing.assert_close(embeddings[1, end - 2 : end], table(torch.tensor([6, 7])))
    slots = embeddings[1, 1 : end - 2].detach()
    words = table.weight.detach().pow(2).mean(-1).sqrt().mean()
    assert (slots.pow(2).mean(-1).sqrt() / words).sub(1).abs().max() < 0.16
    assert ids.shape == embeddings.shape[:2]


def test_gradients_reach_the_table_through_the_slots() -> None:
    table = torch.nn.Embedding(64, 32)
    soft = Tokens(noise=0.1)
    add_bag(soft, rng(1, "bag"), LABELS, [[16]], WORDS)
    embed([soft], table, torch.Generator().manual_seed(0))[1].pow(3).sum().backward()
    assert table.weight.grad[[10, 12, 13]].abs().sum(-1).gt(0).all()
