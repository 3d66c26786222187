"""Imports point down: the layers of docs/explanation/architecture.md, held by a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src/crossband"

# From the top down. A module may import from the layers below its own; those that share a
# line are siblings and do not import each other. Inside a package, modules import each
# other, but never in a circle, not even for types.
FACADE = "crossband"  # crossband/__init__.py: names what is public, from any layer below.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("demo",),
    (FACADE,),
    ("server", "standalone"),
    ("lane", "mounts"),
    ("asgi",),
    ("transports",),
    ("publisher",),
    ("hub",),
    ("connection",),
    ("codecs",),
    ("handlers",),
    ("client",),
    ("settings",),
    ("limits", "rates", "slots", "addresses", "policies", "broker", "presence", "auth"),
    ("protocol",),
    ("names", "lifespan", "timers"),
    ("errors", "handshake", "invocation", "workers", "signals", "version"),
)
LAYER_OF = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# Nothing in protocol/ can block, wait, read a clock or log.
IMPURE = frozenset(
    (
        *("asyncio", "anyio", "concurrent", "threading", "subprocess", "uvloop"),
        *("select", "selectors", "signal", "socket", "ssl", "httptools", "uvicorn"),
        *("datetime", "time", "logging", "warnings"),
    )
)


def layer_name(module: str) -> str:
    """Return the part of a module's name that LAYERS goes by."""
    return module.split(".")[1] if "." in module else FACADE


def package_sources() -> dict[str, str]:
    """Return the source of every module of the package, by its dotted name."""
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("crossband", *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def imported(module: str, sources: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every import in a module, wherever it stands.

    Imports inside functions and under `TYPE_CHECKING` count: knowing a layer's types is
    knowing the layer.
    """
    is_package = any(other.startswith(f"{module}.") for other in sources)
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                above = parents[: len(parents) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in sources else base


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return one line for each import, or module, that breaks a rule."""
    broken = []
    for module in sources:
        layer = layer_name(module)
        if layer not in LAYER_OF:
            broken.append(f"{module}: in no layer; give it a place in LAYERS")
            continue
        for line, target in imported(module, sources):
            where = f"{module}:{line} imports {target}"
            root = target.split(".")[0]
            if root != "crossband":
                if layer == "protocol" and root in IMPURE:
                    broken.append(f"{where}: protocol/ is pure")
                continue
            below = layer_name(target)
            if below not in LAYER_OF:
                broken.append(f"{where}: in no layer")
            elif below != layer and LAYER_OF[below] <= LAYER_OF[layer]:
                sideways = LAYER_OF[below] == LAYER_OF[layer]
                broken.append(f"{where}: {'a sibling' if sideways else 'upwards'}")
    return broken


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which modules each module imports, types included."""
    return {
        module: {target for _, target in imported(module, sources) if target in sources} - {module}
        for module in sources
    }


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return a circle for each import that closes one."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(graph[module]):
                visit(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_imports_point_down() -> None:
    assert violations(package_sources()) == []


def test_no_imports_go_in_circles() -> None:
    assert circles(graph_of(package_sources())) == []


def test_every_layer_below_the_runner_is_there() -> None:
    present = {layer_name(module) for module in package_sources()}
    assert {"errors", "protocol", "limits", "broker", "codecs", "connection", "hub"} <= present


def test_planted_upward_import_is_caught() -> None:
    sources = {
        "crossband": "",
        "crossband.errors": "",
        "crossband.connection": "def late() -> None:\n    from crossband.hub import Namespace\n",
        "crossband.hub": "from crossband.errors import Gap\n",
        "crossband.hub.socket": "from . import namespace\nfrom .. import asgi\n",
        "crossband.hub.namespace": "",
        "crossband.asgi": "import crossband.server\n",
        "crossband.server": "",
    }
    assert violations(sources) == [
        "crossband.connection:2 imports crossband.hub: upwards",
        "crossband.hub.socket:2 imports crossband.asgi: upwards",
        "crossband.asgi:1 imports crossband.server: upwards",
    ]


def test_planted_sibling_import_is_caught() -> None:
    sources = {
        "crossband.broker": "",
        "crossband.broker.memory": "from crossband import limits\nfrom crossband.broker import X\n",
        "crossband.limits": "",
    }
    assert violations(sources) == ["crossband.broker.memory:1 imports crossband.limits: a sibling"]


def test_planted_clock_in_a_protocol_is_caught() -> None:
    sources = {"crossband.protocol.sse": "import re\nfrom time import monotonic\n"}
    assert violations(sources) == ["crossband.protocol.sse:2 imports time: protocol/ is pure"]


def test_only_the_commands_import_the_facade() -> None:
    sources = {
        "crossband": "from crossband.asgi import Hub\n",
        "crossband.cli": "from crossband import Hub\n",
        "crossband.asgi": "from crossband import __version__\n",
    }
    assert violations(sources) == ["crossband.asgi:1 imports crossband: upwards"]


def test_module_without_a_layer_is_caught() -> None:
    sources = {"crossband.helpers": "", "crossband.cli": "import crossband.helpers\n"}
    assert violations(sources) == [
        "crossband.helpers: in no layer; give it a place in LAYERS",
        "crossband.cli:1 imports crossband.helpers: in no layer",
    ]


@pytest.mark.parametrize(
    "late",
    [
        "from crossband.hub import socket\n",
        "if TYPE_CHECKING:\n    from crossband.hub.socket import Socket\n",
        "def late() -> None:\n    import crossband.hub.socket\n",
    ],
    ids=["loaded", "types", "in a function"],
)
def test_planted_circle_is_caught(late: str) -> None:
    sources = {
        "crossband.hub.socket": "from crossband.hub.namespace import Namespace\n",
        "crossband.hub.namespace": late,
    }
    assert circles(graph_of(sources)) == [
        ["crossband.hub.namespace", "crossband.hub.socket", "crossband.hub.namespace"]
    ]


def test_planted_circle_through_a_package_is_caught() -> None:
    sources = {
        "crossband.broker": "from crossband.broker.memory import MemoryBroker\n",
        "crossband.broker.memory": "from crossband.broker import Broker\n",
    }
    assert circles(graph_of(sources)) == [
        ["crossband.broker", "crossband.broker.memory", "crossband.broker"]
    ]
