"""The published layouts of audio corpora, each a declaration: which column is which field of the manifest.

A field is the name of a column, or a pattern over columns in the syntax of `str.format` (`{id!t}` is a file's name
without its suffix). The recordings of corpora cut from longer ones (AudioSet, AudioCaps, VGGSound) are taken to be the
cut clips, as these corpora are passed on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from string import Formatter
from typing import Any, Literal

from balsa_ray.config import UserError
from balsa_ray.schema import SOURCE

Row = dict[str, Any]
Format = Literal[
    "manifest", "huggingface", "webdataset", "audioset", "audioset_strong", "audiocaps", "clotho", "fsd50k", "vggsound",
    "esc50", "wavcaps",
]  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a corpus is written down.

    Attributes:
        suffixes: Of its files.
        fields: Column or pattern of each manifest field; empty: the columns are called as in the manifest.
        header: The columns' names, where the file doesn't say them in its first row.
        separator: Stands between the tags of a cell.
        group_by: Column whose equal neighbours make up one clip, each row an event.
        machine_ids: Labels are AudioSet's ids (`/m/09x0r`), to be looked up.
        records: Key of the list of clips in a JSON document.
    """

    suffixes: tuple[str, ...]
    fields: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    separator: str | None = None
    group_by: str = ""
    machine_ids: bool = False
    records: str = ""


LAYOUTS: dict[Format, Layout] = {
    # The format of this project: JSON Lines or Parquet.
    "manifest": Layout((".jsonl", ".json", ".parquet")),
    # Parquet with a column `audio` of {bytes, path}, as datasets on the Hugging Face hub are stored.
    "huggingface": Layout((".parquet",), {"id": "__key__"}),
    # Shards of files that belong together by their name up to the first dot; .json holds columns, .txt a caption.
    "webdataset": Layout((".tar",), {"id": "__key__"}),
    # research.google.com/audioset/download.html: three lines of comment, then YTID, start, end, "labels".
    "audioset": Layout(
        (".csv",),
        {"id": "YTID", "audio": "{YTID}.wav", "tags": "positive_labels"},
        header=("YTID", "start_seconds", "end_seconds", "positive_labels"),
        separator=",",
        machine_ids=True,
    ),
    # research.google.com/audioset/download_strong.html
    "audioset_strong": Layout(
        (".tsv",),
        {
            "id": "segment_id",
            "audio": "{segment_id}.wav",
            "label": "label",
            "start": "start_time_seconds",
            "end": "end_time_seconds",
        },
        group_by="segment_id",
        machine_ids=True,
    ),
    # github.com/cdjkim/audiocaps
    "audiocaps": Layout((".csv",), {"id": "audiocap_id", "audio": "{youtube_id}.wav", "caption": "caption"}),
    # zenodo.org/records/4783391: five people's captions of one clip, which the LLM reads one after another.
    "clotho": Layout(
        (".csv",),
        {
            "id": "file_name",
            "audio": "file_name",
            "caption": "{caption_1} {caption_2} {caption_3} {caption_4} {caption_5}",
        },
    ),
    # zenodo.org/records/4060432: FSD50K.ground_truth/dev.csv and eval.csv
    "fsd50k": Layout((".csv",), {"id": "fname", "audio": "{fname}.wav", "tags": "labels"}, separator=","),
    # www.robots.ox.ac.uk/~vgg/data/vggsound: no header
    "vggsound": Layout(
        (".csv",),
        {"id": "{youtube_id}_{start:0>6}", "audio": "{youtube_id}_{start:0>6}.wav", "tags": "label"},
        header=("youtube_id", "start", "label", "split"),
    ),
    # github.com/karolpiczak/ESC-50: meta/esc50.csv
    "esc50": Layout((".csv",), {"id": "filename", "audio": "filename", "tags": "category"}),
    # huggingface.co/datasets/cvssp/WavCaps: json_files/*/*.json; some ids end in .wav, the files are FLAC.
    "wavcaps": Layout((".json",), {"id": "id", "audio": "{id!t}.flac", "caption": "caption"}, records="data"),
}


class _Pattern(Formatter):
    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return PurePosixPath(str(value)).stem if conversion == "t" else super().convert_field(value, conversion)


_PATTERN = _Pattern()


def clip_of(rows: list[Row], layout: Layout, columns: Mapping[str, str], names: Mapping[str, str], where: str) -> Row:
    """Makes a manifest's row of what a corpus says of a clip.

    Args:
        rows: One row, or those of one clip where each is an event.
        layout: The corpus's layout.
        columns: Further fields and their columns or patterns; they go before the layout's.
        names: Label by id, where the layout gives ids.
        where: File and row, for errors.

    Raises:
        UserError: A column is not there, or a label's id is unknown; names the row and the field.
    """
    fields = {**layout.fields, **columns}
    own = "audio" not in layout.fields
    if own:
        clip = {name: value for name, value in rows[0].items() if name not in fields.values() or name in fields}
    else:
        # A column of a foreign layout that is called like a manifest's may mean something else.
        clip = {f"{SOURCE}{name}": value for name, value in rows[0].items() if name not in fields.values()}
    if layout.group_by:
        events = [_event(row, fields, names, where) for row in rows]
        fields = {name: source for name, source in fields.items() if name not in ("label", "start", "end")}
        clip["events"] = events
    clip |= {name: _value(rows[0], name, source, where) for name, source in fields.items()}
    clip.pop("__key__", None)
    if "id" in fields:
        clip["id"] = str(clip["id"])
    if fields and isinstance(clip.get("caption"), list):
        clip["caption"] = " ".join(map(str, clip["caption"]))
    if isinstance(clip.get("tags"), str) and "tags" in fields:
        tags = clip["tags"].split(layout.separator) if layout.separator else [clip["tags"]]
        clip["tags"] = [_label(tag, layout.machine_ids, names, f"{where}: tags") for tag in tags if tag.strip()]
    return clip


def _event(row: Row, fields: Mapping[str, str], names: Mapping[str, str], where: str) -> Row:
    try:
        start, end = (float(_value(row, name, fields[name], where)) for name in ("start", "end"))
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: events: {error}") from error
    label = _label(_value(row, "label", fields["label"], where), True, names, f"{where}: events")
    return {"label": label, "start": start, "end": end}


def _label(label: str, machine_id: bool, names: Mapping[str, str], where: str) -> str:
    label = label.strip()
    if not machine_id:
        return label.replace("_", " ")
    if label not in names:
        raise UserError(f"{where}: {label!r} is not in class_labels")
    return names[label]


def _value(row: Row, name: str, source: str, where: str) -> Any:
    try:
        return _PATTERN.format(source, **row) if "{" in source else row[source]
    except KeyError as error:
        raise UserError(f"{where}: {name}: no column {error}; there are {', '.join(map(str, row))}") from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: {name}: {source!r}: {error}") from error
