"""What may be given as a handler or a guard: checked where it is registered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from crossband.handlers.parameters import check_first, check_injected


def check_callable(function: Any, what: str, *arguments: str, plain: bool = False) -> None:
    """Raise TypeError unless `function(*arguments)` would run; `what` says where it was given.

    Plain and async functions, or only `plain` ones, methods, partials and callable objects
    pass, and what has no signature to read.
    """
    kinds = "which is not async" if plain else "plain or async"
    takes = f"{what} takes a function ({', '.join(arguments)}), {kinds}"
    check_runs(function, takes)
    if plain and is_async(function):
        raise TypeError(f"{takes}; {name_of(function)} is async")
    try:
        # What is called is the outermost wrapper, whatever it wraps.
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
    """Raise TypeError for what, when called, would run nothing of what it is there for.

    These are, besides what cannot be called, generator functions, and classes whose instances
    are to be called. `takes` says what was expected.
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
                "nothing of it"
            )


def check_outcome(middleware: Any, outcome: object) -> None:
    """Raise TypeError where what a middleware returned shows that it meant to refuse.

    That is False, or a function that was never called, such as that of `use(only("admin"))`
    where `use(only)` was written.
    """
    if outcome is False:
        raise TypeError(f"{name_of(middleware)} returned False: a middleware refuses by raising")
    if inspect.isroutine(outcome):
        raise TypeError(
            f"{name_of(middleware)} returned {name_of(outcome)}, which nobody called: is it to be "
            "called where it is registered?"
        )


def is_async(function: Any) -> bool:
    """Tell whether calling this gives a coroutine; also for callable objects."""
    if inspect.iscoroutinefunction(function):
        return True
    call = getattr(function, "__call__", None)  # noqa: B004 - the method itself is wanted
    return inspect.iscoroutinefunction(call)


def _is_generator_function(function: Any) -> bool:
    if inspect.isasyncgenfunction(function):
        return True
    if not inspect.isgeneratorfunction(function):
        return False
    # Those of `types.coroutine` can be awaited.
    code = getattr(function, "__code__", None)
    return code is None or not code.co_flags & inspect.CO_ITERABLE_COROUTINE


def name_of(function: Any) -> str:
    """Return what a function is called in its module, through partials."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    # Of a function in a function, only what stands at its `def`.
    return str(name).rpartition("<locals>.")[2]


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a plain or async function. Raises TypeError where nothing of it would run."""
    result = function(*args)
    # What plain ones return, as a rule: `isawaitable` costs more than the call.
    if result is None:
        return None
    if inspect.isawaitable(result):
        result = await result
    # Of a function that `check_callable` cannot see into, such as a lambda around it.
    if result is not None and (inspect.isgenerator(result) or inspect.isasyncgen(result)):
        raise TypeError(f"{function!r} returned a generator: nothing of it has run")
    return result
