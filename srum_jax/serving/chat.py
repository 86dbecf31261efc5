"""Chat completions: what a client may say, and the forms of what it gets."""

import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from srum_jax.core.constraints import AtLeast, Between
from srum_jax.core.errors import quoted
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.generation.text_rows import Token
from srum_jax.serving import fields, pictures
from srum_jax.serving.limits import Limits
from srum_jax.serving.pictures import Bytes, Link
from srum_jax.serving.refusals import Refusal
from srum_jax.serving.sampler_fields import NAMES, SamplerFields
from srum_jax.serving.service import Sampling, Written
from srum_jax.serving.writer import Piece

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("parallel_tool_calls", "verbosity"),
)
FIXED = {
    "n": (1,),
    "top_p": (1, 1.0),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
PositiveInt = Annotated[int, AtLeast(1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFields(SamplerFields):
    """The fields of a request, and those of drawing for `modalities` with "image".

    frames: that are taken of a clip · think, reasoning_effort, chat_template_kwargs'
    enable_thinking: whether the model reasons before it answers.
    """

    messages: Any
    model: str = ""
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    temperature: Annotated[float, Between(0.0, 100.0)] = 0.0
    stop: Any = None
    stream: bool = False
    stream_options: Any = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Between(0, 20)] = 0
    modalities: Any = None
    frames: Annotated[int, Between(1, 64)] = 8
    reasoning_effort: str = "none"
    chat_template_kwargs: Any = None


@dataclasses.dataclass(frozen=True)
class Film:
    """A clip of a request, of which so many frames are read."""

    clip: Bytes | Link
    frames: int


@dataclasses.dataclass(frozen=True)
class Said:
    """A message: who says it, and texts, pictures and clips in their order."""

    role: str
    parts: tuple[str | Bytes | Link | Film, ...]


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """What a client wants: messages, how the answer is written, and whether an image is drawn."""

    fields: ChatFields
    messages: tuple[Said, ...]
    how: Sampling
    draws: bool
    usage: bool

    @property
    def likeliest(self) -> int | None:
        """Alternatives of each token; None: no probabilities at all."""
        return self.fields.top_logprobs if self.fields.logprobs else None


def read(body: dict[str, Any], limits: Limits, chance: int) -> ChatRequest:
    """A request from its JSON; chance: the seed where none is given. Raises Refusal 400."""
    told = fields.read(ChatFields, body, ignored=IGNORED, fixed=FIXED)
    if told.top_logprobs and not told.logprobs:
        raise Refusal(400, "top_logprobs: give logprobs = true too", param="top_logprobs")
    how = Sampling(
        max_tokens=told.max_completion_tokens or told.max_tokens,
        temperature=told.temperature,
        seed=candidate_seed(chance if told.seed is None else told.seed, 0, 0),
        stop=_stop(told.stop),
        probabilities=told.logprobs,
        think=_thinks(told),
    )
    messages = _messages(told.messages, told.frames, limits)
    draws = _draws(told.modalities)
    of_images = () if draws else (*NAMES, "size", "negative_prompt")
    for name in (*of_images, "partial_images"):
        if body.get(name) is not None:
            plain = f'{name} is of images: give modalities with "image", or ask images/generations'
            raise Refusal(400, plain, param=name, code="unsupported_value")
    return ChatRequest(told, messages, how, draws, _usage(told.stream_options))


def _stop(given: Any) -> tuple[str, ...]:
    several = [given] if isinstance(given, str) else given or []
    if not isinstance(several, list) or len(several) > 16:
        raise Refusal(400, "stop must be a text or up to 16 texts", param="stop")
    found = tuple(fields.text(one, "stop") for one in several)
    if not all(found) or any(len(one) > 1000 for one in found):
        raise Refusal(400, "stop: texts must have 1 to 1000 characters", param="stop")
    return found


def _thinks(told: ChatFields) -> bool:
    kwargs = told.chat_template_kwargs or {}
    if not isinstance(kwargs, dict) or not set(kwargs) <= {"enable_thinking"}:
        known = "chat_template_kwargs may hold enable_thinking alone"
        raise Refusal(400, known, param="chat_template_kwargs")
    if not isinstance(asked := kwargs.get("enable_thinking", False), bool):
        raise Refusal(400, "enable_thinking must be bool", param="chat_template_kwargs")
    if told.reasoning_effort not in ("none", "minimal", "low", "medium", "high"):
        known = "none, minimal, low, medium or high (all but none: it reasons)"
        raise Refusal(400, f"reasoning_effort must be {known}", param="reasoning_effort")
    return told.think or asked or told.reasoning_effort != "none"


def _draws(given: Any) -> bool:
    several = ["text"] if given is None else given
    known = isinstance(several, list) and several
    if not known or any(one not in ("text", "image") for one in several):
        raise Refusal(400, 'modalities is a list of "text" and "image"', param="modalities")
    return "image" in several


def _usage(given: Any) -> bool:
    options = given or {}
    if not isinstance(options, dict) or not set(options) <= {"include_usage"}:
        raise Refusal(400, "stream_options may hold include_usage alone", param="stream_options")
    return options.get("include_usage") is True


def _messages(given: Any, frames: int, limits: Limits) -> tuple[Said, ...]:
    if not isinstance(given, list) or not given:
        raise Refusal(400, "messages must be a list of messages", param="messages")
    said = tuple(_message(one, f"messages[{i}]", frames) for i, one in enumerate(given))
    shown = sum(not isinstance(part, str) for one in said for part in one.parts)
    if shown > limits.pictures:
        told = f"messages hold {shown} pictures; at most {limits.pictures} are read"
        raise Refusal(400, told, param="messages", code="too_many_images")
    if said[-1].role != "user" or not any(isinstance(p, str) for p in said[-1].parts):
        told = "the last message must be the user's, with a text in it"
        raise Refusal(400, told, param="messages")
    return said


def _message(given: Any, where: str, frames: int) -> Said:
    if not isinstance(given, dict):
        raise Refusal(400, f"{where} must be an object, got {quoted(given)}", param=where)
    _known(given, ("role", "content", "name", "reasoning_content", "refusal", "images"), where)
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        told = f"{where}.role = {quoted(role)} is not known: known: {known}"
        raise Refusal(400, told, param=f"{where}.role")
    several = content if isinstance(content, list) else [content]
    name = f"{where}.content"
    parts = [_part(one, f"{name}[{i}]" if several is content else name, frames)
             for i, one in enumerate(several)]  # fmt: skip
    if not parts:
        raise Refusal(400, f"{name} is empty", param=name)
    return Said(ROLES[role], _pictures_first(parts))


def _known(given: dict[str, Any], keys: Sequence[str], where: str) -> None:
    for key in given:
        if key not in keys:
            told = f"{where}: unknown key {quoted(key)}"
            raise Refusal(400, told, param=where, code="unknown_parameter")


def _pictures_first(parts: Sequence[Any]) -> tuple[Any, ...]:
    """As they are; pictures that all follow the text, as some clients put them, come before it, as
    the model was trained."""
    words = [isinstance(part, str) for part in parts]
    if words == sorted(words, reverse=True):
        return tuple(sorted(parts, key=lambda part: isinstance(part, str)))
    return tuple(parts)


def _part(given: Any, where: str, frames: int) -> str | Bytes | Link | Film:
    if isinstance(given, str):
        return fields.text(given, where, empty=False)
    kinds = ("text", "image_url", "video_url")
    if not isinstance(given, dict) or given.get("type") not in kinds:
        told = f"{where} must be a text or a part of type {', '.join(kinds)}; got {quoted(given)}"
        raise Refusal(400, told, param=where)
    kind = given["type"]
    _known(given, ("type", kind, "cache_control"), where)
    if kind == "text":
        return fields.text(given.get("text"), f"{where}.text", empty=False)
    shown = given.get(kind)
    if isinstance(shown, dict):
        _known(shown, ("url", "detail", "format"), f"{where}.{kind}")
        shown = shown.get("url")
    found = pictures.of_url(shown, f"{where}.{kind}")
    return Film(found, frames) if kind == "video_url" else found


# ----------------------------------------------------------------------------------- what it gets


@dataclasses.dataclass(frozen=True)
class Reply:
    """What all forms of a reply share: its name, and the model's."""

    model: str
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    likeliest: int | None = None
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, message: dict, tokens: Sequence[Token], end: Written) -> dict[str, Any]:
        """All of it at once."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", **message},
            "logprobs": self._logprobs(tokens),
            "finish_reason": end.reason,
        }
        return self._of("chat.completion", [choice]) | {"usage": usage(end)}

    def chunk(
        self, delta: dict, tokens: Sequence[Token] = (), reason: str | None = None
    ) -> dict[str, Any]:
        """A part of a stream."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": reason,
        }
        return self._of("chat.completion.chunk", [choice])

    def last(self, end: Written) -> dict[str, Any]:
        """The part of a stream that counts tokens."""
        return self._of("chat.completion.chunk", []) | {"usage": usage(end)}

    def _of(self, kind: str, choices: list) -> dict[str, Any]:
        said = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return said | {"choices": choices}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.likeliest is None:
            return None
        found = []
        for token in tokens:
            others = token.likeliest[: self.likeliest]
            top = [self._token(*one) for one in others]
            found.append(self._token(token.id, token.logprob) | {"top_logprobs": top})
        return {"content": found, "refusal": None}

    def _token(self, number: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([number])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def message(pieces: Sequence[Piece], think: bool) -> dict[str, Any]:
    """The message of an answer's pieces."""
    said: dict[str, Any] = {"content": "".join(piece.text for piece in pieces)}
    if think:
        said["content"] = said["content"].strip()
        said["reasoning_content"] = "".join(piece.thought for piece in pieces).strip()
    return said


def delta(piece: Piece) -> dict[str, str]:
    """What a piece adds to a message."""
    thought = {"reasoning_content": piece.thought} if piece.thought else {}
    return thought | ({"content": piece.text} if piece.text else {})


def usage(end: Written) -> dict[str, int]:
    """Tokens that were read and written."""
    return {
        "prompt_tokens": end.read,
        "completion_tokens": end.written,
        "total_tokens": end.read + end.written,
    }


def event(data: dict[str, Any], name: str = "") -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode("ascii")


END = b"data: [DONE]\n\n"
