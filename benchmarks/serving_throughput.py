"""How many questions about clips does the endpoint answer a second, and how long does a client wait for one?

    python benchmarks/serving_throughput.py [--model MODEL_DIRECTORY] [--scale 0.2] [--rounds 3]

1. Bulk: `server.start` and an `Endpoint` with bounded concurrency, against bare `vllm.LLM.chat` with the same engine
   settings and messages (with the engine in its own process and without: the faster one counts) and against
   transformers' `generate`, one question at a time (on one thread and on two: the faster one counts).
2. Thirty questions about each of 50 clips, against as many questions about as many clips: is a clip encoded once?
   `--scale` shrinks both. Each round has clips of its own, since the engines remember those of the last one.
3. Latency of single questions, each about a new clip, that arrive by chance (Poisson) at 25, 50, 100 and 400 % of the
   bulk rate of such questions; it is counted from when a question was due, so that a late client counts too.

Rounds alternate between the servers, start-up counts for none; medians are told. Client and server share the machine.
Without `--model` or the demo's, a model of the packaged miniature with an untrained connector is asked.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np

from balsa_ray.endpoint import KEY_VARIABLE, Endpoint
from balsa_ray.engine import EngineConfig, cpu_environment, engine_arguments
from balsa_ray.evaluation.messages import load_span, user_message
from balsa_ray.identity import rng, shuffled
from balsa_ray.prompts.render import prompts
from balsa_ray.schema import read_manifest

DEMO = Path("outputs/demo/training/model")
CLIPS, QUESTIONS = 50, 30
MAX_TOKENS = 48
SEQUENCES = 64
CONCURRENCY = SEQUENCES + SEQUENCES // 4  # what the server takes at once
HF_QUESTIONS = 12
WARM = 150
RAYS_NICENESS = 15  # of each worker process
LOADS = {0.25: 100, 0.5: 150, 1.0: 300, 4.0: 1200}  # and how many questions are sent at it
ONE_PROCESS, TWO_PROCESSES = "LLM.chat", "LLM.chat, engine apart"
REPEATED, DISTINCT = f"{QUESTIONS} questions a clip", "a clip a question"
CACHES = "mm_cache", "prefix_cache"  # processed clips, and beginnings of prompts in tokens
COUNTS = [f"{cache}_{what}" for cache in CACHES for what in ("queries", "hits")]
PARTS = ("ProxyActor", ":Endpoint", ":LLMServer", "EngineCore")
Message = dict[str, Any]
Answerer = Callable[[list[Message]], dict[str, int]]


def main() -> None:
    """Prints the bulk rates, then the latencies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: the demo's, if it is there")
    parser.add_argument("--scale", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-waiting", type=int, help="of the server; default: its own")
    parser.add_argument("--baseline", choices=BASELINES, help=argparse.SUPPRESS)  # a baseline's own process
    arguments = parser.parse_args()
    if arguments.baseline:
        os.nice(RAYS_NICENESS)  # so that what else runs on the machine delays both alike
        _work(BASELINES[arguments.baseline](arguments.model))
        return
    os.environ.setdefault(KEY_VARIABLE, secrets.token_urlsafe(24))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = arguments.model or (DEMO if DEMO.is_dir() else _assembled(folder / "model"))
        print(f"model: {'miniature, untrained connector' if folder in model.parents else model}", flush=True)
        repeated = max(1, round(CLIPS * arguments.scale))
        # Before Ray starts: they are drawn by forked processes.
        clips = _Clips(folder, arguments.rounds * repeated * (1 + QUESTIONS) + WARM + sum(LOADS.values()))
        url = _serve(model, folder, arguments.max_waiting, stack)
        baselines = {name: stack.enter_context(_Baseline(name, model, folder)) for name in BASELINES}
        rate = _bulk(url, clips, baselines, arguments.rounds, repeated)
        for baseline in baselines.values():
            baseline.close()
        asyncio.run(_latencies(url, clips, rate))


def _assembled(path: Path) -> Path:
    """Writes a model whose LLM and encoder are the packaged ones and whose connector only knows its shape."""
    from balsa_ray.model.modeling import BalsaForConditionalGeneration
    from balsa_ray.model.processing import BalsaProcessor

    bases = "miniature:backbone", "miniature:encoder"
    shape: dict[str, Any] = {
        "num_query_tokens": 12,
        "audio_begin": "[Begin of audio]",
        "audio_end": " [End of audio]",
    }
    BalsaForConditionalGeneration.assemble(*bases, **shape).save_pretrained(path)
    BalsaProcessor.assemble(*bases, **shape).save_pretrained(path)
    return path


class _Clips:
    """Soundscapes of 4 s as FLAC, each handed out once."""

    def __init__(self, folder: Path, clips: int) -> None:
        from balsa_ray.miniature.lexicon import lexicon
        from balsa_ray.miniature.soundscapes import write_corpus

        for _ in write_corpus(folder, 0, "bench", clips):
            pass
        self._next = iter([load_span(clip, "audio", "tags") for clip in read_manifest(folder / "bench.jsonl")])
        self._questions = [prompt.text for prompt in prompts() if prompt.clips == 1]
        self._questions += [f"Is there a sound of {label} in the audio?" for label in lexicon().labels]

    def ask(self, clips: int, questions: int) -> list[Message]:
        """Returns that many questions about each of so many new clips, those of a clip together."""
        messages = []
        for clip in islice(self._next, clips):
            order = shuffled(0, ("questions", clip.key), self._questions)
            messages += [user_message([clip], question) for question in order[:questions]]
        return messages


def _engine() -> dict[str, Any]:
    return {"device": "cpu", "dtype": "float32", "max_model_len": 512, "max_num_seqs": SEQUENCES}


def _serve(model: Path, folder: Path, max_waiting: int | None, stack: ExitStack) -> str:
    from balsa_ray.serving.config import ServeConfig
    from balsa_ray.serving.server import start

    settings = {"output": folder / "serving", "port": 0, "max_waiting": max_waiting, "engine": _engine()}
    server = start(ServeConfig.model_validate({"model": str(model), **settings}))
    stack.callback(server.stop)
    return server.url


class _Baseline:
    """A baseline in a process of its own, which answers the messages of a file whenever it is told to."""

    def __init__(self, name: str, model: Path, folder: Path) -> None:
        self._folder = folder
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
        if name != "generate":
            from balsa_ray.vllm_plugin.register import MEDIA_CONNECTOR

            environment |= cpu_environment(EngineConfig(**_engine())) | {"VLLM_MEDIA_CONNECTOR": MEDIA_CONNECTOR}
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(name == TWO_PROCESSES))
        command = [sys.executable, __file__, "--baseline", name, "--model", str(model)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "_Baseline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, messages: list[Message]) -> dict[str, Any]:
        """Returns the rate, the CPU time of a question in ms, and what the baseline counted."""
        file = self._folder / "messages.json"
        file.write_text(json.dumps(messages))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = sum(_cpu_seconds(self._process.pid).values())
        self._process.stdin.write(f"{file}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a baseline ended with {self._process.wait()}")
        found = json.loads(line)
        cpu = 1000 * (sum(_cpu_seconds(self._process.pid).values()) - before) / len(messages)
        return {"rate": len(messages) / found.pop("seconds"), "cpu": cpu, **found}

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _work(answer: Answerer) -> None:
    """Answers files named on standard input, and writes to what was standard output before libraries wrote to it."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        messages = json.loads(Path(line.strip()).read_text())
        began = time.perf_counter()
        found = answer(messages)
        print(json.dumps({"seconds": time.perf_counter() - began, **found}), file=out, flush=True)


def _vllm(model: Path) -> Answerer:
    from vllm import LLM, SamplingParams

    from balsa_ray.vllm_plugin.model import BalsaForConditionalGeneration as Model
    from balsa_ray.vllm_plugin.register import check_registered

    check_registered()
    encoded, embed = 0, Model.embed_multimodal

    def counted(self: Any, **kwargs: Any) -> Any:
        nonlocal encoded
        embeddings = embed(self, **kwargs)
        encoded += len(embeddings)
        return embeddings

    Model.embed_multimodal = counted
    arguments = engine_arguments(EngineConfig(**_engine()), gpu=False)
    llm = LLM(str(model), disable_log_stats=False, limit_mm_per_prompt={"audio": 1}, **arguments)
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)

    def answer(messages: list[Message]) -> dict[str, int]:
        before = _counts(llm) | {"encoded": encoded}
        replies = llm.chat(
            [[message] for message in messages], sampling, use_tqdm=False, chat_template_content_format="openai"
        )
        after = _counts(llm) | {"encoded": encoded}
        tokens = sum(len(reply.outputs[0].token_ids) for reply in replies)
        return {"tokens": tokens, **{name: after[name] - before[name] for name in after}}

    return answer


def _counts(llm: Any) -> dict[str, int]:
    """Returns what vLLM counted of the caches for clips and for beginnings of prompts."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return {name: int(values[f"vllm:{name}"]) for name in COUNTS}


def _generate(model_path: Path) -> Answerer:
    import torch

    from balsa_ray.audio.decode import decode
    from balsa_ray.model.modeling import BalsaForConditionalGeneration
    from balsa_ray.model.processing import BalsaProcessor

    model = BalsaForConditionalGeneration.from_pretrained(model_path)
    processor = BalsaProcessor.from_pretrained(model_path)
    runs = 0

    def answer(messages: list[Message]) -> dict[str, int]:
        nonlocal runs
        torch.set_num_threads(1 + runs % 2)
        runs += 1
        tokens = 0
        for message in messages:
            clip, question = message["content"]
            audio = decode(base64.b64decode(clip["input_audio"]["data"]))
            inputs = processor(text=processor.prompt_text(question["text"], 1), audio=[audio])
            reply = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
            tokens += reply.shape[1] - inputs["input_ids"].shape[1]
        return {"tokens": tokens}

    return answer


BASELINES: dict[str, Callable[[Path], Answerer]] = {ONE_PROCESS: _vllm, TWO_PROCESSES: _vllm, "generate": _generate}


def _cpu_seconds(pid: int) -> dict[str, float]:
    """Returns the CPU time so far of a process (`client`) and of what it started, by the parts of a server."""
    import psutil

    root = psutil.Process(pid)
    spent: dict[str, float] = defaultdict(float)
    for process in [root, *root.children(recursive=True)]:
        try:
            name, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        part = next((part for part in PARTS if part in name), "rest of Ray")
        spent["client" if process is root else part] += times.user + times.system
    return spent


async def _ask(url: str, messages: Sequence[Message]) -> dict[str, Any]:
    """Asks all, as a benchmark of ours does; returns the rate, the tokens and the CPU time of a question in ms."""
    sampling = {"temperature": 0.0, "max_tokens": MAX_TOKENS}
    free, tokens = asyncio.Semaphore(CONCURRENCY), 0

    async def ask(endpoint: Endpoint, message: Message) -> None:
        nonlocal tokens
        try:
            answer = await endpoint.ask([message])
            tokens += answer.response_tokens
        finally:
            free.release()

    before = _cpu_seconds(os.getpid())
    async with Endpoint(
        url,
        key=os.environ[KEY_VARIABLE],
        name="balsa",
        sampling=sampling,
        concurrency=CONCURRENCY,
        attempts=6,
        timeout_s=120,
    ) as endpoint:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            for message in messages:
                await free.acquire()
                requests.create_task(ask(endpoint, message))
        seconds = time.perf_counter() - began
    spent = {part: 1000 * (now - before[part]) / len(messages) for part, now in _cpu_seconds(os.getpid()).items()}
    return {"rate": len(messages) / seconds, "tokens": tokens, "parts": spent, "cpu": sum(spent.values())}


async def _exported(url: str, clips: int) -> Counter[str]:
    """Returns the server's counts once they include so many clips: Ray exports them every few seconds."""
    headers = {"Authorization": f"Bearer {os.environ[KEY_VARIABLE]}"}
    counts: Counter[str] = Counter()
    async with aiohttp.ClientSession(headers=headers) as session:
        for _ in range(60):
            async with session.get(f"{url}/metrics") as response:
                text = await response.text()
            counts = Counter()
            for name, value in re.findall(
                r"^ray_vllm_(\w+_cache_(?:queries|hits))(?:_total)?\{.*\} (\S+)$", text, re.M
            ):
                counts[name] += int(float(value))
            if counts["mm_cache_queries"] >= clips:
                break
            await asyncio.sleep(0.5)
    return counts


def _bulk(url: str, clips: _Clips, baselines: dict[str, _Baseline], rounds: int, repeated: int) -> float:
    """Prints the first two comparisons and returns the server's rate of questions about a clip each."""
    warm = clips.ask(WARM, 1)
    asyncio.run(_ask(url, warm))
    for baseline in baselines.values():
        baseline.answer(warm[:2])
        baseline.answer(warm)
    asked = len(warm)
    seen = asyncio.run(_exported(url, asked))
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for _ in range(rounds):
        for work, shape in ((REPEATED, (repeated, QUESTIONS)), (DISTINCT, (repeated * QUESTIONS, 1))):
            messages = clips.ask(*shape)
            ours = asyncio.run(_ask(url, messages))
            for name in (ONE_PROCESS, TWO_PROCESSES):
                found[work, name].append(baselines[name].answer(messages))
            for threads in (1, 2):
                found[work, f"generate, threads: {threads}"].append(
                    baselines["generate"].answer(messages[:HF_QUESTIONS])
                )
            asked += len(messages)
            before, seen = seen, asyncio.run(_exported(url, asked))
            found[work, "server"].append(ours | {name: seen[name] - before[name] for name in COUNTS})
    for work in (REPEATED, DISTINCT):
        _tell(work, repeated * QUESTIONS, {name: runs for (of, name), runs in found.items() if of == work})
    gain = {
        name: _middle(found[REPEATED, name], "rate") / _middle(found[DISTINCT, name], "rate")
        for name in ("server", ONE_PROCESS)
    }
    print(f"{REPEATED} against {DISTINCT}: server {gain['server']:.2f}, {ONE_PROCESS} {gain[ONE_PROCESS]:.2f} as fast")
    return _middle(found[DISTINCT, "server"], "rate")


def _middle(runs: list[dict[str, Any]], key: str) -> float:
    return float(median(run[key] for run in runs))


def _tell(work: str, questions: int, found: dict[str, list[dict[str, Any]]]) -> None:
    """Prints what came of one kind of work."""
    print(f"\n{questions} questions, {work} (medians of {len(found['server'])} rounds)")
    print(f"  {'':24}{'questions/s':>12}{'tokens each':>13}{'CPU ms each':>13}{'clips encoded':>15}")
    for name, runs in found.items():
        asked = HF_QUESTIONS if name.startswith("generate") else questions
        # The engine in another process is out of reach of what counts.
        encoded = f"{_middle(runs, 'encoded'):.0f}" if name == ONE_PROCESS else "not counted"
        tokens = _middle(runs, "tokens") / asked
        print(f"  {name:24}{_middle(runs, 'rate'):12.1f}{tokens:13.1f}{_middle(runs, 'cpu'):13.1f}{encoded:>15}")
    for name in ("server", ONE_PROCESS):
        counts = [
            f"{cache} {_middle(found[name], f'{cache}_hits'):.0f} of {_middle(found[name], f'{cache}_queries'):.0f}"
            for cache in CACHES
        ]
        print(f"  hits of {name}: {', '.join(counts)}")
    parts = {part for run in found["server"] for part in run["parts"]}
    spent = {part: float(median(run["parts"].get(part, 0.0) for run in found["server"])) for part in parts}
    print("  CPU ms of a question: " + ", ".join(f"{part} {spent[part]:.1f}" for part in sorted(spent)))
    _ratio(found, (ONE_PROCESS, TWO_PROCESSES), 0.8)
    _ratio(found, tuple(name for name in found if name.startswith("generate")), 5.0)


def _ratio(found: dict[str, list[dict[str, Any]]], names: tuple[str, ...], target: float) -> None:
    """Prints the ratio to the fastest of some baselines, round by round."""
    if names:
        best = max(names, key=lambda name: _middle(found[name], "rate"))
        ratios = [ours["rate"] / theirs["rate"] for ours, theirs in zip(found["server"], found[best], strict=True)]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"  server against {best}: ratio {median(ratios):.2f} ({rounds}); target {target}", flush=True)


@dataclass(frozen=True)
class Reply:
    """One question of a load: its status, its latency, and how late the client sent it (seconds)."""

    status: int
    latency: float
    late: float


async def _latencies(url: str, clips: _Clips, rate: float) -> None:
    """Prints the third part."""
    print(f"\nlatency, {DISTINCT}; 100 % are {rate:.1f} questions/s")
    columns = {"load": 6, "sent": 7, "answered/s": 12, "p50": 9, "p99": 9, "429": 6, "p50 ": 9, "p99 ": 9}
    print("  " + "".join(f"{name.strip():>{width}}" for name, width in columns.items()) + "  client late, p99")
    p99, others = {}, Counter[int]()
    for load, number in LOADS.items():
        replies, seconds = await _open_loop(url, clips.ask(number, 1), rate * load, f"load {load}")
        answered = [reply.latency for reply in replies if reply.status == 200]
        refused = [reply.latency for reply in replies if reply.status == 429]
        others.update(reply.status for reply in replies if reply.status not in (200, 429))
        p99[load] = _percentile(answered, 99), _percentile(refused, 99)
        print(
            f"  {load:6.0%}{number:7}{len(answered) / seconds:12.1f}"
            f"{_ms(_percentile(answered, 50))}{_ms(p99[load][0])}{len(refused):6}"
            f"{_ms(_percentile(refused, 50))}{_ms(p99[load][1])}{_ms(_percentile([r.late for r in replies], 99)):>18}",
            flush=True,
        )
    print(f"  p99 of the answered at 400 % against 100 %: {p99[4.0][0] / p99[1.0][0]:.2f}; target at most 2")
    print(f"  p99 of the refused: {1000 * p99[4.0][1]:.0f} ms; target at most 100")
    if others:
        print(f"  other statuses: {dict(others)}")


async def _open_loop(url: str, messages: list[Message], rate: float, key: str) -> tuple[list[Reply], float]:
    """Sends each question when it is due, whatever has become of the others; returns the replies and the seconds."""
    fields = {"model": "balsa", "temperature": 0.0, "max_tokens": MAX_TOKENS}
    bodies = [json.dumps({**fields, "messages": [message]}).encode() for message in messages]
    due = np.cumsum(rng(0, key).exponential(1 / rate, len(bodies))).tolist()
    headers = {"Authorization": f"Bearer {os.environ[KEY_VARIABLE]}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        began = time.perf_counter()

        async def ask(body: bytes, at: float) -> Reply:
            await asyncio.sleep(began + at - time.perf_counter())
            late = time.perf_counter() - began - at
            async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                await response.read()
            return Reply(response.status, time.perf_counter() - began - at, late)

        replies = await asyncio.gather(*map(ask, bodies, due))
        return replies, time.perf_counter() - began


def _percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def _ms(seconds: float) -> str:
    return f"{'-':>9}" if seconds != seconds else f"{1000 * seconds:6.0f} ms"


if __name__ == "__main__":
    main()
