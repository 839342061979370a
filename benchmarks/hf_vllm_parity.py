"""Do transformers and vLLM give the same greedy answers (fp32) with a trained model?

    python benchmarks/hf_vllm_parity.py [--model MODEL_DIRECTORY] [--manifest MANIFEST.jsonl]

Fifty one-clip and twenty two-clip prompts about held-out clips; exit code 1 if any answer differs.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from balsa_ray.audio.decode import decode
from balsa_ray.identity import pick
from balsa_ray.prompts.render import Prompt, prompts
from balsa_ray.schema import read_manifest

MAX_TOKENS = 48


def main() -> None:
    """Prints how many answers are equal and every pair that is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/training/model"))
    parser.add_argument("--manifest", type=Path, default=Path("outputs/demo/corpus/test.jsonl"))
    arguments = parser.parse_args()
    for needed in (arguments.model, arguments.manifest):
        if not needed.exists():
            sys.exit(f"{needed} is missing: make demo writes it")
    clips = read_manifest(arguments.manifest)
    plan = [([clip], _prompt(1, clip["id"])) for clip in clips[:50]]
    plan += [([clips[i], clips[i + 1]], _prompt(2, clips[i]["id"])) for i in range(50, 90, 2)]
    audio = [[decode(clip["audio"]) for clip in group] for group, _ in plan]
    texts, replies_hf = answer_hf(arguments.model, audio, [prompt for _, prompt in plan])
    replies_vllm = answer_vllm(arguments.model, texts, audio)
    for name, first, last in (("one clip", 0, 50), ("two clips", 50, len(plan))):
        pairs = list(zip(replies_hf, replies_vllm, strict=True))[first:last]
        print(f"{name}: {sum(a == b for a, b in pairs)} of {len(pairs)} answers equal")
        for a, b in pairs:
            if a != b:
                print(f"  transformers: {a}\n  vLLM:         {b}")
    sys.exit(replies_hf != replies_vllm)


def _prompt(clips: int, key: str) -> Prompt:
    return pick(0, ("parity", key), [prompt for prompt in prompts() if prompt.clips == clips])


def answer_hf(model_path: Path, audio: list[list[Any]], asked: list[Prompt]) -> tuple[list[str], list[str]]:
    """Returns the prompts as rendered and the answers of `generate`, in batches of ten."""
    from balsa_ray.model.modeling import BalsaForConditionalGeneration
    from balsa_ray.model.processing import BalsaProcessor

    model = BalsaForConditionalGeneration.from_pretrained(model_path)
    processor = BalsaProcessor.from_pretrained(model_path)
    texts = [processor.prompt_text(prompt.text, prompt.clips) for prompt in asked]
    replies: list[str] = []
    for start in range(0, len(texts), 10):
        inputs = processor(
            text=texts[start : start + 10], audio=[clip for group in audio[start : start + 10] for clip in group]
        )
        out = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        reply_ids = out[:, inputs["input_ids"].shape[1] :]
        replies += processor.tokenizer.batch_decode(reply_ids, skip_special_tokens=True)
    return texts, replies


def answer_vllm(model_path: Path, texts: list[str], audio: list[list[Any]]) -> list[str]:
    """Returns vLLM's answers to the same rendered prompts."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    import vllm

    engine = vllm.LLM(
        str(model_path), dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=32,
        limit_mm_per_prompt={"audio": 2}, disable_log_stats=True,
        gpu_memory_utilization=0.3,  # on CPUs: of the memory
    )  # fmt: skip
    requests = [
        {"prompt": text, "multi_modal_data": {"audio": [(clip, 16_000) for clip in group]}}
        for text, group in zip(texts, audio, strict=True)
    ]
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    return [output.outputs[0].text for output in engine.generate(requests, sampling, use_tqdm=False)]


if __name__ == "__main__":
    main()
