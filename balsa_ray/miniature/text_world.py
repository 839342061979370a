"""The text that the miniature backbone learns from: questions and answers about clips, in words alone.

An example is one to three clips (sets of sound events), a user turn about them and the one right reply. Replies list
labels in alphabetical order whatever the order of the metadata, and name each once: the reply is then a function of
the *set* of sounds. A backbone that copies "the second item" instead repeats itself as soon as it hears audio, where
there is no second item ("a siren, a siren and a horn").

Every example is a pure function of (seed, split, index). Label sets are split by hash: one set in ten is never seen in
training, and the test uses only those, with paraphrases that training never shows.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

import yaml

from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.soundscapes import held_out_set
from balsa_ray.prompts.render import MetadataStyle, prompts_of, questions, render_metadata, with_absent

ORDINALS = ("first", "second", "third")
NUMBERS = ("no", "one", "two", "three", "four")
MULTI_CLIP = {"difference", "joint", "which_recording", "existence_in"}
GUIDED = 0.4
"""Share of replies about absent sounds whose metadata lists the ones to name, as guided negatives do."""
NONE_OF_THESE = "none of these"
WITH_NONE = 0.4
"""Share of questions with options of which the last is `NONE_OF_THESE`; it is right in half of them."""


@dataclass(frozen=True)
class Example:
    """One exchange.

    Attributes:
        task: Name of the task.
        clips: The labels of each clip, in the order of its metadata.
        metadata: The text that stands for each clip.
        listed: Absent sounds that the metadata also lists, and the reply is to name.
        prompt: The user turn without metadata.
        reply: The right answer.
    """

    task: str
    clips: tuple[tuple[str, ...], ...]
    metadata: tuple[str, ...]
    prompt: str
    reply: str
    listed: tuple[str, ...] = ()


@cache
def tasks() -> dict[str, Any]:
    """Returns the tasks of `text_world.yaml`, their `ask` joined with the shared prompts and questions."""
    data = yaml.safe_load(files("balsa_ray.miniature").joinpath("text_world.yaml").read_text("utf-8"))
    for name, task in data.items():
        if name != "captions":
            task["ask"] = [p.text for p in prompts_of(name)] + questions().get(name, []) + task["ask"]
    return data


def in_words(labels: list[str], joint: str = "and", each: str = "") -> str:
    """Returns `a, b and c`; with `each="no "` also `a, no b and no c`."""
    *most, last = sorted(set(labels))
    return f"{(', ' + each).join(most)} {joint} {each}{last}" if most else last


def example(seed: int, split: str, index: int, task: str | None = None, cycle: int = 0) -> Example:
    """Draws one example.

    Args:
        seed: The text world's seed.
        split: `train`, or `test` (held-out label sets and held-out paraphrases only).
        index: Number of the example.
        task: A task's name, or None to draw one by weight.
        cycle: Which cycle's weights (from 0; later cycles than the file knows take its last).
    """
    draw = Random(f"{seed}/{split}/{index}")
    names = [name for name in tasks() if name != "captions"]
    weights = [tasks()[n]["weight"] for n in names]
    name = task or draw.choices(names, [row[min(cycle, len(row) - 1)] for row in weights])[0]
    number = draw.choice([2, 2, 2, 3]) if name in MULTI_CLIP else 1
    if name == "which_recording":
        number = 2
    sizes = (2, 2, 3, 3, 4) if name == "order" else (1, 2, 2, 3) if number > 1 else (1, 2, 2, 3, 3, 4)
    clips = [_clip(draw, split, sizes) for _ in range(number)]
    if number > 1 and draw.random() < 0.6:
        _share_a_label(draw, split, clips)
    style: MetadataStyle = "events" if name == "order" else draw.choice(["tags", "tags", "tags", "events", "caption"])
    metadata = tuple(render_metadata(clip, style) for clip in clips)
    labels = [list(dict.fromkeys(clip["tags"])) for clip in clips]
    which = "ask" if split == "train" else "held_out"
    number_asked = draw.randrange(len(tasks()[name][which]))
    absent = _absent(draw, labels[0], draw.choice([2, 2, 3])) if name in ("absent", "combined") else []
    listed = absent if draw.random() < GUIDED else []
    if listed:
        metadata = (with_absent(metadata[0], listed),)
    fields = _answer(draw, name, clips, labels, number_asked, absent)
    prompt = tasks()[name][which][number_asked].format(**fields)
    return Example(name, tuple(tuple(c) for c in labels), metadata, prompt, fields["answer"], tuple(listed))


def _clip(draw: Random, split: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Draws a clip's labels (mostly of one scene) and gives them times and a caption."""
    words = lexicon()
    while True:
        scene = words.scenes[draw.choice(sorted(words.scenes))]
        size = draw.choice(sizes)
        labels: list[str] = []
        while len(labels) < size:
            label = draw.choice(scene if draw.random() < 0.5 else words.labels)
            if label not in labels:
                labels.append(label)
        if size == 1 or held_out_set(labels) == (split == "test"):
            return _with_times(draw, labels)


def _with_times(draw: Random, labels: list[str]) -> dict[str, Any]:
    starts = sorted(draw.sample(range(35), len(labels)))
    events = [{"label": label, "start": s / 10, "end": min(4.0, s / 10 + draw.uniform(0.4, 3))}
              for label, s in zip(labels, starts, strict=True)]  # fmt: skip
    if draw.random() < 0.15:  # the same sound twice: named once in every reply
        again = draw.choice(events)
        events.append({**again, "start": 3.6, "end": 4.0})
    caption = draw.choice(tasks()["captions"]).format(present=in_words(labels))
    return {"tags": [event["label"] for event in events], "events": events, "caption": caption[0].upper() + caption[1:]}


def _share_a_label(draw: Random, split: str, clips: list[dict[str, Any]]) -> None:
    """Gives the last clip a label of the first, as long as its label set stays in its split."""
    shared = draw.choice(clips[0]["tags"])
    labels = list(dict.fromkeys([*clips[-1]["tags"][:2], shared]))
    draw.shuffle(labels)
    if len(labels) == 1 or held_out_set(labels) == (split == "test"):
        clips[-1] = _with_times(draw, labels)


def _absent(draw: Random, present: list[str], count: int) -> list[str]:
    """Draws absent labels: a confusable neighbour, one of a fitting scene, or any."""
    words = lexicon()
    near = [n for label in present for n in words.neighbours(label) if n not in present]
    fitting = [x for scene in words.scenes.values() if present[0] in scene for x in scene if x not in present]
    anything = [label for label in words.labels if label not in present]
    out: list[str] = []
    while len(out) < count:
        label = draw.choice(draw.choice([near or anything, fitting or anything, anything]))
        if label not in out:
            out.append(label)
    return out


def _answer(
    draw: Random, name: str, clips: list[dict[str, Any]], labels: list[list[str]], asked: int, absent: list[str]
) -> dict[str, str]:
    """Returns the fields of the prompt and, as `answer`, the reply."""
    forms = tasks()[name].get("reply", [""])
    form = forms[asked % len(forms)]
    present = labels[0]
    if name in ("present", "absent", "combined"):
        denied = in_words(absent, each="no ") if absent else ""
        return {"answer": form.format(present=in_words(present), absent=denied)}
    if name == "existence":
        yes = draw.random() < 0.5
        label = draw.choice(present) if yes else _absent(draw, present, 1)[0]
        return {"label": label, "answer": forms[0 if yes else 1].format(label=label)}
    if name == "choice":
        right, none = draw.choice(present), draw.random()
        options = [right, *_absent(draw, present, 3)]
        if none < WITH_NONE:
            options = options[1:] if none < WITH_NONE / 2 else options[:3]
        draw.shuffle(options)
        if none < WITH_NONE:
            options.append(NONE_OF_THESE)
            right = NONE_OF_THESE if none < WITH_NONE / 2 else right
        marked = [f"({letter}) {option}" for letter, option in zip("abcd", options, strict=True)]
        return {"options": " ".join(marked), "answer": marked[options.index(right)] + "."}
    if name == "count":
        number = NUMBERS[len(present)]
        return {"answer": "There is one sound." if len(present) == 1 else form.format(number=number)}
    if name == "order":
        onset = {event["label"]: event["start"] for event in reversed(clips[0]["events"])}
        label, other = draw.sample(present, 2)
        first = label if onset[label] < onset[other] else other
        return {"label": label, "other": other, "answer": form.format(first=first)}
    if name == "joint":
        return {"answer": form.format(present=in_words([label for clip in labels for label in clip]))}
    if name == "difference":
        return {"answer": difference(labels)}
    everything = [label for clip in labels for label in clip]
    label = draw.choice(everything) if draw.random() < 0.85 else _absent(draw, everything, 1)[0]
    if name == "which_recording":
        return {"label": label, "answer": which_recording(label, labels)}
    position = draw.randrange(len(labels))
    if draw.random() < 0.5 and label not in labels[position] and label in everything:
        position = next(i for i, clip in enumerate(labels) if label in clip)
    yes = label in labels[position]
    answer = f"Yes, there is a sound of {label}." if yes else f"No, there is no sound of {label}."
    return {"label": label, "ordinal": ORDINALS[position], "answer": answer}


def which_recording(label: str, clips: list[list[str]]) -> str:
    """Returns which of two clips has a label, in words."""
    has = [label in clip for clip in clips]
    if all(has):
        return "Both recordings."
    return f"The {ORDINALS[has.index(True)]} recording." if any(has) else "None of the recordings."


def difference(clips: list[list[str]]) -> str:
    """Returns how clips differ: for two, what only one has and what both have; for three, what each has."""
    if len(clips) > 2:
        return " ".join(f"The {o} recording has {in_words(c)}." for o, c in zip(ORDINALS, clips, strict=False))
    first, second = set(clips[0]), set(clips[1])
    parts = [
        f"Only the first recording has {in_words(list(first - second))}." if first - second else "",
        f"Only the second recording has {in_words(list(second - first))}." if second - first else "",
        f"Both have {in_words(list(first & second))}." if first & second else "",
    ]
    return " ".join(part for part in parts if part)
