"""Files of answers: what has been asked already, what was predicted, and predictions that others made."""

import fcntl
import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from balsa_ray.config import UserError
from balsa_ray.evaluation.questions import Answer, Question

if TYPE_CHECKING:
    from balsa_ray.evaluation.tasks import Task

_OWN_COLUMNS = {
    *("id", "split", "also", "clips", "audio", "prompt", "object"),
    *("response", "parsed", "reference", "correct", "judgement"),
}


class AnswerFile:
    """Replies by key, appended as they come, so that a killed run loses only what was under way.

    Files beside it with the same beginning (`answers.1-of-4.jsonl`) are read too: those of other parts of the run.

    The key says everything that a reply depends on (clip content, prompt, decoding, model), so a file may hold the
    answers of several models, and nothing in it ever goes stale; of an endpoint that doesn't publish its weights' hash
    only the address and the model's name are known.

    Args:
        path: JSON Lines with `key` and `response`; made if it isn't there. A line cut short by a kill is dropped.

    Raises:
        UserError: If another line is not such a row, or another process is writing there.
    """

    def __init__(self, path: Path) -> None:
        self._known: dict[str, str] = {}
        for other in sorted(path.parent.glob(f"{path.name.partition('.')[0]}.*jsonl")):
            if other != path:
                self._read(other)
        whole = self._read(path) if path.exists() else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another run is writing there", exit_code=1) from error
        self._file.truncate(whole)

    def _read(self, path: Path) -> int:
        """Reads a file and returns the length of its whole lines in bytes."""
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                if not isinstance(row["response"], str):
                    raise TypeError("response: no text")
                self._known[row["key"]] = row["response"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: not an answer; delete the line or the file") from error
        return whole

    def __enter__(self) -> Self:
        """Returns the open file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes it."""
        self._file.close()

    def get(self, key: str) -> str | None:
        """Returns the reply of this key, if there is one."""
        return self._known.get(key)

    def add(self, key: str, response: str) -> None:
        """Stores a reply, in the file before in memory."""
        self._file.write(json.dumps({"key": key, "response": response}, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._known[key] = response


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON Lines in one step: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.replace(path)


def prediction(task: "Task", answer: Answer) -> dict[str, Any]:
    """Returns an answer as a row of `predictions.jsonl`; `audio` is one path, or a list if there are several clips."""
    question, parsed = answer.question, task.parse(answer)
    audio = [audio_name(clip) for clip in question.clips]
    return {
        "id": question.id,
        "split": question.split,
        **({"also": list(question.also)} if question.also else {}),
        "clips": [clip["id"] for clip in question.clips],
        "audio": audio[0] if len(audio) == 1 else audio,
        "prompt": question.prompt,
        "object": question.object,
        "response": answer.response,
        "parsed": parsed,
        "reference": question.reference,
        "correct": task.correct(answer, parsed),
        **({} if answer.judgement is None else {"judgement": answer.judgement}),
        **question.extra,
    }


def audio_name(clip: dict[str, Any]) -> str:
    """Returns what names a clip's recording: its path, or its id if it is stored in the manifest."""
    audio = clip["audio"]
    return str((audio.get("path") or clip["id"]) if isinstance(audio, dict) else audio)


def read_predictions(path: Path) -> list[Answer]:
    """Reads a predictions file: ours, or one that others made, with `id, audio, prompt, response, reference`.

    Columns that are none of ours are kept for scorers that read them.

    Raises:
        UserError: If the file can't be read, or a row isn't such a row; file, row and column are named.
    """
    try:
        lines = path.read_text("utf-8").split("\n")  # other ends of lines stand in replies
    except (OSError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise UserError(f"predictions: {path}: {reason}") from error
    answers, seen = [], set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        answer = _answer(row, where)
        if answer.question.id in seen:
            raise UserError(f"{where}: id: {answer.question.id!r} stands twice")
        seen.add(answer.question.id)
        answers.append(answer)
    if not answers:
        raise UserError(f"{path}: holds no predictions")
    return answers


def _answer(row: Any, where: str) -> Answer:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object")
    for column in ("id", "audio", "prompt", "response", "reference"):
        if column not in row:
            raise UserError(f"{where}: {column}: missing")
    if not isinstance(row["response"], str):
        raise UserError(f"{where}: response: must be text, not {type(row['response']).__name__}")
    audio = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
    if not audio or not all(isinstance(path, str) and path for path in audio):
        raise UserError(f"{where}: audio: must be a path or a list of paths, not {row['audio']!r:.80}")
    names = row.get("clips") or audio
    if not _texts(names) or len(names) != len(audio):
        raise UserError(f"{where}: clips: must be {len(audio)} ids, as audio has, not {names!r:.80}")
    for column in ("choices", "also"):
        if row.get(column) is not None and not _texts(row[column]):
            raise UserError(f"{where}: {column}: must be a list of texts, not {row[column]!r:.80}")
    if not isinstance(row.get("judgement"), str | None):
        raise UserError(f"{where}: judgement: must be text, not {row['judgement']!r:.80}")
    question = Question(
        id=str(row["id"]),
        split=str(row.get("split") or "all"),
        clips=tuple({"id": name, "audio": path} for name, path in zip(names, audio, strict=True)),
        prompt=str(row["prompt"]),
        reference=row["reference"],
        object=str(row.get("object") or ""),
        choices=tuple(row.get("choices") or ()),
        also=tuple(row.get("also") or ()),
        extra={column: value for column, value in row.items() if column not in _OWN_COLUMNS},
    )
    return Answer(question, row["response"].encode("utf-8", "replace").decode(), row.get("judgement"))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
