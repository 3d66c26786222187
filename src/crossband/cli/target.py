"""Finds the hub that `module:hub` names, and says what is wrong when there is none."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType

from crossband.asgi import Hub
from crossband.errors import CrossbandError


class TargetError(CrossbandError):
    """A target that is no hub; the message says what it should have been."""


def load(target: str, app_dir: Path) -> Hub:
    """Import the hub of a target such as `chat.server:hub`. Raises TargetError.

    Modules are found in `app_dir` first.
    """
    name, colon, attribute = target.partition(":")
    if not colon or not name or not attribute:
        raise TargetError(f"{target!r} does not name a hub; expected module:hub{_guess(target)}")
    if name.endswith(".py") or "/" in name:
        raise TargetError(f"{name!r} is a file; expected a module{_guess(target)}")
    if str(app_dir) not in sys.path:
        sys.path.insert(0, str(app_dir))
    found: object = _import(name, app_dir)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise TargetError(_no_attribute(found, name, part)) from None
    if not isinstance(found, Hub):
        raise TargetError(_no_hub(found, target))
    return found


def _guess(target: str) -> str:
    name, _, attribute = target.partition(":")
    module = name.removesuffix(".py").strip("./").replace("/", ".")
    return f", such as {module or 'chat'}:{attribute or 'hub'}"


def _import(name: str, app_dir: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # Also "chat" of "chat.server"; any other name is missing inside the module.
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise TargetError(
                f"there is no module {exc.name!r} in {app_dir} or among the installed ones"
                " (--app-dir names another directory)"
            ) from None
        raise TargetError(f"cannot import {name}: {exc}{_where(exc, name)}") from exc
    except Exception as exc:
        raise TargetError(
            f"cannot import {name}: {type(exc).__name__}: {exc}{_where(exc, name)}"
        ) from exc


def _where(exc: BaseException, name: str) -> str:
    """Show the lines of the failing module: the frames below importlib's."""
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
    if callable(found) and not isinstance(found, type) and hasattr(found, "__name__"):
        what = "a function"
    elif isinstance(found, type):
        what = "a class"
    else:
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
        what = f"of type {module}{kind.__qualname__}"
    hint = ""
    if hasattr(found, "routes"):
        hint = f"; name the hub it mounts, or run the whole application with `uvicorn {target}`"
    return f"{target} is {what}, not a crossband.Hub{hint}"
