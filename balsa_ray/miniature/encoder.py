"""The miniature's audio encoder: a small Whisper encoder pretrained on multi-label tagging of soundscapes.

Real Whisper has heard 680 thousand hours; this one has heard some thousand synthetic clips and is stopped where it
is good but not perfect, so that a language model behind it still has room to hear what is not there. Its tagging
head stays in the checkpoint (`WhisperForAudioClassification`): it is the yardstick for what the encoder knows.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balsa_ray.identity import rng
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.soundscapes import SECONDS, soundscape

Features = npt.NDArray[np.float16]
Targets = npt.NDArray[np.float32]


def feature_extractor() -> Any:
    """Returns Whisper's log-mel front end for 4 s windows: 80 bins, 20 ms hop, 200 frames."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80, sampling_rate=16_000, hop_length=320, chunk_length=int(SECONDS))


def tagging_set(seed: int, split: str, clips: int) -> tuple[Features, Targets]:
    """Makes clips and their multi-hot labels without touching the disk.

    Returns:
        Log-mels `[clips, 80, 200]` (float16 to halve memory) and targets `[clips, labels]`, labels as in the lexicon.
    """
    extractor, labels = feature_extractor(), lexicon().synthesised
    features = np.empty((clips, 80, extractor.nb_max_frames), np.float16)
    targets = np.zeros((clips, len(labels)), np.float32)
    for index in range(clips):
        samples, events = soundscape(seed, split, index)
        features[index] = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
        for event in events:
            targets[index, labels.index(event["label"])] = 1
    return features, targets


def build_encoder(
    output: Path,
    *,
    seed: int,
    clips: int,
    validation_clips: int,
    epochs: int,
    stop_at_map: float,
    hidden_size: int = 128,
    layers: int = 3,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    compiled: bool = True,
    log: Callable[[str], None] = print,
) -> dict[str, float]:
    """Pretrains the encoder and writes it with its feature extractor to `output`.

    Stops after the epoch whose validation mAP reaches `stop_at_map`.

    Returns:
        Validation figures: `map` (mean average precision over labels), `f1` (micro, at 0.5), `exact` (whole label
        sets right), `epochs`.
    """
    import torch
    from transformers import WhisperConfig, WhisperForAudioClassification

    labels = lexicon().synthesised
    config = WhisperConfig(
        vocab_size=8, d_model=hidden_size, encoder_layers=layers, encoder_attention_heads=4,
        encoder_ffn_dim=4 * hidden_size, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=hidden_size,
        num_mel_bins=80, max_source_positions=feature_extractor().nb_max_frames // 2, max_target_positions=8,
        dropout=0.1, classifier_proj_size=hidden_size, num_labels=len(labels),
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = WhisperForAudioClassification(config)
    log(f"encoder: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, making {clips} clips")
    features, targets = tagging_set(seed, "encoder-train", clips)
    held_out = tagging_set(seed, "encoder-validation", validation_clips)
    steps = epochs * (clips // batch_size)
    step = training(model, learning_rate, steps, compiled)
    figures: dict[str, float] = {}
    for epoch in range(epochs):
        model.train()
        for x, y in _batches(seed, epoch, features, targets, batch_size):
            step(x, y)
        figures = {**tagging_figures(tag_probabilities(model, held_out[0]), held_out[1]), "epochs": epoch + 1}
        log(f"encoder: epoch {epoch + 1}/{epochs} " + " ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        if figures["map"] >= stop_at_map:
            break
    model.save_pretrained(output)
    feature_extractor().save_pretrained(output)
    return figures


def training(model: Any, learning_rate: float, steps: int, compiled: bool) -> Callable[[Any, Any], float]:
    """Returns a function that takes one of so many optimizer steps on a batch, and returns its loss.

    Its arguments are log-mels `[clips, 80, 200]` and targets `[clips, labels]`, float32.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    tag = torch.compile(model, disable=not compiled)

    def step(x: Any, y: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16()):
            logits = tag(x).logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    return step


def computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; others imitate it, many times as slowly as float32."""
    import torch

    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _batches(seed: int, epoch: int, features: Features, targets: Targets, size: int) -> Iterator[tuple[Any, Any]]:
    """Shuffled batches; each clip is shifted in time, and a band and a stretch of the batch masked (SpecAugment)."""
    import torch

    draw = rng(seed, "encoder-epoch", epoch)
    order = draw.permutation(len(features))
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        shifts = draw.integers(200, size=size)
        x = np.stack([np.roll(features[r], s, axis=1) for r, s in zip(rows, shifts, strict=True)]).astype(np.float32)
        band, stretch = int(draw.integers(72)), int(draw.integers(180))
        x[:, band : band + 8] = x.mean()
        x[:, :, stretch : stretch + 20] = x.mean()
        yield torch.from_numpy(x), torch.from_numpy(targets[rows])


def tag_probabilities(model: Any, features: npt.NDArray[Any]) -> Targets:
    """Runs the tagging head over log-mels `[clips, 80, 200]`; returns probabilities `[clips, labels]`."""
    import torch

    model.eval()
    with torch.inference_mode():
        parts = [model(torch.from_numpy(features[i : i + 64].astype(np.float32))).logits.sigmoid().numpy()
                 for i in range(0, len(features), 64)]  # fmt: skip
    return np.concatenate(parts)


def tagging_figures(probabilities: Targets, targets: Targets) -> dict[str, float]:
    """Returns mean average precision over labels, micro F1 at 0.5 and the share of exactly right label sets."""
    precisions = []
    for p, y in zip(probabilities.T, targets.T, strict=True):
        if y.any():
            ranked = y[np.argsort(-p, kind="stable")]
            precisions.append(float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked > 0].mean()))
    chosen = probabilities > 0.5
    hits = (chosen & (targets > 0)).sum()
    return {
        "map": float(np.mean(precisions)),
        "f1": float(2 * hits / max(chosen.sum() + targets.sum(), 1)),
        "exact": float((chosen == (targets > 0)).all(axis=1).mean()),
    }
