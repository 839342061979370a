"""The miniature's language model: a tiny Llama, trained from scratch on the text world."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from balsa_ray.identity import rng
from balsa_ray.miniature.encoder import computes_in_bfloat16
from balsa_ray.miniature.lexicon import lexicon
from balsa_ray.miniature.soft_spans import Tokens, add_bag, add_jitter, embed
from balsa_ray.miniature.text_world import Example, example, tasks
from balsa_ray.miniature.tokenizer import build_tokenizer
from balsa_ray.prompts.labels import affirmed_and_denied
from balsa_ray.prompts.render import BEGIN, END, span, user_content

CLEAN, JITTER = 0.4, 0.2
"""Shares of examples with clean metadata and with jitter; the rest are bags of labels."""
GHOSTED, MOST_GHOSTS = 0.7, 5
"""Share of bags with ghosts, and how many at most."""
CHUNK = 32
"""Batches drawn and sorted by length together, so that a batch holds examples of like length."""


class Encoder:
    """Turns examples into token sequences, clean or soft."""

    def __init__(self, tokenizer: Any) -> None:
        """Remembers the tokens of the marks, of every label and of all words."""
        self.tokenizer = tokenizer
        self.labels = {label: self._ids(f" {label}") for label in lexicon().labels}
        self.words = sorted({token for ids in self.labels.values() for token in ids})
        self.begin, self.end = self._ids(BEGIN), self._ids(f" {END}\n")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def chat(self, content: str, reply: str = "") -> tuple[str, str]:
        """Returns the prompt as the chat template renders it, and the reply with its end of turn."""
        messages = [{"role": "user", "content": content}]
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return prompt, reply + self.tokenizer.eos_token

    def encode(self, item: Example, draw: np.random.Generator) -> Tokens:
        """Encodes one example; `draw` decides whether and how its spans are made soft."""
        mode, tokens = draw.random(), Tokens(noise=float(draw.uniform(0, 1)))
        if mode < CLEAN:
            prompt, reply = self.chat(user_content([span(m) for m in item.metadata], item.prompt), item.reply)
            tokens.ids = self._ids(prompt)
        else:
            head, tail = self.chat("\0" + item.prompt)[0].split("\0")
            reply = item.reply + self.tokenizer.eos_token
            tokens.ids = self._ids(head)
            bag = mode >= CLEAN + JITTER and item.task != "order" and not item.listed
            for labels, metadata in zip(item.clips, item.metadata, strict=True):
                tokens.ids += self.begin
                if bag:
                    present, hinted = ([self.labels[x] for x in names] for names in (labels, ghosts(labels, draw)))
                    add_bag(tokens, draw, present, hinted, self.words)
                else:
                    add_jitter(tokens, draw, self._ids(f" {metadata}"), self.words)
                tokens.ids += self.end
            tokens.ids += self._ids(tail)
        tokens.reply_start = len(tokens.ids)
        tokens.ids += self._ids(reply)
        return tokens


def ghosts(labels: Sequence[str], draw: np.random.Generator) -> list[str]:
    """Draws labels that a clip's slots hint at though it does not have them: neighbours of its own, or any.

    What the question asks about plays no part: a question names one of many sounds, and hardly ever the one that was
    taken for another.
    """
    if draw.random() >= GHOSTED:
        return []
    near = [label for own in labels for label in lexicon().neighbours(own)]
    others = near + [str(label) for label in draw.choice(lexicon().labels, len(near))]
    draw.shuffle(others)
    absent = [label for label in dict.fromkeys(others) if label not in labels]
    return absent[: int(draw.integers(0, MOST_GHOSTS + 1))]


def batches(encoder: Encoder, seed: int, steps: range, size: int, cycle: int) -> Iterator[list[Tokens]]:
    """Yields the batches of training sequences of these steps, those of a batch alike in length."""
    for first in range(steps.start, steps.stop, CHUNK):
        items = []
        for index in range(first * size, min(first + CHUNK, steps.stop) * size):
            items.append(encoder.encode(example(seed, "train", index, cycle=cycle), rng(seed, "soft", index)))
        items.sort(key=lambda tokens: len(tokens.ids))
        chunk = [items[i : i + size] for i in range(0, len(items), size)]
        yield from (chunk[i] for i in rng(seed, "batches", first).permutation(len(chunk)))


def build_backbone(
    output: Path,
    *,
    seed: int,
    cycles: Sequence[int],
    batch_size: int = 64,
    hidden_size: int = 160,
    layers: int = 4,
    vocab_size: int = 1280,
    learning_rate: float = 3e-3,
    test_examples: int = 400,
    compiled: bool = True,
    log: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains the backbone and writes model and tokenizer to `output`.

    Training goes in cycles of so many steps. Each warms up and falls again, with optimizers of its own, a lower peak
    (a half from the second on) and its own weights of the tasks. Matrices inside the blocks are trained by Muon, the
    rest by AdamW; the loss counts reply tokens only.

    Returns:
        Figures on held-out label sets and paraphrases, in percent: see `text_figures`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    corpus = (example(seed, "train", index) for index in range(20_000))
    tokenizer = build_tokenizer((f"{user_content(list(e.metadata), e.prompt)} {e.reply}" for e in corpus), vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=hidden_size * 8 // 3 // 16 * 16,
        num_hidden_layers=layers, num_attention_heads=hidden_size // 32, num_key_value_heads=hidden_size // 32,
        max_position_embeddings=2048, rope_theta=10_000.0, tie_word_embeddings=True, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    log(f"backbone: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
    body = torch.compile(model.model, dynamic=True, disable=not compiled)
    for cycle, end in enumerate(accumulate(cycles)):
        steps, noise = range(end - cycles[cycle], end), torch.Generator().manual_seed(1000 * seed + cycle)
        sequences = batches(Encoder(tokenizer), seed, steps, batch_size, cycle)
        _train(model, body, sequences, steps, learning_rate / min(cycle + 1, 2), noise, log)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return text_figures(model, tokenizer, seed, test_examples)


def _train(
    model: Any,
    body: Any,
    sequences: Iterable[list[Tokens]],
    steps: range,
    peak: float,
    noise: Any,
    log: Callable[[str], None],
) -> None:
    """Trains one cycle: warm-up, the peak rate for half of it, then a linear fall to almost nothing."""
    import torch

    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    model.train()
    for done, batch in enumerate(sequences):
        rate = peak * min(1.0, (done + 1) / 100, 0.02 + (len(steps) - done) / (0.5 * len(steps)))
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            group["lr"] = rate
        ids, embeddings = embed(batch, model.get_input_embeddings(), noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16()):
            hidden = body(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(batch):
            wanted[row, tokens.reply_start : len(tokens.ids)] = True
        logits = model.lm_head(hidden[:, :-1][wanted[:, 1:]].float())
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][wanted[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (done + 1) % 250 == 0:
            log(f"backbone: step {steps[done] + 1}, loss {loss.item():.3f}")


def text_figures(model: Any, tokenizer: Any, seed: int, examples: int) -> dict[str, float]:
    """Measures greedy replies on held-out label sets and held-out paraphrases.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        seed: The text world's seed.
        examples: Questions a task.

    Returns:
        In percent: for `present` the labels right and for `absent` the named sounds that are present, as
        `present_labels` and `absent_present`; for every other task, `combined` and `absent` apart, exact replies.
    """
    figures: dict[str, float] = {}
    for task in tasks():
        if task == "captions":
            continue
        items = [example(seed, "test", index, task) for index in range(examples)]
        replies = answer_texts(model, tokenizer, [user_content([span(m) for m in e.metadata], e.prompt) for e in items])
        if task in ("present", "absent", "combined"):
            for name, value in label_figures(items, replies).items():
                figures[f"{task}_{name}"] = value
        else:
            figures[task] = 100 * float(np.mean([r == e.reply for r, e in zip(replies, items, strict=True)]))
    return figures


def label_figures(items: list[Example], replies: list[str]) -> dict[str, float]:
    """Returns, in percent: labels stated rightly, sounds denied that are present, lists named as given."""
    counts: dict[str, int] = defaultdict(int)
    for item, reply in zip(items, replies, strict=True):
        stated, denied = map(set, affirmed_and_denied(reply, lexicon().labels))
        counts["right"] += len(stated & set(item.clips[0]))
        counts["union"] += len(stated | set(item.clips[0]))
        if not item.listed:
            counts["denied"] += len(denied)
            counts["wrong"] += len(denied & set(item.clips[0]))
        counts["listed"] += bool(item.listed)
        counts["as_listed"] += bool(item.listed) and denied == set(item.listed)
    out = {}
    if items[0].task != "absent":
        out["labels"] = 100 * counts["right"] / max(counts["union"], 1)
    if items[0].task != "present":
        out["present"] = 100 * counts["wrong"] / max(counts["denied"], 1)
        out["as_listed"] = 100 * counts["as_listed"] / max(counts["listed"], 1)
    return out


def answer_texts(model: Any, tokenizer: Any, contents: list[str], max_new_tokens: int = 64) -> list[str]:
    """Returns greedy replies to user turns, by Hugging Face `generate`."""
    import torch

    model.eval()
    tokenizer.padding_side = "left"
    replies: list[str] = []
    for start in range(0, len(contents), 100):
        chats = [[{"role": "user", "content": content}] for content in contents[start : start + 100]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        replies += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies
