"""The server as an ASGI application: which address is whose."""

from collections.abc import Collection

from starlette.routing import Route, Router

from srum_jax.serving import http
from srum_jax.serving.endpoints import Endpoints
from srum_jax.serving.service import Service


def application(
    service: Service,
    *,
    key: str = "",
    hosts: Collection[str] | None = None,
    words: bool = False,
) -> http.Guard:
    """The ASGI application of a service; key, hosts, words: as of `http.Guard`."""
    does = Endpoints(service)
    routes = [
        Route("/", does.page, methods=["GET"]),
        Route("/page.js", does.page, methods=["GET"]),
        Route("/page.css", does.page, methods=["GET"]),
        Route("/health", does.health, methods=["GET"]),
        Route("/metrics", does.metrics, methods=["GET"]),
        Route("/v1/models", does.models, methods=["GET"]),
        Route("/v1/models/{name:path}", does.model, methods=["GET"]),
        Route("/v1/chat/completions", does.chat, methods=["POST"]),
        Route("/v1/images/generations", does.generations, methods=["POST"]),
        Route("/v1/images/edits", does.edits, methods=["POST"]),
        Route("/v1/score", does.score, methods=["POST"]),
    ]
    names = None if hosts is None else frozenset(hosts)
    paths = frozenset(route.path for route in routes)
    router = Router(routes, redirect_slashes=False)
    bodies = http.Bodies(max(service.limits.bodies, service.limits.body))
    return http.Guard(router, service.metrics, key, names, paths, words, bodies)
