"""How many samples a second are planned, paired and judged on one core, without Ray and without an LLM?

    python benchmarks/synthesis_planning.py [--clips 10000]

One pool of clips with one to five of 527 labels (as many as AudioSet has) under 17 wider terms, and all five kinds; by
the default recipe (random pairs, the LLM names what is absent) and with all ways to pair and to choose absent sounds in
equal shares. A reply names the labels that are there or three that are not. The aim is 20,000 rows/s. The baseline is
what a row costs at least: its id.
"""

import argparse
import gc
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, get_args

from balsa_ray.identity import rng, stable_hash
from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.prompts.render import BEGIN, END, Kind
from balsa_ray.synthesis.negatives import Negative, Occurrence
from balsa_ray.synthesis.pairing import Strategy
from balsa_ray.synthesis.plan import Clip, Planned, Recipe, plan_clip, plan_groups, stated_labels
from balsa_ray.synthesis.replies import judged

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
    singles, single_us = _time(_singles(recipe, clips))
    groups, group_us = _time(plan_groups(recipe, clips))
    rows = [(row, _reply(row)) for row in (*_singles(recipe, clips), *plan_groups(recipe, clips))]
    gc.freeze()
    _, gate_us = _time(judged(row, reply, recipe, (BEGIN, END)) for row, reply in rows)
    _, found_us = _time(affirmed_and_denied(reply["response"], recipe.relations.finder) for _, reply in rows)
    _, id_us = _time(stable_hash("recipe", row["clip_ids"], row["prompt_id"], row["metadata"], 0) for row, _ in rows)
    gates = Counter(judged(row, reply, recipe, (BEGIN, END))["gate"] for row, reply in rows)
    assert gates["passed"] == len(rows) == singles + groups, f"the replies are meant to be good ones: {gates}"
    gc.unfreeze()
    return {
        "planning a sample of one clip, us": single_us / singles,
        "pairing and planning a sample of two, us": group_us / groups,
        "gates, us": gate_us / len(rows),
        "of it the labels in the reply, us": found_us / len(rows),
        "baseline, the id of a row, us": id_us / len(rows),
        "rows/s on one core, all together": 1e6 * len(rows) / (single_us + group_us + gate_us),
    }


def _alone(recipe: Recipe, clips: list[Clip], kind: Kind, choice: dict[str, Any]) -> float:
    alone = replace(recipe, kinds={kind: 1}, **choice)
    assert alone.relations.finder
    plans = (plan_groups(alone, clips) if kind == "joint" else _singles(alone, clips) for _ in range(3))
    return min(us / rows for rows, us in map(_time, plans))


def _singles(recipe: Recipe, clips: list[Clip]) -> Iterator[Planned]:
    return (sample for clip in clips for sample in plan_clip(recipe, clip))


def _clip(i: int) -> Clip:
    draw = rng(0, "clip", i)
    tags = [LABELS[number] for number in sorted({*draw.integers(len(LABELS), size=int(draw.integers(1, 6))).tolist()})]
    return {"id": f"clip-{i}", "audio": f"/clips/{i}.flac", "tags": tags}


def _reply(sample: Planned) -> dict[str, Any]:
    # Of other nouns, so that the ontology implies none, and far apart, so that they share no word.
    taken = {label.rpartition(" ")[2] for label in sample["present"]}
    absent = sample["candidates"] or [label for label in LABELS[::97] if label.split()[-1] not in taken][:3]
    lacks = ", ".join(f"no {label}" for label in absent)
    names = ", ".join(sample["present"])
    text = {"absent": f"There is {lacks}.", "combined": f"I hear {names}, but {lacks}."}
    reply = text.get(sample["kind"], f"I hear {names}.")
    return {"response": reply, "finish_reason": "stop", "prompt_tokens": 1, "response_tokens": 1}


def _time(rows: Iterable[Any]) -> tuple[int, float]:
    """Returns how many rows come, none of which is kept, and the microseconds of CPU time that they take."""
    start = time.process_time()
    number = sum(1 for _ in rows)
    return number, 1e6 * (time.process_time() - start)


if __name__ == "__main__":
    main()
