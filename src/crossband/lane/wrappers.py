"""Tells the server's own `receive` and `send` from those of a middleware."""

from __future__ import annotations

from typing import Any, Final

# Starlette wraps `send` of every request, so that its error pages know whether a response has
# started. These two only look on: (module, qualified name), and the name of what they wrap.
_ONLOOKERS: Final = {
    ("starlette.middleware.errors", "ServerErrorMiddleware.__call__.<locals>._send"): "send",
    (
        "starlette._exception_handler",
        "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender",
    ): "send",
}


def is_own(function: Any, own: Any) -> bool:
    """Return whether this is the server's own, below wrappers that change nothing.

    Any other `receive` or `send` belongs to a middleware, which a lane would bypass.
    """
    while function != own:
        place = (getattr(function, "__module__", None), getattr(function, "__qualname__", None))
        name = _ONLOOKERS.get(place)  # type: ignore[arg-type]
        if name is None or name not in function.__code__.co_freevars:
            return False
        function = function.__closure__[function.__code__.co_freevars.index(name)].cell_contents
    return True
