"""Pages, tables and audio players. Whatever is not `Markup` is escaped: replies of a model are text, never HTML."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_RATE = 16_000
MEDIA_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: The heading.
        parts: HTML as made by this package, or plain text.
    """

    title: str
    parts: Sequence[str | Markup]


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns a whole HTML document that needs no other file and no network."""
    environment = Environment(
        loader=PackageLoader("balsa_ray.reporting", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.jinja").render(title=title, lead=lead, sections=sections)


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Writes a page in one step: a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(page(title, lead, sections), "utf-8")
    partial.replace(path)


def paragraph(text: str) -> Markup:
    """Returns a paragraph of plain text."""
    return Markup("<p>{}</p>").format(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str | Markup]]) -> Markup:
    """Returns a table; cells are plain text or markup. Without a header it has none."""
    cells = Markup("").join(Markup("<th>{}</th>").format(cell) for cell in header)
    head = Markup("<tr>{}</tr>").format(cells) if header else ""
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row))
        for row in rows
    )
    return Markup('<div class="wide"><table>{}{}</table></div>').format(head, body)


def audio_player(path: Path) -> Markup:
    """Returns a player with the file's own bytes inside.

    Raises:
        ValueError: If the file is of a kind that browsers don't play.
    """
    if path.suffix.lower() not in MEDIA_TYPES:
        raise ValueError(f"{path}: browsers play {', '.join(MEDIA_TYPES)}")
    return _player(path.read_bytes(), MEDIA_TYPES[path.suffix.lower()])


def recording_player(
    audio: str | bytes, max_seconds: float = 30.0, start: float | None = None, duration: float | None = None
) -> Markup:
    """Returns a player of a recording, or what is wrong with it: pages are also made where it is gone.

    Args:
        audio: A path, a URI or a reference, or the file's bytes.
        max_seconds: Longest recording.
        start: Seconds to skip.
        duration: Seconds to keep.
    """
    from balsa_ray.audio.decode import AudioError, decode

    try:
        samples = decode(audio, start=start, duration=duration, sampling_rate=_RATE, max_seconds=max_seconds)
        return samples_player(samples, _RATE)
    except AudioError as error:
        return Markup('<span class="quiet">{}</span>').format(str(error))


def samples_player(samples: npt.NDArray[np.float32], rate: int) -> Markup:
    """Returns a player of mono samples at `rate` Hz, which Opus knows (16 kHz, 48 kHz), in some 6 KB a second."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="OGG", subtype="OPUS")
    return _player(buffer.getvalue(), "audio/ogg")


def _player(content: bytes, media_type: str) -> Markup:
    source = f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
    return Markup('<audio controls preload="none" src="{}"></audio>').format(source)
