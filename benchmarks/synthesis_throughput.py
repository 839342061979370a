"""How many tokens a second does a synthesis write, against bare `vllm.LLM.chat` on the same prompts?

    python benchmarks/synthesis_throughput.py [--clips 6000] [--rounds 3] [--model miniature:backbone]

Labels of clips are drawn, no recording is opened. Every round runs a whole synthesis (plan, vLLM, gates, Parquet) and
then, in a process of its own, `LLM.chat` with the same engine settings on the prompts that the synthesis wrote down.
Start-up counts for neither. The synthesis is timed by the files that it writes, between 15 % and 85 % of the tokens;
the baseline by the whole call, once it is warm. The aim is a ratio of 0.9. `LLM.chat` is also given the prompts in a
drawn order instead of those of a clip together, and says how many tokens its prefix cache spared it: with metadata
twelve times as long, since the miniature's are shorter than a block of the cache, and
with a cache of 4096 blocks of 32 tokens, which holds what is being decoded but not the whole corpus.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from balsa_ray.checkpoints import resolve
from balsa_ray.engine import EngineConfig, cpu_environment, engine_arguments
from balsa_ray.identity import rng, shuffled
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.prompts.render import span, user_content
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.pipeline import synthesize

MOST_TOKENS = 64
LONGER = 12
CACHE_BLOCKS = 4096
STEADY = (0.15, 0.85)


def main() -> None:
    """Prints a line a round, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="miniature:backbone")
    parser.add_argument("--chat", type=Path, help=argparse.SUPPRESS)  # the baseline's own process
    arguments = parser.parse_args()
    if arguments.chat:
        _chat(arguments.chat, arguments.model)
        return
    rounds = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rate = _synthesis(folder, arguments.clips, arguments.model)
            chat = _baseline(folder, arguments.model)
        rounds.append({"ours": rate, **chat})
        print(f"round {number + 1}: synthesis {rate:,.0f} tokens/s, LLM.chat {chat['adjacent']:,.0f}", flush=True)
    middle = {name: statistics.median(round_[name] for round_ in rounds) for name in rounds[0]}
    ratio = statistics.median(round_["ours"] / round_["adjacent"] for round_ in rounds)
    order = statistics.median(round_["adjacent, long"] / round_["shuffled, long"] for round_ in rounds)
    print(f"tokens/s: synthesis {middle['ours']:,.0f}, baseline LLM.chat {middle['adjacent']:,.0f}; ratio {ratio:.3f}")
    print(
        f"prompts of a clip together against in a drawn order: {order:.3f} times as fast; the prefix cache had "
        f"{middle['adjacent, hits']:.1%} of the tokens against {middle['shuffled, hits']:.1%}"
    )


def _synthesis(folder: Path, clips: int, model: str) -> float:
    labels = lexicon().labels
    with (folder / "clips.jsonl").open("w") as file:
        for i in range(clips):
            draw = rng(0, "clip", i)
            tags = [labels[n] for n in sorted({*draw.integers(len(labels), size=int(draw.integers(1, 4))).tolist()})]
            file.write(json.dumps({"id": f"clip-{i}", "audio": f"{i}.flac", "tags": tags}) + "\n")
    settings: dict[str, Any] = {"sampling": {"max_tokens": MOST_TOKENS}, "engine": _engine().model_dump()}
    synthesize(
        SynthesizeConfig(
            output=folder / "data",
            input=folder / "clips.jsonl",
            model=model,
            labels="lexicon",
            audio_check="none",
            **settings,
        )
    )
    written = []
    for file in folder.glob("data/*/*.parquet"):
        tokens = sum(pq.read_table(file, columns=["response_tokens"])["response_tokens"].to_pylist())
        written.append((file.stat().st_mtime, tokens))
    written.sort()
    total, so_far, times = sum(tokens for _, tokens in written), 0, []
    for at, tokens in written:
        so_far += tokens
        if STEADY[0] <= so_far / total <= STEADY[1]:
            times.append((at, so_far))
    (first, before), (last, after) = times[0], times[-1]
    return (after - before) / (last - first)


def _baseline(folder: Path, model: str) -> dict[str, float]:
    environment = {**os.environ, **cpu_environment(_engine()), "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, __file__, "--chat", str(folder / "data"), "--model", model]
    process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def _chat(data: Path, model: str) -> None:
    """Prints what the baseline reaches, as JSON."""
    from vllm import LLM, SamplingParams

    rows = [row for name in ("samples", "rejected") for row in _rows(data / name)]
    rows.sort(key=lambda row: (row["clip_ids"], row["prompt_id"]))
    arguments = engine_arguments(_engine(), gpu=False)
    sampling = SamplingParams(temperature=0.0, max_tokens=MOST_TOKENS)
    found: dict[str, float] = {}
    for blocks, orders in (
        ({}, ("adjacent",)),
        ({"block_size": 32, "num_gpu_blocks_override": CACHE_BLOCKS}, ("adjacent", "shuffled")),
    ):
        llm = LLM(str(resolve(model)), disable_log_stats=False, **arguments, **blocks)
        repeat = LONGER if blocks else 1
        llm.chat(_conversations(rows[:512], repeat), sampling, use_tqdm=False)
        for order in orders:
            conversations = _conversations(rows if order == "adjacent" else shuffled(0, ("order",), rows), repeat)
            llm.reset_prefix_cache()
            asked, hit = _cached(llm)
            start = time.perf_counter()
            replies = llm.chat(conversations, sampling, use_tqdm=False)
            seconds = time.perf_counter() - start
            rate = sum(len(reply.outputs[0].token_ids) for reply in replies) / seconds
            if blocks:
                now_asked, now_hit = _cached(llm)
                found[f"{order}, long"] = rate
                found[f"{order}, hits"] = (now_hit - hit) / (now_asked - asked)
            else:
                found[order] = rate
        del llm
    print(json.dumps(found))


def _cached(llm: Any) -> tuple[int, int]:
    """Returns the tokens that were looked for in the prefix cache, and those that were found."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if "prefix_cache" in metric.name}
    return values["vllm:prefix_cache_queries"], values["vllm:prefix_cache_hits"]


def _rows(folder: Path) -> list[dict[str, Any]]:
    columns = ["clip_ids", "prompt_id", "metadata", "prompt"]
    return [row for file in folder.glob("*.parquet") for row in pq.read_table(file, columns=columns).to_pylist()]


def _conversations(rows: list[dict[str, Any]], repeat: int) -> list[list[dict[str, str]]]:
    turns = (
        user_content([span(", ".join([text] * repeat)) for text in row["metadata"]], row["prompt"]) for row in rows
    )
    return [[{"role": "user", "content": turn}] for turn in turns]


def _engine() -> EngineConfig:
    return EngineConfig(dtype="float32", max_model_len=512)


if __name__ == "__main__":
    main()
