"""What a chat request may look like: checked in one pass, since vLLM looks at contents only when it uses them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Replies to one request: each is a sequence of its own in the engine, and a million are asked for in a few bytes.
MOST_REPLIES = 16


class _Model(BaseModel):
    model_config = ConfigDict(strict=True)


class Text(_Model):
    """Words."""

    type: Literal["text"]
    text: str


class File(_Model):
    """A recording in base64, in any format that libsndfile reads; its header says which."""

    data: str
    format: str


class InputAudio(_Model):
    """A clip."""

    type: Literal["input_audio"]
    input_audio: File


class Address(_Model):
    """A `data:` URI, or an http(s) URL of a host that the server's owner has allowed."""

    url: str


class AudioUrl(_Model):
    """A clip by its address."""

    type: Literal["audio_url"]
    audio_url: Address


class Message(_Model):
    """A turn: text, or parts in their order."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[Text | InputAudio | AudioUrl, Field(discriminator="type")]] | None = None


class Chat(_Model):
    """A chat request. Other fields of OpenAI's API and of vLLM's pass on to vLLM, which checks them."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = Field(default=None, description="which of the models; null: the first")
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, description="most tokens of the reply")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="the same, by its newer name")
    temperature: float | None = Field(default=None, ge=0, description="0: the likeliest token each time")
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MOST_REPLIES, description="replies")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = False
