"""What the repository promises beside its code: locks, versions, targets, what it ships."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import crossband

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src/crossband").rglob("*.py"))
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Used when the application brings them; never required.
OPTIONAL = frozenset({"pydantic"})

# Modules that are not named as their packages.
MODULES = {"jwt": "pyjwt"}

# Modules of the standard library that the oldest Python does not have yet.
STDLIB = sys.stdlib_module_names | {"annotationlib", "compression"}

# Where packages are fetched from is each machine's own business. Spelled in halves, so that
# this file names none either.
REGISTRY_HOSTS = tuple(
    "".join(halves)
    for halves in (
        ("py", "pi.org"),
        ("pypi.", "python.org"),
        ("python", "hosted.org"),
        ("registry.", "npmjs"),
        ("registry.", "yarnpkg"),
        ("registry.", "npmmirror"),
        ("deb.", "debian.org"),
        ("security.", "debian.org"),
    )
)


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(requirements: list[str]) -> set[str]:
    """Return the names in a list of requirements."""
    return {normal(re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0]) for line in requirements}


# What each extra brings, but for other extras.
EXTRAS = {
    name: required([line for line in lines if not line.startswith("crossband[")])
    for name, lines in PYPROJECT["project"]["optional-dependencies"].items()
}


def locked(path: Path) -> dict[str, str]:
    """Return what a lock pins, by name."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {normal(name): version for name, version in pins}


def tracked_files() -> list[Path]:
    """Return every file under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_tracked_file_names_a_registry_host() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked_files()
        if path.is_file()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert found == []


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_has_versions_and_hashes_and_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    for entry in re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines():
        assert re.fullmatch(
            r"[\w.-]+==[\w.+!]+ (?:; [^@]+? )?(?: *--hash=sha256:[0-9a-f]{64})+", entry
        )


def test_locks_cover_what_the_package_requires() -> None:
    runtime = required(PYPROJECT["project"]["dependencies"])
    groups = PYPROJECT["dependency-groups"]
    development = required([line for line in groups["dev"] if isinstance(line, str)])
    assert runtime | required(groups["build"]) <= locked(ROOT / "locks/run.txt").keys()
    extras = set().union(*EXTRAS.values())
    assert runtime | extras | development <= locked(ROOT / "locks/dev.txt").keys()
    assert required(groups["node"]) <= locked(ROOT / "locks/node.txt").keys()


def test_demo_runs_on_the_versions_that_were_tested() -> None:
    assert locked(ROOT / "locks/run.txt").items() <= locked(ROOT / "locks/dev.txt").items()


def test_package_lock_has_hashes_and_no_address() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text(encoding="utf-8"))
    for name, package in lock["packages"].items():
        assert "://" not in package.get("resolved", ""), name
        assert not name.startswith("node_modules/") or package.get("link") or package["integrity"]


def test_every_import_is_a_declared_dependency() -> None:
    allowed = required(PYPROJECT["project"]["dependencies"]) | OPTIONAL | {"crossband"}
    allowed |= set().union(*EXTRAS.values())
    undeclared = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing_only = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom) or id(node) in typing_only:
                continue
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if node.module and not node.level else []
            undeclared += [
                f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
                for name in (name.partition(".")[0] for name in names)
                if name not in STDLIB and MODULES.get(name, normal(name)) not in allowed
            ]
    assert undeclared == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_types_are_shipped() -> None:
    assert (ROOT / "src/crossband/py.typed").is_file()


def test_version_is_the_one_of_the_project() -> None:
    assert crossband.__version__ == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_documented_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = (ROOT / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets


@pytest.mark.node
@pytest.mark.parametrize("script", ["build", "test", "check"])
def test_npm_script_says_what_it_needs_where_nothing_is_installed(
    script: str, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("package.json", "scripts/installed.mjs"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ran = subprocess.run(
        ["npm", "run", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert 'The packages are not installed: run "npm ci" in the root folder' in ran.stderr
    assert "node:internal" not in ran.stderr


def test_every_npm_script_that_needs_packages_looks_for_them_first() -> None:
    for path in [ROOT / "package.json", *ROOT.glob("[cep]*/*/package.json")]:
        scripts = json.loads(path.read_text(encoding="utf-8"))["scripts"]
        for name in {"build", "dev"} & scripts.keys():
            assert scripts[f"pre{name}"].endswith("scripts/installed.mjs"), path


def test_package_and_command_load_without_any_extra() -> None:
    absent = sorted(set().union(*EXTRAS.values()))
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import crossband, crossband.cli"
    subprocess.run([sys.executable, "-c", code], check=True)
