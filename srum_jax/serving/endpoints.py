"""The addresses of the server: each reads a request, has it done, and says what came of it."""

import asyncio
import contextlib
import dataclasses
import importlib.resources
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from srum_jax.core.errors import BadInput
from srum_jax.generation.context import Context
from srum_jax.generation.image_request import GeneratedImage
from srum_jax.inputs import Conversation, Shown, Turn
from srum_jax.serving import chat, drawing, fields, http, pictures
from srum_jax.serving.chat import ChatRequest, Film, Reply, Said
from srum_jax.serving.drawing import GenerationFields
from srum_jax.serving.limits import Limits
from srum_jax.serving.pictures import Bytes, Link
from srum_jax.serving.refusals import Refusal
from srum_jax.serving.sampler_fields import SamplerFields
from srum_jax.serving.service import Plan, Service, Written, thinks
from srum_jax.serving.work import Running
from srum_jax.serving.work import Shown as ShownStep

_FORM_FIELDS, _FIELD_BYTES = 64, 2**16
_PAGE = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript")}
_PAGE |= {"/page.css": ("page.css", "text/css")}
# The page loads nothing from elsewhere, and no other page may hold it.
_POLICY = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("img-src 'self' data: blob:", "base-uri 'none'", "form-action 'none'"),
        "frame-ancestors 'none'",
    ]
)


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """Those of a service."""

    service: Service

    async def health(self, request: Request) -> Response:
        """Whether it takes work."""
        service = self.service
        said = {"status": "draining" if service.draining else "ok", "model": service.name}
        if (step := service.running.step) is not None:
            said["step"] = step
        return http.Json(said, 503 if service.draining else 200)

    async def models(self, request: Request) -> Response:
        """The model."""
        return http.Json({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """The model by its name."""
        self._check_model(request.path_params["name"])
        return http.Json(self._described())

    async def metrics(self, request: Request) -> Response:
        """As Prometheus reads them."""
        service = self.service
        programs = len(service.running.model.programs.compiled)
        service.metrics.set("programs_compiled", programs)
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """The page and its parts."""
        name, media = _PAGE[request.url.path]
        data = importlib.resources.files("srum_jax.serving").joinpath("page", name).read_bytes()
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        headers |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return Response(data, media_type=media, headers=headers)

    # ------------------------------------------------------------------------------------- chat

    async def chat(self, request: Request) -> Response:
        """Chat completions, and images where `modalities` has them."""
        given = await self._json(request)
        asked = chat.read(given, self.service.limits, _chance())
        parts = (part for one in asked.messages for part in one.parts)
        http.note(request, *(part for part in parts if isinstance(part, str)))
        self._check_model(asked.fields.model)
        if asked.draws:
            if asked.fields.stream:
                told = "images in a chat come whole: leave out stream, or use images/generations"
                raise Refusal(400, told, param="stream", code="unsupported_value")
            return http.Json(await http.unless_gone(request.receive, self._chat_image(asked)))
        if asked.fields.stream:
            return await http.events(self._chat_events(asked), request.receive)
        return http.Json(await http.unless_gone(request.receive, self._chat_whole(asked)))

    async def _written(self, asked: ChatRequest) -> AsyncIterator[Any]:
        """Pieces and the end of what is written."""
        service, running = self.service, self.service.running
        with service.request():
            said = await self._fetched(asked.messages)
            with _readable("messages"):
                context = await asyncio.to_thread(self._question, running, said)
            async for piece in service.write(running, context, asked.how):
                yield piece

    async def _chat_whole(self, asked: ChatRequest) -> dict[str, Any]:
        pieces, tokens, end = [], [], None
        async for piece in self._written(asked):
            if isinstance(piece, Written):
                end = piece
            else:
                pieces.append(piece)
                tokens += piece.tokens
        return self._reply(asked).whole(chat.message(pieces, asked.how.think), tokens, end)

    async def _chat_events(self, asked: ChatRequest) -> AsyncIterator[bytes]:
        reply, begun = self._reply(asked), False
        async for piece in self._written(asked):
            if not begun:
                yield chat.event(reply.chunk({"role": "assistant", "content": ""}))
                begun = True
            if not isinstance(piece, Written):
                yield chat.event(reply.chunk(chat.delta(piece), piece.tokens))
                continue
            yield chat.event(reply.chunk({}, reason=piece.reason))
            if asked.usage:
                yield chat.event(reply.last(piece))
        yield chat.END

    async def _chat_image(self, asked: ChatRequest) -> dict[str, Any]:
        """A message with an image: drawn, or, where pictures were shown, changed as told."""
        service, running = self.service, self.service.running
        with service.request():
            said = await self._fetched(asked.messages)
            told = await asyncio.to_thread(self._conversation, running, said)
            seeds = asked.fields.seeds(1, _chance())
            plan = await self._plan(running, told, asked.fields, seeds, edit=bool(told.images))
            (image,), thought = await service.images(running, plan)
            url = "data:image/png;base64," + await _encoded(image)
        part = {"type": "image_url", "image_url": {"url": url}}
        said: dict[str, Any] = {"content": "", "images": [part]}
        if plan.think:
            said["reasoning_content"] = thought
        return self._reply(asked).whole(said, (), Written("stop", 0, 0))

    def _reply(self, asked: ChatRequest) -> Reply:
        tokenizer = self.service.running.model.tokenizer
        return Reply(self.service.name, tokenizer, asked.likeliest)

    # ----------------------------------------------------------------------------------- images

    async def generations(self, request: Request) -> Response:
        """Images of a prompt."""
        told = drawing.read(await self._json(request), self.service.limits)
        http.note(request, told.prompt)
        self._check_model(told.model)
        words = Conversation((Turn("user", (told.prompt,)),))
        return await self._images(request, told, words, edit=False)

    async def edits(self, request: Request) -> Response:
        """Images, changed as told."""
        form, given = await self._form(request)
        told = drawing.read(fields.of_form(GenerationFields, form), self.service.limits)
        http.note(request, told.prompt)
        self._check_model(told.model)
        if not given:
            raise Refusal(400, "image is missing", param="image")
        released = self.service.running.model.generation_config.official
        shown = await asyncio.to_thread(self._pixels, given, released)
        words = Conversation((Turn("user", (*map(Shown, shown), told.prompt)),))
        return await self._images(request, told, words, edit=True)

    async def _images(
        self, request: Request, told: GenerationFields, words: Conversation, edit: bool
    ) -> Response:
        chance = _chance()
        if told.stream:
            return await http.events(self._image_events(told, words, edit, chance), request.receive)
        whole = self._image_list(told, words, edit, chance)
        return http.Json(await http.unless_gone(request.receive, whole))

    async def _image_list(
        self, told: GenerationFields, words: Conversation, edit: bool, chance: int
    ) -> dict[str, Any]:
        service, running = self.service, self.service.running
        with service.request():
            seeds = told.seeds(told.n, chance)
            plan = await self._plan(running, words, told, seeds, edit)
            images, thought = await service.images(running, plan)
            encoded = [await _encoded(one) for one in images]
        entries = [
            drawing.entry(one, seed, thought) for one, seed in zip(encoded, seeds, strict=True)
        ]
        return drawing.drawn(entries, chance if told.seed is None else told.seed, plan.size)

    async def _image_events(
        self, told: GenerationFields, words: Conversation, edit: bool, chance: int
    ) -> AsyncIterator[bytes]:
        """Pictures of the way and the images, as OpenAI's events have them."""
        kind = "image_edit" if edit else "image_generation"
        service, running = self.service, self.service.running
        with service.request():
            seeds, thought, count = told.seeds(told.n, chance), "", 0
            plan = await self._plan(running, words, told, seeds, edit)
            common = {"seed": chance if told.seed is None else told.seed}
            async for place, found in service.draw(running, plan):
                if place < 0:
                    thought = found
                    continue
                said = {"type": f"{kind}.completed", "index": place, **common}
                said |= drawing.entry(await _encoded(found), seeds[place], thought)
                if isinstance(found, ShownStep):
                    said |= {"type": f"{kind}.partial_image", "partial_image_index": count}
                    steps = running.sampler.steps(plan.settings)
                    said |= {"step": found.number, "steps": steps}
                    count += 1
                yield chat.event(said, said["type"])

    async def _plan(
        self,
        running: Running,
        told: Conversation,
        how: SamplerFields,
        seeds: Sequence[int],
        edit: bool,
    ) -> Plan:
        """What is drawn: the request read by the model."""
        service, config = self.service, running.model.generation_config
        family = running.model.family
        if family.ONLY_WORDS and (edit or how.think or told.images):
            name = "think" if how.think else "image"
            raise Refusal(400, family.ONLY_WORDS, param=name, code="unsupported_value")
        default = config.edit if edit else config.generate
        settings = how.settings(default, service.limits, family.SAMPLER)
        negative, size = None, settings.size
        if not edit:
            _check_size(size, running)
        elif how.size != "auto":
            plain = 'an edit has the size of its image: leave out size, or give "auto"'
            raise Refusal(400, plain, param="size", code="unsupported_value")
        with _readable("negative_prompt"):
            if how.negative_prompt:
                negative = running.model.tokenizer.text(config.prompt(how.negative_prompt))
                if settings.guidance <= 1:
                    raise BadInput("negative_prompt: guidance_scale must be above 1 for it")
        with _readable("prompt"):
            if edit:
                noise = seeds[0] if config.official else None
                items, size = await service.read_edit(running, told, noise)
            else:
                items = await service.read_drawing(running, told)
        shown = how.shown(running.sampler.steps(settings))
        return Plan(items, size, seeds, settings, negative, how.think, shown)

    async def score(self, request: Request) -> Response:
        """How well an image fits a prompt, by the model's own judgement."""
        told, image = drawing.read_score(await self._json(request))
        http.note(request, told.prompt)
        self._check_model(told.model)
        found = await http.unless_gone(request.receive, self._scored(told.prompt, image))
        return http.Json(drawing.scored(found, self.service.name))

    async def _scored(self, prompt: str, image: Bytes | Link):
        service, running = self.service, self.service.running
        with service.request():
            with _readable("prompt"):
                running.model.generation_config.prompt(prompt)
            image = image if isinstance(image, Bytes) else await service.fetcher.fetch(image)
            released = running.model.generation_config.official
            (shown,) = await asyncio.to_thread(self._pixels, [image], released)
            return await service.score(running, shown, prompt)

    # --------------------------------------------------------------------------------- requests

    def _described(self) -> dict[str, Any]:
        service = self.service
        said = {"id": service.name, "object": "model", "created": int(service.started)}
        model = service.running.model
        default = model.generation_config.generate
        height, width = default.size
        by = {"size": f"{width}x{height}", "guidance_scale": default.guidance}
        if "steps" in model.family.SAMPLER:
            by["num_inference_steps"] = default.steps
        said |= {"owned_by": "srum_jax", "defaults": by}
        return said | {"edits": not model.family.ONLY_WORDS, "thinks": thinks(model)}

    def _check_model(self, name: str) -> None:
        if name not in ("", self.service.name):
            told = f"there is no model {name[:100]!r} here; this is {self.service.name!r}"
            raise Refusal(404, told, param="model", code="model_not_found")

    async def _json(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(400, "the body must be JSON: Content-Type: application/json")
        return fields.parsed(await http.body(request, self.service.limits))

    async def _form(self, request: Request) -> tuple[dict[str, str], list[Bytes]]:
        """(texts of a multipart form, its pictures). Raises Refusal 400."""
        data = await http.body(request, self.service.limits)
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise Refusal(400, "the body must be a form: Content-Type: multipart/form-data")

        async def stream():
            yield data

        most = self.service.limits.pictures
        how = dict(max_files=most + 1, max_fields=_FORM_FIELDS, max_part_size=_FIELD_BYTES)
        try:
            form = await MultiPartParser(request.headers, stream(), **how).parse()
        except (MultiPartException, ValueError, LookupError, AttributeError, TypeError) as e:
            told = getattr(e, "message", "") or "damaged"
            raise Refusal(400, f"the form cannot be read: {str(told)[:200]}") from None
        texts, shown = {}, []
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(form.close)
            for key, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if key not in ("image", "image[]"):
                        raise Refusal(400, f"{key[:80]}: no such file is read", param=key[:80])
                    shown.append(Bytes(await value.read(), "image"))
                else:
                    texts[key] = value
        if len(shown) > most:
            raise Refusal(400, f"at most {most} images are read", param="image")
        return texts, shown

    async def _fetched(self, said: Sequence[Said]) -> list[Said]:
        """Messages with the files that links lead to, of no more bytes than a body has."""
        left, found = self.service.limits.body, []
        for one in said:
            parts: list[Any] = []
            for part in one.parts:
                link = part.clip if isinstance(part, Film) else part
                if isinstance(link, Link):
                    data = await self.service.fetcher.fetch(link, left)
                    left -= len(data.data)
                    part = Film(data, part.frames) if isinstance(part, Film) else data
                parts.append(part)
            found.append(dataclasses.replace(one, parts=tuple(parts)))
        return found

    # What follows takes a while, and runs in a thread of its own.

    def _question(self, running: Running, said: Sequence[Said]) -> Context:
        return running.model.reader.question(self._conversation(running, said), None, None, 1)

    def _conversation(self, running: Running, said: Sequence[Said]) -> Conversation:
        """Messages with their pictures decoded, clips as frames."""
        how, limits, turns = running.model.generation_config, self.service.limits, []
        for one in said:
            parts: list[Any] = []
            for part in one.parts:
                if isinstance(part, Film):
                    parts += _frames(part, how, limits)
                elif isinstance(part, Bytes):
                    parts += map(Shown, self._pixels([part], how.official))
                else:
                    parts.append(part)
            turns.append(Turn(one.role, tuple(parts)))
        return Conversation(tuple(turns))

    def _pixels(self, given: Sequence[Bytes], released: bool) -> list[np.ndarray]:
        return [pictures.pixels(one, self.service.limits, released) for one in given]


def _check_size(size: tuple[int, int], running: Running) -> None:
    """Raises Refusal 400 for a size that the model has no positions for."""
    try:
        running.sampler.check_size(size)
    except ValueError as e:
        raise Refusal(400, f"size: {e}", param="size", code="invalid_value") from None


def _chance() -> int:
    return secrets.randbits(32)


async def _encoded(image: GeneratedImage | ShownStep) -> str:
    return await asyncio.to_thread(pictures.as_base64, image.image)


def _frames(film: Film, settings: Any, limits: Limits) -> list[str | Shown]:
    """A clip's frames, each after its label. Raises Refusal 422 for what is no clip."""
    from srum_jax.data import video

    with tempfile.NamedTemporaryFile(suffix=".clip") as file:
        file.write(film.clip.data)
        file.flush()
        try:
            found = video.frames(file.name, film.frames, most=limits.clip)
        except ValueError as e:
            told = str(e).replace(file.name, film.clip.name)
            raise Refusal(422, told, param=film.clip.name, code="invalid_video") from None
    parts: list[str | Shown] = []
    for number, (seconds, pixels) in enumerate(found, start=1):
        if settings.frame:
            parts.append(settings.label(number, seconds))
        parts.append(Shown(pixels))
    return parts


@contextlib.contextmanager
def _readable(name: str):
    """What the model has no words or no room for is 422, naming the field."""
    try:
        yield
    except Refusal as e:
        e.param = e.param or name
        raise
    except ValueError as e:
        raise Refusal(422, str(e)[:400], param=name, code="unreadable") from None
