"""Checks handlers and guards at registration, and calls them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from crossband.handlers.parameters import check_first, check_injected


def check_callable(function: Any, what: str, *arguments: str, plain: bool = False) -> None:
    """Raise TypeError unless `function(*arguments)` would run; `what` is its role.

    Accepts plain and async functions (with `plain`, no async ones), methods, partials and
    callable objects, also if they have no readable signature.
    """
    kinds = "which is not async" if plain else "plain or async"
    takes = f"{what} takes a function ({', '.join(arguments)}), {kinds}"
    check_runs(function, takes)
    if plain and is_async(function):
        raise TypeError(f"{takes}; {name_of(function)} is async")
    try:
        # The call goes to the outermost wrapper, whatever it wraps.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{takes}; {name_of(function)} takes {signature}: {error}") from None
    try:
        check_injected(function, signature.parameters.values())
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
    if arguments[:1] == ("socket",):
        check_first(function, f"the function of {what}")


def check_runs(function: Any, takes: str) -> None:
    """Raise TypeError if a call would not run the code it is meant to run.

    That is so for anything not callable, for generator functions, and for classes whose
    instances are meant to be called. `takes` says what was expected.
    """
    if not callable(function):
        raise TypeError(f"{takes}, not {type(function).__name__}")
    name = name_of(function)
    if isinstance(function, type) and any("__call__" in base.__dict__ for base in function.__mro__):
        raise TypeError(f"{takes}; {name} is a class: pass an instance, {name}(…)")
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    call = getattr(type(inner), "__call__", None)  # noqa: B004 - the method itself is wanted
    for candidate in (inner, call):
        if _is_generator_function(candidate):
            raise TypeError(
                f"{takes}; {name} is a generator function, by its `yield`: a call would run "
                "none of its code"
            )


def check_outcome(middleware: Any, outcome: object) -> None:
    """Raise TypeError if a middleware's result shows that it meant to refuse.

    That is False, or a function that was never called: with `use(only)` instead of
    `use(only("admin"))`, the middleware returns the real one.
    """
    if outcome is False:
        raise TypeError(f"{name_of(middleware)} returned False: a middleware refuses by raising")
    if inspect.isroutine(outcome):
        raise TypeError(
            f"{name_of(middleware)} returned {name_of(outcome)}, which was never called: should "
            f"{name_of(middleware)} be called where it is registered?"
        )


def is_async(function: Any) -> bool:
    """Return whether calling this returns a coroutine; also for callable objects."""
    if inspect.iscoroutinefunction(function):
        return True
    call = getattr(function, "__call__", None)  # noqa: B004 - the method itself is wanted
    return inspect.iscoroutinefunction(call)


def _is_generator_function(function: Any) -> bool:
    if inspect.isasyncgenfunction(function):
        return True
    if not inspect.isgeneratorfunction(function):
        return False
    # Those decorated with `types.coroutine` can be awaited.
    code = getattr(function, "__code__", None)
    return code is None or not code.co_flags & inspect.CO_ITERABLE_COROUTINE


def name_of(function: Any) -> str:
    """Return a function's name in its module; looks through partials."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    # For a nested function, only the name in its `def`.
    return str(name).rpartition("<locals>.")[2]


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a plain or async function. Raises TypeError if none of its code ran."""
    result = function(*args)
    # Plain functions mostly return None, and `isawaitable` costs more than the call.
    if result is None:
        return None
    if inspect.isawaitable(result):
        result = await result
    # `check_callable` does not see a generator function inside another function, such as a lambda.
    if result is not None and (inspect.isgenerator(result) or inspect.isasyncgen(result)):
        raise TypeError(f"{function!r} returned a generator: none of its code has run")
    return result
