"""How many samples a second are planned, paired and judged on one core, without Ray and without an LLM?

    python benchmarks/synthesis_planning.py [--clips 10000]

One pool of clips with one to five of 527 labels (as many as AudioSet has) under 17 wider terms, and all five kinds; by
the default recipe (random pairs, the LLM names what is absent) and with all ways to pair and to choose absent sounds in
equal shares. A reply names the labels that are there or three that are not. The aim is 20,000 rows/s. The baseline is
what a row costs at least: its id.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

from balsa_ray.identity import rng, stable_hash
from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.prompts.render import BEGIN, END, Kind
from balsa_ray.synthesis.negatives import Negative, Occurrence
from balsa_ray.synthesis.pairing import Strategy
from balsa_ray.synthesis.pipeline import judged
from balsa_ray.synthesis.plan import Clip, Planned, Recipe, plan_clip, plan_groups, stated_labels

KINDS: dict[Kind, float] = {"present": 1, "absent": 1, "combined": 1, "difference": 0.5, "joint": 0.5}
PAIRING: tuple[Strategy, ...] = get_args(Strategy)
NEGATIVES: tuple[Negative, ...] = get_args(Negative)
# Words that no label of the packaged tables has.
ONTOLOGY = {f"noun{n}": tuple(f"kind{k} noun{n}" for k in range(31)) for n in range(17)}
LABELS = tuple(sorted(label for labels in ONTOLOGY.values() for label in labels))


def main() -> None:
    """Prints the microseconds of CPU time of a row by part, and rows a second; the least disturbed of five rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=10_000)
    clips = [_clip(i) for i in range(parser.parse_args().clips)]
    occurrence = Occurrence()
    recipe = Recipe("recipe", 0, "tags", KINDS, LABELS, ontology=ONTOLOGY)
    for clip in clips:
        occurrence.add(stated_labels(clip, recipe.relations.finder))
    recipe = replace(recipe, occurrence=occurrence.cut())
    start = time.process_time()
    assert recipe.relations.finder
    print(f"relating {len(recipe.relations.implied)} terms, once a run: {1000 * (time.process_time() - start):.0f} ms")
    mixed = replace(recipe, pairing=dict.fromkeys(PAIRING, 1.0), negatives=dict.fromkeys(NEGATIVES, 1.0))
    assert mixed.relations.finder
    for name, chosen in (("the default recipe", recipe), ("all ways mixed", mixed)):
        rounds = [_round(chosen, clips) for _ in range(5)]
        print(f"{name}:")
        for part in rounds[0]:
            best = max if part.startswith("rows/s") else min
            print(f"  {part}: {best(found[part] for found in rounds):,.1f}")
    print("one way alone, us a row (the kind absent, the kind joint):")
    for way in NEGATIVES:
        print(f"  absent sounds {way}: {_alone(recipe, clips, 'absent', {'negatives': {way: 1}}):.1f}")
    for strategy in PAIRING:
        print(f"  pairing {strategy}: {_alone(recipe, clips, 'joint', {'pairing': {strategy: 1}}):.1f}")


def _round(recipe: Recipe, clips: list[Clip]) -> dict[str, float]:
    singles, single_us = _time(lambda: [sample for clip in clips for sample in plan_clip(recipe, clip)])
    groups, group_us = _time(lambda: list(plan_groups(recipe, clips)))
    rows = [*singles, *groups]
    replies = [_reply(row) for row in rows]
    done, gate_us = _time(lambda: [judged(*pair, recipe, (BEGIN, END)) for pair in zip(rows, replies, strict=True)])
    gates = Counter(row["gate"] for row in done)
    assert gates["passed"] == len(done), f"the replies are meant to be good ones: {gates}"
    finder = recipe.relations.finder
    ids = _time(lambda: [stable_hash("recipe", row["clip_ids"], row["prompt_id"], row["metadata"], 0) for row in rows])
    found = _time(lambda: [affirmed_and_denied(reply["response"], finder) for reply in replies])
    return {
        "planning a sample of one clip, us": single_us / len(singles),
        "pairing and planning a sample of two, us": group_us / len(groups),
        "gates, us": gate_us / len(rows),
        "of it the labels in the reply, us": found[1] / len(rows),
        "baseline, the id of a row, us": ids[1] / len(rows),
        "rows/s on one core, all together": 1e6 * len(rows) / (single_us + group_us + gate_us),
    }


def _alone(recipe: Recipe, clips: list[Clip], kind: Kind, choice: dict[str, Any]) -> float:
    alone = replace(recipe, kinds={kind: 1}, **choice)
    assert alone.relations.finder
    if kind == "joint":
        return min(_time(lambda: list(plan_groups(alone, clips)))[1] for _ in range(3)) / len(clips)
    return min(_time(lambda: [list(plan_clip(alone, clip)) for clip in clips])[1] for _ in range(3)) / len(clips)


def _clip(i: int) -> Clip:
    draw = rng(0, "clip", i)
    tags = [LABELS[number] for number in sorted({*draw.integers(len(LABELS), size=int(draw.integers(1, 6))).tolist()})]
    return {"id": f"clip-{i}", "audio": f"/clips/{i}.flac", "tags": tags}


def _reply(sample: Planned) -> dict[str, Any]:
    taken = {label.rpartition(" ")[2] for label in sample["present"]}
    lacks = ", ".join(f"no {label}" for label in [label for label in LABELS if label.split()[-1] not in taken][:3])
    names = ", ".join(sample["present"])
    text = {"absent": f"There is {lacks}.", "combined": f"I hear {names}, but {lacks}."}
    reply = text.get(sample["kind"], f"I hear {names}.")
    return {"response": reply, "finish_reason": "stop", "prompt_tokens": 1, "response_tokens": 1}


def _time(work: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what the work returns, and its microseconds of CPU time."""
    start = time.process_time()
    result = work()
    return result, 1e6 * (time.process_time() - start)


if __name__ == "__main__":
    main()
