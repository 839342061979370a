"""What a chat request may look like: checked in one pass, since vLLM looks at contents only when it uses them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_LONGEST_REASON = 300


class _Model(BaseModel):
    model_config = ConfigDict(strict=True)


class _Text(_Model):
    type: Literal["text"]
    text: str


class _File(_Model):
    data: str
    format: str


class _InputAudio(_Model):
    type: Literal["input_audio"]
    input_audio: _File


class _Address(_Model):
    url: str


class _AudioUrl(_Model):
    type: Literal["audio_url"]
    audio_url: _Address


_Part = Annotated[_Text | _InputAudio | _AudioUrl, Field(discriminator="type")]


class _Message(_Model):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None


class _Chat(_Model):
    messages: list[_Message] = Field(min_length=1)
    stop: str | list[str] | None = None


def fault(body: bytes) -> str | None:
    """Returns what is wrong with the body of a chat request, in a line; None if nothing is.

    JSON that can't be text (lone surrogates) or is nested too deep is refused too. What was sent is never shown: it may
    be megabytes of audio.
    """
    try:
        _Chat.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return (f"{where}: {first['msg']}" if where else first["msg"])[:_LONGEST_REASON]
    return None
