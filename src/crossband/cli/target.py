"""Finds the hub or application at `module:name`, or says why there is none."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, cast

from crossband.asgi import Hub
from crossband.errors import CrossbandError
from crossband.mounts import Mounted, hubs_in, takes_asgi
from crossband.server import ASGIApp


class TargetError(CrossbandError):
    """A target cannot be served; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to serve, and the hubs in it: at least one."""

    app: ASGIApp
    hubs: list[Mounted]


def load(target: str, app_dir: Path) -> Target:
    """Import a hub such as `chat.server:hub`, or an application with one: `main:app`.

    A function without arguments, as `main:create_app`, is called to create it. Modules are
    looked up in `app_dir` first. Raises TargetError.
    """
    name, colon, attribute = target.partition(":")
    if not colon or not name or not attribute:
        raise TargetError(f"{target!r} does not name a hub; expected module:hub{_guess(target)}")
    if name.endswith(".py") or "/" in name:
        raise TargetError(f"{name!r} is a file; expected a module{_guess(target)}")
    if str(app_dir) not in sys.path:
        sys.path.insert(0, str(app_dir))
    found: Any = _import(name, app_dir)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise TargetError(_no_attribute(found, name, part)) from None
    made = ""
    if _is_factory(found):
        made = " returned something that"
        found = _make(found, target)
    if isinstance(found, Hub):
        return Target(found, [Mounted(found, "")])
    hubs = [] if isinstance(found, type) else hubs_in(found)
    hubs = [mounted for mounted in hubs if isinstance(mounted.hub, Hub)]
    if not hubs or not callable(found):
        raise TargetError(_no_hub(found, f"{target}{made}"))
    return Target(cast(ASGIApp, found), hubs)


def _is_factory(found: object) -> bool:
    if not inspect.isroutine(found) and not isinstance(found, functools.partial):
        return False
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):
        return False
    return True


def _make(factory: Any, target: str) -> Any:
    try:
        made = factory()
    except Exception as exc:
        where = _where(exc, target.partition(":")[0])
        raise TargetError(f"{target} failed: {type(exc).__name__}: {exc}{where}") from exc
    if inspect.iscoroutine(made):
        made.close()
        raise TargetError(f"{target} is async; expected a plain function that returns a hub")
    return made


def _guess(target: str) -> str:
    name, _, attribute = target.partition(":")
    module = name.removesuffix(".py").strip("./").replace("/", ".")
    return f", such as {module or 'chat'}:{attribute or 'hub'}"


def _import(name: str, app_dir: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # It can also be "chat" of "chat.server"; any other name is missing inside the module.
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise TargetError(
                f"there is no module {exc.name!r} in {app_dir}, and none is installed"
                " (--app-dir names another directory)"
            ) from None
        raise TargetError(f"cannot import {name}: {exc}{_where(exc, name)}") from exc
    except Exception as exc:
        raise TargetError(
            f"cannot import {name}: {type(exc).__name__}: {exc}{_where(exc, name)}"
        ) from exc


def _where(exc: BaseException, name: str) -> str:
    """Show the failing lines of the module: the frames below importlib's."""
    if isinstance(exc, SyntaxError):
        return "\n" + "".join(traceback.format_exception_only(exc)).rstrip()
    tb: TracebackType | None = exc.__traceback__
    while tb is not None and (
        tb.tb_frame.f_code.co_filename.startswith("<frozen importlib")
        or tb.tb_frame.f_globals.get("__name__") in (__name__, "importlib")
    ):
        tb = tb.tb_next
    return "\n" + "".join(traceback.format_tb(tb)).rstrip() if tb is not None else ""


def _no_attribute(parent: object, name: str, attribute: str) -> str:
    names = [each for each in vars(parent) if not each.startswith("_")] if _has_dict(parent) else []
    hubs = [each for each in names if isinstance(getattr(parent, each, None), Hub)]
    near = hubs or difflib.get_close_matches(attribute, names, n=1)
    hint = f"; did you mean {name}:{near[0]}?" if near else ""
    return f"module {name!r} has no {attribute!r}{hint}"


def _has_dict(value: object) -> bool:
    return hasattr(value, "__dict__")


def _no_hub(found: object, target: str) -> str:
    kind = type(found)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    if hasattr(found, "routes") or (inspect.isroutine(found) and takes_asgi(found)):
        what = (
            "an application" if inspect.isroutine(found) else f"of type {module}{kind.__qualname__}"
        )
        return (
            f'{target} is {what} with no hub in it. Mount one, app.mount("/realtime", hub), or '
            f"name the hub itself; `uvicorn {target.partition(' ')[0]}` serves it without one"
        )
    if inspect.isroutine(found):
        what = "a function that takes arguments"
    elif isinstance(found, type):
        what = "a class"
    else:
        what = f"of type {module}{kind.__qualname__}"
    return f"{target} is {what}, not a crossband.Hub or an application with one"
