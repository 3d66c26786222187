"""The wheel as a stranger gets it: alone with its dependencies, and no Node.js on the PATH."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = ROOT / "src/crossband/pages"
# Every page that has sources, by the name of its folder.
NAMES: Final = sorted(
    index.parent.name
    for folder in ("pages", "examples")
    for index in (ROOT / folder).glob("*/index.html")
)

missing = [name for name in NAMES if not (PAGES / name / "index.html").is_file()]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"not built: {', '.join(missing)} (make test builds them)"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that `make build` makes."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the commands of an environment with the wheel, what it requires, and nothing else."""
    environment = tmp_path_factory.mktemp("stranger") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in required(wheel):
        link(name, packages)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    install = ["install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    return environment / "bin"


def required(wheel: Path) -> set[str]:
    """Return the names of all that the wheel requires, and that they require in turn."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    pending = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    # By name and extra: `a` and `a[b]` require different things.
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement = Requirement(pending.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            for line in importlib.metadata.requires(requirement.name) or ():
                nested = Requirement(line)
                if nested.marker is None or nested.marker.evaluate({"extra": extra}):
                    nested.marker = None
                    pending.append(str(nested))
    return {name for name, _ in seen}


def link(name: str, packages: Path) -> None:
    """Put an installed distribution into another environment."""
    distribution = importlib.metadata.distribution(name)
    files = distribution.files or ()
    # Not its scripts, which are beside: "../../../bin/uvicorn".
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        target = packages / top
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(top))).resolve())


def test_wheel_holds_the_package_with_its_pages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    strangers = [name for name in names if not re.match(r"crossband(-[^/]+\.dist-info)?/", name)]
    assert strangers == []
    assert [name for name in names if "node_modules" in name or name.endswith(".map")] == []
    for name in NAMES:
        assert f"crossband/pages/{name}/index.html" in names


@pytest.fixture
def demo(commands: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    assert shutil.which("node", path=str(commands)) is None
    process = subprocess.Popen(
        [str(commands / "crossband"), "demo", "--port", "0"],
        cwd=tmp_path,
        env={"PATH": str(commands)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_demo_of_the_wheel_serves_every_page(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    # A single line, as there is no terminal.
    banner = demo.stdout.readline()
    found = re.search(r"http://[\d.:]+", banner)
    assert found is not None, demo.stderr and demo.stderr.read()
    with httpx.Client(base_url=found.group(), verify=False) as http:
        for name in NAMES:
            path = "/" if name == "start" else f"/{name}/"
            page = http.get(path)
            assert page.status_code == 200
            assert page.text.startswith("<!doctype html>")
            # Its scripts, styles and icon; none from elsewhere.
            parts = re.findall(r'(?:src|href)="(\./assets/[^"]+)"', page.text)
            assert len(parts) >= 3
            assert [http.get(path + part[2:]).status_code for part in parts] == [200] * len(parts)
        status = http.get("/api/status").json()
        assert {"/", "/chat", "/dashboard"} <= status["namespaces"].keys()
        assert http.post("/api/notify", json={"message": "hello"}).status_code == 200
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(timeout=60) == 0
    assert demo.stderr is not None
    assert demo.stderr.read() == ""
