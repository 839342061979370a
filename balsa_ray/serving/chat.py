"""What a chat request may look like: nothing else reaches vLLM, which looks at contents only when it uses them.

vLLM's requests have some forty fields more, and it isn't made to be asked by strangers: log-probabilities of a prompt
with clips end its engine, and a constraint on the reply, compiled where requests are read, holds up all others.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

# Replies to one request: each is a sequence of its own in the engine, and a million are asked for in a few bytes.
MOST_REPLIES = 16
MOST_BIASES = 300
# Each costs some microseconds, in which nobody else is answered.
MOST_TURNS, MOST_PARTS = 512, 64


def _encodable(text: str) -> str:
    text.encode()  # raises a ValueError at half a surrogate pair, which JSON can write
    return text


def _few(biases: Any) -> Any:
    # Before each is looked at: a million wrong ones would be a million errors.
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise ValueError(f"should have at most {MOST_BIASES} tokens, not {len(biases)}")
    return biases


Str = Annotated[str, AfterValidator(_encodable)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Text(_Model):
    """Words."""

    type: Literal["text"]
    text: Str


class File(_Model):
    """A recording in base64, in any format that libsndfile reads; its header says which."""

    data: Str
    format: Str


class InputAudio(_Model):
    """A clip."""

    type: Literal["input_audio"]
    input_audio: File


class Address(_Model):
    """A `data:` URI, or an http(s) URL of a host that the server's owner has allowed."""

    url: Str


class AudioUrl(_Model):
    """A clip by its address."""

    type: Literal["audio_url"]
    audio_url: Address


class Message(_Model):
    """A turn: text, or parts in their order."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    # Of a million wrong parts the first is told: a list of all would take gigabytes.
    content: (
        Str
        | Annotated[
            list[Annotated[Text | InputAudio | AudioUrl, Field(discriminator="type")]],
            Field(max_length=MOST_PARTS, fail_fast=True),
        ]
        | None
    ) = None


class StreamOptions(_Model):
    """What a stream tells beside the reply."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class ResponseFormat(_Model):
    """The form of the reply: words."""

    type: Literal["text"]


class TemplateOptions(_Model):
    """What some chat templates can be told."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: bool


class Chat(_Model):
    """A chat request. Fields that are no part of it are ignored, unless they are vLLM's: those are refused."""

    model_config = ConfigDict(extra="allow")

    model: Str | None = Field(default=None, description="which of the models; null: the first")
    messages: list[Message] = Field(min_length=1, max_length=MOST_TURNS, fail_fast=True)
    max_tokens: int | None = Field(default=None, ge=1, description="most tokens of the reply")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="the same, by its newer name")
    min_tokens: int | None = Field(default=None, ge=0, description="least tokens of the reply")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0: the likeliest token each time")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    logit_bias: Annotated[dict[Str, float], BeforeValidator(_few)] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: int | None = Field(default=None, ge=1, le=MOST_REPLIES, description="replies")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Str | Annotated[list[Str], Field(max_length=4, fail_fast=True)] | None = None
    ignore_eos: bool | None = Field(default=False, description="go on to `max_tokens`")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateOptions | None = None
    user: Str | None = None
