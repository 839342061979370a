"""From a planned sample to the request that the backbone gets, and from its reply to a row of the output."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray.engine import chat_tokens, sampling_params
from balsa_ray.identity import sampling_seed
from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.schema import ERROR, SAMPLE, with_sources
from balsa_ray.synthesis import output
from balsa_ray.synthesis.config import SynthesizeConfig
from balsa_ray.synthesis.gates import PASSED, judge
from balsa_ray.synthesis.plan import Planned, Recipe, user_turn
from balsa_ray.synthesis.progress import counts

if TYPE_CHECKING:
    import pyarrow as pa


def request(model: Path, config: SynthesizeConfig, row: dict[str, Any]) -> dict[str, Any]:
    """Returns what `engine.vllm_chain` reads of a planned row: the prompt's tokens and the sampling parameters."""
    sample = json.loads(row["planned"])
    return {
        "tokenized_prompt": chat_tokens(model, _turns(config, sample)),
        "sampling_params": sampling_params(config.sampling, _seed(config, sample)),
    }


def conversation(config: SynthesizeConfig, row: dict[str, Any]) -> dict[str, Any]:
    """Returns what `endpoint_engine.endpoint_chain` reads of a planned row: messages and the request's own fields."""
    sample = json.loads(row["planned"])
    fields = {"seed": _seed(config, sample)} if config.sampling.temperature else {}
    return {"messages": _turns(config, sample), "fields": fields}


def _turns(config: SynthesizeConfig, sample: Planned) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    return [*system, {"role": "user", "content": user_turn(sample, config.marks)}]


def _seed(config: SynthesizeConfig, sample: Planned) -> int:
    return sampling_seed(config.seed, sample["id"])


def finish(
    recipe: Recipe, marks: tuple[str, str], origin: dict[str, Any], folder: Path, batch: "pa.Table"
) -> "pa.Table":
    """Judges and writes replies; returns the counts by kind, strategy and gate: arguments for `Tally.add`."""
    import pyarrow as pa

    samples: list[Planned] = []
    rejected: list[Planned] = []
    errors: list[Planned] = []
    for reply in batch.to_pylist():
        sample = json.loads(json.loads(reply["row"])["planned"])
        if reply["error"]:
            errors.append(sample | {"error": reply["error"], "gate": "error"})
            continue
        row = judged(sample, reply, recipe, marks) | {"provenance": origin}
        (samples if row["gate"] == PASSED else rejected).append(row)
    sample_schema = with_sources(SAMPLE, recipe.columns)
    for name, rows, schema in (
        ("samples", samples, sample_schema),
        ("rejected", rejected, sample_schema),
        ("errors", errors, ERROR),
    ):
        output.write_rows(folder / name, rows, schema)
    return pa.Table.from_pylist(counts([*samples, *rejected, *errors]))


def judged(sample: Planned, reply: dict[str, Any], recipe: Recipe, marks: tuple[str, str]) -> dict[str, Any]:
    """Returns a planned sample with its reply and what the gates say of it.

    Args:
        sample: As `plan_clip` or `plan_groups` made it.
        reply: `response`, `prompt_tokens`, `response_tokens` and `finish_reason`.
        recipe: The recipe that it was planned by.
        marks: What stood around the metadata.
    """
    kind, response, present = sample["kind"], reply["response"].strip(), sample["present"]
    affirmed, denied = affirmed_and_denied(response, recipe.relations.finder, about_absent=kind == "absent")
    implied = recipe.relations.implied_among(present, [*affirmed, *denied])
    gate = judge(
        kind,
        response,
        reply["finish_reason"],
        present,
        affirmed,
        denied,
        implied=implied,
        candidates=sample["candidates"],
        prompt=sample["prompt"],
        metadata=sample["metadata"],
        marks=marks,
    )
    return sample | {
        "response": response,
        "absent": denied,
        "gate": gate,
        "prompt_tokens": reply["prompt_tokens"],
        "response_tokens": reply["response_tokens"],
        "finish_reason": reply["finish_reason"],
    }
