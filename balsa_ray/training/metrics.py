"""Metrics of a run: a line a step in `metrics.jsonl`, TensorBoard events, and the live line on the driver."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from balsa_ray.config import UserError
from balsa_ray.training.trackers import TrackerName, open_tracker

METRICS = "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the metrics of every step so far, in order; none if there is no file yet."""
    if not path.exists():
        return []
    # A killed writer may leave half a line at the end.
    return [json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


def rewind(path: Path, step: int) -> None:
    """Drops the metrics after `step`: the run goes on from the checkpoint that was written then."""
    kept = [line for line in read(path) if line["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
    partial.replace(path)


class MetricsWriter:
    """Writes the metrics of each step to `metrics.jsonl` and to TensorBoard. Only rank 0 has one."""

    def __init__(self, output: Path, step: int, trackers: Sequence[TrackerName] = (), recipe: str = "") -> None:
        """Opens the files, rewound to the checkpoint that the run goes on from.

        Args:
            output: OUTPUT of the run.
            step: The run goes on after this step; 0 at its start.
            trackers: Who else gets the numbers.
            recipe: Name of the recipe's file, for them.
        """
        from torch.utils.tensorboard import SummaryWriter

        path = output / METRICS
        rewind(path, step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._events = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)
        known = json.loads((output / recipe).read_text("utf-8")) if trackers else {}
        self._trackers = [open_tracker(name, output, known) for name in trackers]

    def write(self, line: dict[str, Any]) -> None:
        """Writes one step: `line["step"]`, numbers, texts and dicts of numbers.

        Raises:
            UserError: (exit code 1) The disk is full, or fails.
        """
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            reason = f"{self._file.name}: can't be written ({error}); the same command goes on from the last checkpoint"
            raise UserError(reason, exit_code=1) from error
        numbers = {
            f"{key}/{name}".rstrip("/"): number
            for key, value in line.items()
            for name, number in (value.items() if isinstance(value, dict) else [("", value)])
            if key != "step" and not isinstance(number, str)
        }
        for name, number in numbers.items():
            self._events.add_scalar(name, number, line["step"])
        for tracker in self._trackers:
            tracker.log(line["step"], numbers)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()
        for tracker in self._trackers:
            tracker.close()


def follow(path: Path, start: int, running: Callable[[], bool], poll: float = 0.5) -> Iterator[dict[str, Any]]:
    """Yields the metrics after step `start` as they appear in the file, until the run has ended.

    Args:
        path: `metrics.jsonl`.
        start: Steps up to here are passed over.
        running: Says whether more may come.
        poll: Seconds between two looks.
    """
    offset, last, known = 0, start, 0
    while True:
        more = running()
        if path.exists():
            with path.open(encoding="utf-8") as file:
                # Workers that went back to a checkpoint have put another file in its place, perhaps a longer one.
                if (number := os.fstat(file.fileno()).st_ino) != known:
                    offset, known = 0, number
                file.seek(offset)
                while (text := file.readline()).endswith("\n"):
                    offset = file.tell()
                    line = json.loads(text)
                    if line["step"] > last:
                        last = line["step"]
                        yield line
        if not more:
            return
        time.sleep(poll)


class LiveLine:
    """The line that shows where a run stands: rewritten in place on a terminal, else printed every few seconds."""

    def __init__(self, steps: int, stream: TextIO | None = None, interval: float = 10.0) -> None:
        """Args: steps of the run, where to print (stdout), seconds between two printed lines."""
        self._steps, self._interval = steps, interval
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._first: tuple[float, int] | None = None
        self._printed = 0.0

    def show(self, line: dict[str, Any]) -> None:
        """Shows the metrics of a step; what was found on held-out samples stays on a line of its own."""
        if "validation_loss" in line:
            text = f"train {line['step']}/{self._steps} loss on held-out recordings {line['validation_loss']:.3f}"
            self._stream.write(f"\r{text:<110}\n" if self._terminal else text + "\n")
        now = time.monotonic()
        self._first = self._first or (now, line["step"])
        last = line["step"] == self._steps
        if now - self._printed < (0.2 if self._terminal else self._interval) and not last:
            return
        self._printed = now
        done = line["step"] - self._first[1]
        left = (now - self._first[0]) / done * (self._steps - line["step"]) if done else float("nan")
        eta = f"{left // 60:.0f}:{left % 60:02.0f}" if done else "-"
        text = (
            f"train {line['step']}/{self._steps} {line['stage']}  loss {line['loss']:.3f}  lr {line['lr']:.1e}  "
            f"grad {line['grad_norm']:.2f}  {line['samples'] / line['seconds']:.0f} samples/s  "
            f"{line['tokens_per_second']:.0f} tokens/s  "
            + (f"MFU {line['mfu']:.0%}  " if "mfu" in line else "")
            + f"ETA {eta}"
        )
        self._stream.write(f"\r{text:<110}" + ("\n" if last else "") if self._terminal else text + "\n")
        self._stream.flush()
