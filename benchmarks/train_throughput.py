"""How many samples a second does the training core learn, against a plain PyTorch loop, and Ray Train against the core?

    python benchmarks/train_throughput.py [--core] [--rounds 3] [--steps 6] [--data OUTPUT_OF_SYNTHESIZE]

1. The core (`balsa_ray.training.step`) against the usual loop on the same batches: rows padded to the longest, logits
   of the whole vocabulary at all positions, the encoder run in every step. Random weights, a vocabulary of 128k, 64
   embeddings a clip, replies of 40 tokens on average. On a CPU narrow models; on a GPU Llama-3.1-8B and Whisper-small
   in bfloat16, several batch sizes, with utilisation and peak memory. Needs only torch, transformers and pydantic.
2. `jobs/train.py` with one worker (Ray Train, DeepSpeed) against the core in this process, on the same batches of the
   miniature's samples; start-up and the first passage over the clips do not count.
3. What decodes, makes log-mels and collates, without a model, against what the trainer of 2 takes.

With `--core` only the first. Rounds alternate; medians are told. Utilisation counts what `balsa_ray.training.flops`
says: 4 operations a frozen weight and token (forward, and backward for activations), no padding, nothing twice.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
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
from balsa_ray.training.flops import PEAK_TFLOPS, Flops
from balsa_ray.training.step import EncodedAudio, MicroBatch, adamw, cpu_kernels, encode_clip, optimise, prepare

VOCABULARY = 128_256
RATE = 1e-4
RAY_STEPS, WARM = 230, 150
Step = Callable[["Work", torch.optim.Optimizer, np.ndarray], float]


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
    llm, dtype = work.model.language_model, work.model.language_model.dtype
    with torch.autocast(work.device.type, dtype, enabled=dtype != torch.float32):
        embeds = work.model.embed_prompt(ids, features)
        loss = llm(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False).loss
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(work.model.audio_tower.connector.parameters(), 1.0)
    optimiser.param_groups[0]["lr"] = RATE
    optimiser.step()
    return loss.item()


def core_step(budget: int, states: Tensor | None = None) -> Step:
    """Returns a step of the core; with the encoder's `states` of all clips it doesn't run the encoder."""

    def step(work: Work, optimiser: torch.optim.Optimizer, rows: np.ndarray) -> float:
        lengths = work.tokens[rows]
        [mine] = packing.cut(rows, lengths, lengths, 1, budget)
        audio = work.mels if states is None else states
        micro = [
            MicroBatch.of(
                packing.collate(part, work.sequences.__getitem__, work.prompt_tokens),
                [audio[clip : clip + 1] for row in part for clip in work.clips[row]],
                work.device,
            )
            for part in mine
        ]
        return optimise(work.model, optimiser, micro, RATE, 1.0).loss

    return step


@dataclass
class Arm:
    """One way to make the steps, and what was seen of it; no rates if it ran out of memory."""

    name: str
    step: Step
    encoded: bool = False
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    memory: float = 0.0

    def run(self, work: Work, batches: list[np.ndarray]) -> None:
        """Makes a step a batch. The first one warms up and is not timed."""
        naive = self.step is naive_step
        tower = work.model.audio_tower
        reset_peak(work.device)
        try:
            with cpu_kernels() if work.device.type == "cpu" and not naive else nullcontext():
                if self.encoded:
                    work.model.audio_tower = EncodedAudio(tower.connector)
                optimiser = work.optimiser()
                losses = [self.step(work, optimiser, batches[0])]
                began = time.perf_counter()
                losses += [self.step(work, optimiser, rows) for rows in batches[1:]]
                self.rates.append(sum(map(len, batches[1:])) / (time.perf_counter() - began))
        except torch.OutOfMemoryError:
            return
        finally:
            work.model.audio_tower = tower
        self.losses, self.memory = losses, peak_memory(work.device)


def compare_core(device: torch.device, rounds: int, steps: int) -> None:
    """Prints the first comparison for each batch size."""
    shape = LLAMA_8B if device.type == "cuda" else NARROW
    samples = max(shape.batch_sizes) * (steps + 1)
    work = make_work(shape, device, samples)
    states = torch.cat([encode_clip(work.model.audio_tower, mel[None].to(device)).cpu() for mel in work.mels])
    for recompute in shape.recompute:
        prepare(work.model, recompute)
        for size in shape.batch_sizes:
            batches = np.split(rng(0, "order").permutation(samples)[: size * (steps + 1)], steps + 1)
            arms = [
                Arm("naive", naive_step),
                Arm("core", core_step(shape.micro_batch_tokens)),
                Arm("core, clips encoded before", core_step(shape.micro_batch_tokens, states), encoded=True),
            ]
            for _ in range(rounds):
                for arm in arms:
                    arm.run(work, batches)
            tell(work, batches, arms, f"batches of {size} samples{', blocks recomputed' * recompute}")


def tell(work: Work, batches: list[np.ndarray], arms: list[Arm], title: str) -> None:
    """Prints what came of some arms on the same batches, the naive one first."""
    rows, lengths = np.concatenate(batches), work.tokens
    padding = 1 - lengths[rows].sum() / sum(len(batch) * lengths[batch].max() for batch in batches)
    print(f"{title}: {padding:.1%} of the naive loop's positions are padding, none of the core's")
    name = torch.cuda.get_device_name() if work.device.type == "cuda" else ""
    peak = next((1e12 * peak for device, peak in PEAK_TFLOPS.items() if device in name), None)
    replies, clips = lengths - work.prompt_tokens, np.asarray(list(map(len, work.clips)))
    naive = arms[0]
    for arm in arms:
        if not arm.rates:
            print(f"  {arm.name}: out of memory")
            continue
        rate = median(arm.rates)
        flops = rate * Flops.of(work.model).of_samples(lengths, replies, clips, arm.encoded)[rows].mean()
        line = f"  {arm.name}: {rate:.2f} samples/s, {arm.memory:.2f} GiB at most, {flops / 1e9:,.0f} GFLOP/s"
        line += f", MFU {flops / peak:.1%}" if peak else ""
        if arm is not naive and naive.rates:
            apart = max(abs(ours / theirs - 1) for ours, theirs in zip(arm.losses, naive.losses, strict=True))
            line += f"; {rate / median(naive.rates):.2f} × naive, losses within {apart:.0e} of its"
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


def recipe(data: Path, output: Path) -> Any:
    """The miniature's training by one worker, cut short."""
    from balsa_ray.config import load
    from balsa_ray.training.config import TrainConfig

    file = Path(__file__).parents[1] / "jobs" / "configs" / "miniature" / "train.yaml"
    values = [f"data={data}", f"output={output}", "num_workers=1", f"max_steps={RAY_STEPS}"]
    return load(TrainConfig, [str(file), *values])


def encoded_samples(config: Any) -> Any:
    """The samples as the workers of a run get them."""
    from balsa_ray.training import data
    from balsa_ray.training.loop import encode

    return data.EncodedSamples.of(encode(config, data.read_samples(config.data))[0])


def ray_seconds(config: Any) -> list[float]:
    """Seconds of each step of `jobs/train.py`."""
    from balsa_ray.training.loop import train
    from balsa_ray.training.metrics import METRICS, read

    train(config)
    return [line["seconds"] for line in read(config.output / METRICS)]


def bare_seconds(config: Any) -> list[float]:
    """Seconds of each of the same steps by the core in this process, all clips encoded before."""
    from balsa_ray.training import batches
    from balsa_ray.training.clips import clip_cache
    from balsa_ray.training.loop import log_mels
    from balsa_ray.training.worker import plan_of, rate_at

    torch.set_num_threads(config.cpus_per_worker)
    samples = encoded_samples(config)
    model = BalsaForConditionalGeneration.assemble(
        config.text_model, config.audio_model, **config.adapter.model_dump(), seed=config.seed
    )
    prepare(model)
    todo = list(islice(batches.plan(*plan_of(config, samples)), config.total_steps))
    cache = clip_cache(model, log_mels(config.audio_model, 30.0), config)
    states = {audio: cache.request(audio) for batch in todo for audio in samples.clips(batch.rows)}
    states = {audio: state.result() for audio, state in states.items()}
    optimiser = adamw(model.audio_tower.connector.parameters(), config.betas, config.weight_decay)
    seconds = []
    with cpu_kernels():
        for batch in todo:
            began = time.perf_counter()
            lengths = samples.tokens[batch.rows]
            [mine] = packing.cut(batch.rows, lengths, lengths, 1, config.micro_batch_tokens)
            micro = [
                MicroBatch.of(
                    packing.collate(part, samples.input_ids, samples.prompt_tokens),
                    [states[audio] for audio in samples.clips(part)],
                )
                for part in mine
            ]
            optimise(model, optimiser, micro, rate_at(config, batch), config.max_grad_norm)
            seconds.append(time.perf_counter() - began)
    return seconds


def compare_ray(data: Path, rounds: int) -> float:
    """Prints the second comparison and returns the samples that the trainer takes a second."""
    ray, bare = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = recipe(data, Path(folder) / "run")
            ray.append(median(ray_seconds(config)[WARM:]))
            bare.append(median(bare_seconds(config)[WARM:]))
    rate, core = config.batch_size / median(ray), config.batch_size / median(bare)
    print(f"Ray Train and DeepSpeed, one worker: {rate:.1f} samples/s, the core {core:.1f}: ratio {rate / core:.2f}")
    return rate


def compare_pipeline(data: Path, consumed: float) -> None:
    """Prints how fast samples become micro-batches, from files and with all clips kept, against what is consumed."""
    from balsa_ray.audio.decode import decode
    from balsa_ray.audio.features import log_mel
    from balsa_ray.training import batches
    from balsa_ray.training.clips import ClipCache, prefetch
    from balsa_ray.training.worker import make_processor

    config = recipe(data, Path("unused"))
    samples, extractor = encoded_samples(config), make_processor(config).feature_extractor
    spent = {"decode": 0.0, "log-mel": 0.0}

    def prepared(audio: str) -> Tensor:
        began = time.thread_time()
        clip = decode(audio)
        decoded = time.thread_time()
        mel = torch.from_numpy(log_mel(extractor, [clip]))
        spent["decode"] += decoded - began
        spent["log-mel"] += time.thread_time() - decoded
        return mel

    cache = ClipCache(prepared, capacity=10**10, threads=2)
    plan = list(batches.plan(config.seed, samples.ids, samples.kinds, config.stages[:1], config.batch_size))
    for title, steps in (("from files", plan[:40]), ("again, clips kept", plan[:40])):
        began = time.perf_counter()
        for batch, clips in prefetch(steps, lambda batch: samples.clips(batch.rows), cache, ahead=4):
            MicroBatch.of(packing.collate(batch.rows, samples.input_ids, samples.prompt_tokens), clips)
        rate = len(steps) * config.batch_size / (time.perf_counter() - began)
        print(f"input pipeline, {title}: {rate:.0f} samples/s, {rate / consumed:.1f} × what the trainer takes")
    clips = len({audio for batch in plan[:40] for audio in samples.clips(batch.rows)})
    print("  a clip: " + ", ".join(f"{part} {1000 * seconds / clips:.2f} ms" for part, seconds in spent.items()))
    cache.close()


if __name__ == "__main__":
    main()
