"""Noise on the metadata span, so that a tiny language model learns to read vectors and not only words.

An adapter's output is never exactly a word's embedding: it is a blend, in no strict order, with noise. A large LM
copes; a tiny one trained on clean text does not (its answers about audio are near chance while its answers about text
are near perfect). So in a share of the examples the span's embeddings are replaced by *slots*:

- `jitter`: the metadata's own tokens, each blended with another word, blank slots between them;
- `bag`: a random number of slots, each a blend of the words of the labels, in any order, every label in at least one.
  Most bags also hint, weakly, at *ghosts*: labels that the clip does not have, its confusable neighbours first. Then
  weak evidence has to be weighed, as it has to be in audio, and by every task alike: without ghosts any trace of a
  label means that it is there, and yes/no questions and descriptions draw the line at different places.

Gaussian noise is added to every slot and its RMS set near that of the token embeddings, as the adapter's output is.
Nothing here is learned, and no audio is involved.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_SOURCES = 16
"""Words that one slot may blend: three distractors, and four labels of up to three tokens."""


@dataclass
class Tokens:
    """A token sequence some of whose positions are slots.

    Attributes:
        ids: Token ids; at slots any id.
        slots: Position, the ids it blends and their weights.
        noise: Standard deviation of the slots' noise, in units of the slots' RMS.
        reply_start: Index of the first token of the reply.
    """

    ids: list[int] = field(default_factory=list)
    slots: list[tuple[int, list[int], list[float]]] = field(default_factory=list)
    noise: float = 0.0
    reply_start: int = 0

    def add_slot(self, sources: list[int], weights: list[float]) -> None:
        """Appends a slot."""
        self.slots.append((len(self.ids), sources[:MOST_SOURCES], weights[:MOST_SOURCES]))
        self.ids.append(0)


def add_jitter(tokens: Tokens, draw: np.random.Generator, span: list[int], words: list[int]) -> None:
    """Appends a span's own tokens as slots, blended with other words and with blank slots between."""
    blend, blanks = draw.uniform(0, 0.4), draw.uniform(0, 0.3)
    for token in span:
        while draw.random() < blanks:
            add_blank(tokens, draw, words)
        tokens.add_slot([token, int(draw.choice(words))], [1 - blend, blend])


def add_bag(
    tokens: Tokens, draw: np.random.Generator, present: list[list[int]], ghosts: list[list[int]], words: list[int]
) -> None:
    """Appends slots that hold labels in any order, blended.

    Args:
        tokens: What to append to.
        draw: Source of every choice.
        present: Token ids of each label of the clip.
        ghosts: Of labels that the clip does not have, and that the slots are to hint at.
        words: Token ids of all words.
    """
    labels = present + ghosts
    # How much of a slot is the label's. Where nothing is hinted at, everything is clear.
    clarity = [draw.beta(4, 1.5) if ghosts else 1.0 for _ in present] + [draw.beta(1.5, 4) for _ in ghosts]
    count = int(draw.integers(max(6, len(labels) + 2), 21))
    owners = list(draw.permutation(len(labels))) + list(draw.integers(0, len(present), count - len(labels)))
    draw.shuffle(owners)
    sharing, distraction, blanks = draw.uniform(0, 0.45), draw.uniform(0, 0.35), draw.uniform(0, 0.4)
    seen: set[int] = set()
    for owner in owners:
        if owner in seen and draw.random() < blanks:
            add_blank(tokens, draw, words)
            continue
        parts = np.zeros(len(labels))
        parts[: len(present)] = draw.dirichlet(np.ones(len(present))) * (draw.uniform(0, sharing) * (owner in seen))
        parts[owner] += 1 - parts.sum()
        seen.add(owner)
        clear = clarity[owner] * (1 - draw.uniform(0, distraction))
        sources = [int(word) for word in draw.choice(words, 3)]
        weights = [float(w) for w in draw.dirichlet(np.ones(3)) * (1 - clear)]
        for label, part in zip(labels, parts, strict=True):
            if part > 0.02:
                sources += label
                weights += [float(part * clear * w) for w in draw.dirichlet(np.full(len(label), 3.0))]
        tokens.add_slot(sources, weights)


def add_blank(tokens: Tokens, draw: np.random.Generator, words: list[int]) -> None:
    """Appends a slot that means nothing: a blend of many words."""
    tokens.add_slot([int(w) for w in draw.choice(words, 6)], [1 / 6] * 6)


def embed(batch: list[Tokens], table: Any, generator: Any) -> tuple[Any, Any]:
    """Embeds a batch of sequences, right-padded with token 0.

    Args:
        batch: B sequences.
        table: The LM's embedding module, `[vocabulary, hidden]`.
        generator: `torch.Generator` of the noise.

    Returns:
        Ids `[B, T]` and embeddings `[B, T, hidden]`.
    """
    import torch

    length = max(len(tokens.ids) for tokens in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
    embeddings = table(ids)
    slots = [(row, *slot, tokens.noise) for row, tokens in enumerate(batch) for slot in tokens.slots]
    if not slots:
        return ids, embeddings
    sources = torch.zeros(len(slots), MOST_SOURCES, dtype=torch.long)
    weights = torch.zeros(len(slots), MOST_SOURCES)
    for i, (_, _, words, shares, _) in enumerate(slots):
        sources[i, : len(words)] = torch.tensor(words)
        weights[i, : len(shares)] = torch.tensor(shares)
    mixed = (table(sources) * weights[..., None]).sum(1)
    mixed = mixed / mixed.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    sigma = torch.tensor([slot[-1] for slot in slots])[:, None]
    mixed = mixed + sigma * torch.randn(mixed.shape, generator=generator)
    rms = table.weight.detach().pow(2).mean(-1).sqrt().mean()
    scale = rms * (0.85 + 0.3 * torch.rand(len(slots), 1, generator=generator))
    mixed = mixed / mixed.pow(2).mean(-1, keepdim=True).sqrt() * scale
    rows = torch.tensor([slot[0] for slot in slots])
    positions = torch.tensor([slot[1] for slot in slots])
    return ids, embeddings.index_put((rows, positions), mixed.to(embeddings.dtype))
