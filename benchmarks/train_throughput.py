"""How many samples a second does the training core learn, against a plain PyTorch loop, and Ray Train against the core?

    python benchmarks/train_throughput.py [--core] [--rounds 3] [--steps 6] [--data OUTPUT_OF_SYNTHESIZE]

1. The core (`balsa_ray.training.step`) against the usual loop on the same batches: rows padded to the longest, logits of
   the whole vocabulary at all positions, encoder run in every step. Random weights, 128k vocabulary, samples of 64
   embeddings a clip and replies of 40 tokens on average. On a CPU narrow models; on a GPU Llama-3.1-8B and Whisper-small
   in bfloat16, several batch sizes, with utilisation and peak memory. Needs torch, transformers and pydantic alone.
2. `jobs/train.py` with one worker (Ray Train, DeepSpeed) against the core in this process, on the same batches of the
   miniature's samples; start-up and the first passage over the clips do not count.
3. What decodes, makes log-mels and collates, without a model, against what the trainer of 2 takes.

With `--core` only the first. Rounds alternate; medians are told. Utilisation counts what `balsa_ray.training.flops`
says: 4 operations a frozen weight and token (forward, and backward for activations), no padding, nothing twice.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from balsa_ray.identity import rng
from balsa_ray.model.configuration import IGNORED, BalsaConfig
from balsa_ray.model.modeling import BalsaForConditionalGeneration
from balsa_ray.training import packing
from balsa_ray.training.flops import Flops
from balsa_ray.training.step import EncodedAudio, MicroBatch, adamw, cpu_kernels, encode_clip, optimise, prepare

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, by the vendor's data sheets
VOCABULARY = 128_256
RATE = 1e-4


@dataclass(frozen=True)
class Shape:
    """Sizes of a model with random weights, and of the batches to try on it."""

    text: dict[str, Any]
    audio: dict[str, Any]
    batch_sizes: list[int]
    micro_batch_tokens: int
    dtype: torch.dtype = torch.float32
    recompute: list[bool] = field(default_factory=lambda: [False])


NARROW = Shape(
    {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 8},
    {"d_model": 128, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 512,
     "max_source_positions": 500},
    [8],
    1024,
)  # fmt: skip
LLAMA_8B = Shape(
    {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    {"d_model": 768, "encoder_layers": 12, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072,
     "max_source_positions": 1500},
    [16, 32, 64, 96],
    65_536,
    torch.bfloat16,
    [False, True],
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A model, samples for it, and the weights that every arm starts from."""

    model: BalsaForConditionalGeneration
    sequences: list[np.ndarray]
    prompt_tokens: np.ndarray
    clips: list[list[int]]
    mels: Tensor
    start: dict[str, Tensor]
    device: torch.device

    @property
    def tokens(self) -> np.ndarray:
        """Length of each sample."""
        return np.asarray([len(sequence) for sequence in self.sequences])

    def optimiser(self) -> torch.optim.Optimizer:
        """Puts the connector back to where it was; nothing else learns."""
        connector = self.model.audio_tower.connector
        connector.load_state_dict(self.start)
        return adamw(connector.parameters(), (0.9, 0.98), 0.01)


def main() -> None:
    """Prints what each arm takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core", action="store_true", help="only what needs neither Ray nor DeepSpeed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--data", type=Path, default=Path("outputs/demo/data"))
    arguments = parser.parse_args()
    compare_core(torch.device("cuda" if torch.cuda.is_available() else "cpu"), arguments.rounds, arguments.steps)
    if arguments.core:
        return
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data} is missing: make demo writes it")
    consumed = compare_ray(arguments.data, min(arguments.rounds, 2))
    compare_pipeline(arguments.data, consumed)


def make_work(shape: Shape, device: torch.device, samples: int) -> Work:
    """Draws weights and samples: a quarter of these have two clips."""
    text = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **shape.text)
    audio = WhisperConfig(**shape.audio)
    config = BalsaConfig(
        text_config=text, audio_config=audio, audio_token_id=VOCABULARY, embedding_rms=0.02, dtype=shape.dtype
    )
    torch.manual_seed(0)
    with torch.device(device):
        language_model = AutoModelForCausalLM.from_config(text, dtype=shape.dtype)
        encoder = WhisperEncoder._from_config(audio, attn_implementation="sdpa")
    model = BalsaForConditionalGeneration(config, language_model, encoder).to(device, shape.dtype)
    draw = rng(0, "train_throughput")
    numbers = 1 + (draw.random(samples) < 0.25)
    clips = [draw.integers(samples // 3, size=number).tolist() for number in numbers]
    prompts = draw.integers(15, 40, samples)
    replies = np.minimum(draw.geometric(1 / 40, samples), 300)
    sequences = [
        np.concatenate(
            [np.full(64 * number, VOCABULARY), draw.integers(VOCABULARY, size=prompt + reply)],
        )
        for number, prompt, reply in zip(numbers, prompts, replies, strict=True)
    ]
    mels = torch.from_numpy(
        draw.standard_normal((samples // 3, audio.num_mel_bins, 2 * audio.max_source_positions), dtype=np.float32)
    )
    start = {name: weight.clone() for name, weight in model.audio_tower.connector.state_dict().items()}
    return Work(model, sequences, 64 * numbers + prompts, clips, mels, start, device)


def naive_step(work: Work, optimiser: torch.optim.Optimizer, rows: np.ndarray) -> float:
    """One step as it is usually written."""
    sequences = [torch.from_numpy(work.sequences[row]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    places = torch.arange(ids.shape[1])[None]
    mask = places < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    labels = ids.masked_fill(~mask | (places < torch.from_numpy(work.prompt_tokens[rows])[:, None]), IGNORED)
    ids, mask, labels = (tensor.to(work.device) for tensor in (ids, mask.long(), labels))
    features = torch.stack([work.mels[clip] for row in rows for clip in work.clips[row]]).to(work.device)
    embeds = work.model.embed_prompt(ids, features)
    logits = work.model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(work.model.audio_tower.connector.parameters(), 1.0)
    optimiser.param_groups[0]["lr"] = RATE
    optimiser.step()
    return loss.item()


def core_step(budget: int, states: list[Tensor] | None = None) -> "Callable[..., float]":
    """Returns a step of the core; with the encoder's `states` of all clips it doesn't run the encoder."""

    def step(work: Work, optimiser: torch.optim.Optimizer, rows: np.ndarray) -> float:
        lengths = work.tokens[rows]
        [mine] = packing.cut(rows, lengths, lengths, 1, budget)
        audio = work.mels if states is None else states
        micro = [
            MicroBatch.of(
                packing.collate(part, work.sequences.__getitem__, work.prompt_tokens),
                [audio[clip] for row in part for clip in work.clips[row]],
                work.device,
            )
            for part in mine
        ]
        return optimise(work.model, optimiser, micro, RATE, 1.0).loss

    return step


def measure(work: Work, step: "Callable[..., float]", batches: list[np.ndarray]) -> tuple[list[float], float]:
    """Returns losses and samples a second of one round; the first step, which warms up, is not timed."""
    optimiser = work.optimiser()
    losses = [step(work, optimiser, batches[0])]
    began = time.perf_counter()
    losses += [step(work, optimiser, rows) for rows in batches[1:]]
    return losses, sum(map(len, batches[1:])) / (time.perf_counter() - began)


def compare_core(device: torch.device, rounds: int, steps: int) -> None:
    """Prints the arms of the first comparison for each batch size."""
    shape = LLAMA_8B if device.type == "cuda" else NARROW
    samples = max(shape.batch_sizes) * (steps + 1)
    work = make_work(shape, device, samples)
    prepare(work.model)
    flops = Flops.of(work.model)
    peak = next(
        (peak for name, peak in PEAK.items() if device.type == "cuda" and name in torch.cuda.get_device_name()), 0
    )
    tower = work.model.audio_tower
    states = [encode_clip(tower, mel.to(device)).cpu() for mel in work.mels]
    for size in shape.batch_sizes:
        order = rng(0, "order").permutation(samples)[: size * (steps + 1)]
        batches = np.split(order, steps + 1)
        arms: dict[str, tuple[Callable[..., float], bool]] = {
            "naive": (naive_step, False),
            "core": (core_step(shape.micro_batch_tokens), False),
            "core, clips encoded before": (core_step(shape.micro_batch_tokens, states), True),
        }
        rates: dict[str, list[float]] = {name: [] for name in arms}
        paths: dict[str, list[float]] = {}
        memory: dict[str, float] = {}
        for _ in range(rounds):
            for name, (step, encoded) in arms.items():
                work.model.audio_tower = EncodedAudio(tower.connector) if encoded else tower
                reset_peak(device)
                kernels = cpu_kernels() if device.type == "cpu" and step is not naive_step else nullcontext()
                try:
                    with kernels:
                        paths[name], rate = measure(work, step, batches)
                except torch.OutOfMemoryError:
                    continue
                rates[name].append(rate)
                memory[name] = peak_memory(device)
        work.model.audio_tower = tower
        padded = 1 - sum(work.tokens[rows].sum() for rows in batches) / sum(
            len(rows) * work.tokens[rows].max() for rows in batches
        )
        print(f"batches of {size} samples: {padded:.1%} of the naive loop's positions are padding, none of the core's")
        timed = order[size:]
        for name, found in rates.items():
            if not found:
                print(f"  {name}: out of memory")
                continue
            replies = work.tokens[timed] - work.prompt_tokens[timed]
            numbers = np.asarray([len(work.clips[row]) for row in timed])
            done = flops.of_samples(work.tokens[timed], replies, numbers, arms[name][1]).sum() / len(timed)
            line = f"  {name}: {median(found):.2f} samples/s, {memory[name]:.2f} GiB at most"
            line += f", {done * median(found) / 1e9:,.0f} GFLOP/s" + (
                f", MFU {done * median(found) / peak:.1%}" if peak else ""
            )
            if "naive" in paths and name != "naive":
                apart = max(abs(a - b) / b for a, b in zip(paths[name], paths["naive"], strict=True))
                line += f"; {median(found) / median(rates['naive']):.2f} × naive, losses within {apart:.1e}"
            print(line, flush=True)


def reset_peak(device: torch.device) -> None:
    """Begins to watch the memory anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Returns the most memory in use since then: on the GPU, or of this process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


if __name__ == "__main__":
    main()
