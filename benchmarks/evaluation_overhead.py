"""How much does the benchmark client cost beside the model: planning, and requests to an endpoint that answers at once?

    python benchmarks/evaluation_overhead.py [--clips 200] [--rounds 3]

1. Planning: the questions of `existence` about 957 clips with 3,022 labels of 245 kinds, as many as in the published
   audio object-hallucination benchmark; and the time for its 30,220.
2. Requests a second of the runner, reading, encoding and storing included, against bare aiohttp that sends the same
   bodies, made before, with as many at once. The endpoint is a process of its own that reads a request and answers with
   the same bytes; each question is asked about a clip of 4 s in FLAC.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import soundfile

from balsa_ray.evaluation.config import BenchmarkConfig
from balsa_ray.evaluation.messages import load_span, user_message
from balsa_ray.evaluation.questions import Question
from balsa_ray.evaluation.runner import _ask_all
from balsa_ray.evaluation.tasks import existence
from balsa_ray.schema import read_manifest

CLIPS, KINDS, LABELS, PUBLISHED = 957, 245, 3022, 30_220
QUESTIONS = 30
CONCURRENCY = 32
REPLY = json.dumps({"choices": [{"message": {"role": "assistant", "content": "No."}, "finish_reason": "stop"}]})
CARD = json.dumps({"data": [{"id": "stub", "metadata": {"fingerprint": "none"}}]})


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(_serve())
        return
    _plan(arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        manifest = _manifest(Path(folder), arguments.clips)
        server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            _requests(f"http://127.0.0.1:{server.stdout.readline().strip()}", manifest, arguments.rounds)
        finally:
            server.kill()


def _plan(rounds: int) -> None:
    draw = np.random.default_rng(0)
    names = np.array([f"sound {number}" for number in range(KINDS)])
    weights = 1 / np.arange(1, KINDS + 1)
    sizes = draw.multinomial(LABELS - CLIPS, [1 / CLIPS] * CLIPS) + 1
    clips = [
        {
            "id": f"clip-{number}",
            "audio": f"{number}.flac",
            "tags": draw.choice(names, size, replace=False, p=weights / weights.sum()).tolist(),
        }
        for number, size in enumerate(sizes.tolist())
    ]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        planned = len(existence.plan(clips, 0))
        seconds.append(time.perf_counter() - began)
    each = median(seconds) / planned
    print(f"planning: {planned:,} questions about {CLIPS} clips in {median(seconds):.2f} s", flush=True)
    print(f"  {PUBLISHED:,} of them: {PUBLISHED * each:.2f} s; target below 5")


def _manifest(folder: Path, clips: int) -> Path:
    draw = np.random.default_rng(0)
    path = folder / "clips.jsonl"
    with path.open("w") as file:
        for number in range(clips):
            soundfile.write(folder / f"{number}.flac", draw.normal(0, 0.05, 64_000).astype(np.float32), 16_000)
            file.write(json.dumps({"id": f"{number}", "audio": f"{number}.flac", "tags": ["noise"]}) + "\n")
    return path


def _requests(url: str, manifest: Path, rounds: int) -> None:
    clips = read_manifest(manifest)
    questions = [
        Question(f"{clip['id']} {number}", "all", (clip,), f"Question {number}?", "no")
        for clip in clips
        for number in range(QUESTIONS)
    ]
    bodies = []
    for clip in clips:
        span = load_span(clip, "audio", "tags")
        for number in range(QUESTIONS):
            message = user_message([span], f"Question {number}?")
            bodies.append(json.dumps({"model": "stub", "messages": [message]}).encode())
    ours, bare, spent = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as output:
            config = BenchmarkConfig(
                output=Path(output), tasks=["existence"], data_root=manifest, endpoint=url, concurrency=CONCURRENCY
            )
            began, cpu = time.perf_counter(), time.process_time()
            outcomes, _ = asyncio.run(_ask_all({"existence": questions}, config))
            ours.append(len(questions) / (time.perf_counter() - began))
            spent.append(1000 * (time.process_time() - cpu) / len(questions))
            assert len(outcomes["existence"].answers) == len(questions)
        began = time.perf_counter()
        asyncio.run(_bare(url, bodies))
        bare.append(len(bodies) / (time.perf_counter() - began))
    size = sum(map(len, bodies)) / len(bodies) / 2**10
    print(f"requests: {len(questions):,} of {size:.0f} KiB, {CONCURRENCY} at once, medians of {rounds} rounds")
    print(f"  runner {median(ours):,.0f}/s ({median(spent):.2f} ms of CPU each); target 2,000")
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    print(f"  bare aiohttp {median(bare):,.0f}/s: ratio {median(ratios):.2f}")


async def _bare(url: str, bodies: list[bytes]) -> None:
    free = asyncio.Semaphore(CONCURRENCY)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:

        async def ask(body: bytes) -> None:
            async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                await response.read()
            free.release()

        async with asyncio.TaskGroup() as requests:
            for body in bodies:
                await free.acquire()
                requests.create_task(ask(body))


class _Stub(asyncio.Protocol):
    """Reads requests of HTTP/1.1 with a length, as fast as Python can, and answers all alike."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._head, self._left = transport, b"", 0

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
                if not self._left:
                    self._answer(REPLY)
                continue
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            self._head = b""
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            self._left = int(length[0].split(b":")[1]) if length else 0
            if not self._left:
                self._answer(CARD)

    def _answer(self, body: str) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write((head + body).encode())


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    os.environ.pop("BALSA_API_KEY", None)
    main()
