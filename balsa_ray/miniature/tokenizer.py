"""The miniature backbone's tokenizer: byte-level BPE learned from the text world, with a chat template."""

from collections.abc import Iterable
from typing import Any

from balsa_ray.prompts.render import BEGIN, END

PAD, END_OF_TURN = "<|pad|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Learns a tokenizer.

    Args:
        texts: The corpus.
        vocab_size: Number of tokens, special ones and the 256 bytes included.

    Returns:
        A `PreTrainedTokenizerFast`. Any text can be encoded (bytes); the marks around metadata are a token each.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, END_OF_TURN, "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = [AddedToken(mark, normalized=False) for mark in (BEGIN, END)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(marks), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END_OF_TURN, model_max_length=2048,
        additional_special_tokens=special[2:], chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip
