"""Finds the hubs inside an ASGI application: mounted, or wrapped in middlewares."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

from crossband.settings import Settings

# Attributes in which wrappers commonly keep the application they wrap.
_WRAPPED: Final = ("app", "_app", "application", "asgi_app", "other_asgi_app", "__wrapped__")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A hub in an application."""

    hub: Any
    # Its mount path: "" at the root, else for example "/realtime".
    path: str


def hubs_in(app: object) -> list[Mounted]:
    """Return the hubs of an application, each once, in the order of its routes.

    Looks at the application itself, at what Starlette and FastAPI mount (at any depth), and at
    what a middleware or dispatcher holds, closes over or calls.
    """
    found: dict[int, Mounted] = {}
    _walk(app, "", found, set())
    return list(found.values())


def _walk(app: object, path: str, found: dict[int, Mounted], seen: set[int]) -> None:
    if _is_hub(app):
        found.setdefault(id(app), Mounted(app, path))
    elif app is not None and id(app) not in seen:
        seen.add(id(app))
        for inner, below in _inside(app):
            _walk(inner, path + below, found, seen)


def _is_hub(value: object) -> bool:
    return isinstance(getattr(value, "settings", None), Settings)


def _inside(app: object) -> Iterator[tuple[object, str]]:
    """Yield what an application may pass requests to, with the path it is mounted at."""
    routes = getattr(app, "routes", None)
    if isinstance(routes, Sequence):
        for route in routes:
            yield from _routed(route)
    if isinstance(app, functools.partial):
        for value in (app.func, *app.args, *app.keywords.values()):
            yield value, ""
    elif isinstance(app, FunctionType):
        yield getattr(app, "__wrapped__", None), ""
        if takes_asgi(app):
            yield from ((each, "") for each in _known_to(app))
    else:
        held = getattr(app, "__dict__", {})
        yield from ((held[name], "") for name in _WRAPPED if name in held)
        yield from ((value, "") for value in list(held.values()) if _is_hub(value))
        # By path, as in Werkzeug's DispatcherMiddleware.
        for table in (held.get("mounts"), held.get("apps")):
            if isinstance(table, Mapping):
                yield from ((each, str(prefix).rstrip("/")) for prefix, each in table.items())
        call = getattr(type(app), "__call__", None)  # noqa: B004 - the method itself is wanted
        if isinstance(call, FunctionType) and routes is None:
            yield from ((each, "") for each in _known_to(call))


def _known_to(function: FunctionType) -> Iterator[object]:
    """Yield the applications that a function closes over or refers to as globals."""
    for cell in function.__closure__ or ():
        # A cell is empty until its variable is set.
        with contextlib.suppress(ValueError):
            yield from _application(cell.cell_contents)
    for name in function.__code__.co_names:
        yield from _application(function.__globals__.get(name))


def _application(value: object) -> Iterator[object]:
    if isinstance(value, FunctionType):
        takes = takes_asgi(value)
    else:
        takes = callable(value) and not isinstance(value, (type, ModuleType, BuiltinFunctionType))
    if takes:
        yield value


def _routed(route: object) -> Iterator[tuple[object, str]]:
    path = str(getattr(route, "path", "")).rstrip("/")
    # A route's application wraps its endpoint, which may itself be a hub.
    endpoint = getattr(route, "endpoint", None)
    if endpoint is None:
        yield getattr(route, "app", None), path
    elif not isinstance(endpoint, FunctionType):
        yield endpoint, path.partition("{")[0].rstrip("/")


def takes_asgi(function: Callable[..., Any]) -> bool:
    """Return whether a function takes an ASGI application's three arguments."""
    try:
        inspect.signature(function).bind("scope", "receive", "send")
    except (TypeError, ValueError):
        return False
    return True
