"""The command: strikes a site with one fault after the other, and says what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from stress.faults import FAULTS, Fault
from stress.ledger import Verdict, judge
from stress.site import Site
from tests.engines import Cluster, Engine, Program, Sentinels, Servers
from tests.targets import CROWD, Target


@dataclass(frozen=True)
class Outcome:
    """What came of one fault."""

    fault: Fault
    verdict: Verdict
    acknowledged: int
    failed: int
    cuts: int
    # Seconds until all clients were up to date, after the last number.
    settling: float

    @property
    def problems(self) -> list[str]:
        found = list(self.verdict.problems)
        if self.verdict.gaps and not self.fault.gaps:
            gaps = ", ".join(list(self.verdict.gaps)[:10])
            found.append(f"gaps where nothing was lost: {gaps}")
        return found


async def strike(site: Site, fault: Fault, seed: int) -> Outcome:
    """Strike a site with a fault while its nodes publish, and compare what the clients heard."""
    loop = asyncio.get_running_loop()
    site.published.clear()
    site.failed.clear()
    before = sum(target.cuts for target in site.targets)
    site.switch.touch()
    until = loop.time() + fault.seconds * site.pace
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fault.strike(site, Random(f"{seed}/{fault.name}")))
        for target in site.targets:
            tasks.create_task(endure(target, until, fault.pause))
    await site.hush()
    began = loop.time()
    stories, end = await site.stories()
    settling = loop.time() - began
    return Outcome(
        fault,
        judge(stories, site.published, end),
        len(site.published),
        len(site.failed),
        sum(target.cuts for target in site.targets) - before,
        settling,
    )


async def endure(target: Target, until: float, pause: float) -> None:
    """Let a client be cut. One that cannot come back will be stuck, and is told of then."""
    with contextlib.suppress(AssertionError):
        await target.suffer(until, pause)


def start(kind: str, program: Program) -> Servers:
    """Return the servers that a fault needs, started."""
    servers: Servers
    if kind == "engine":
        servers = Engine(program, save=True)
    elif kind == "sentinels":
        servers = Sentinels(program, save=True)
    else:
        servers = Cluster(program)
    servers.start()
    return servers


async def run(
    faults: Sequence[Fault],
    console: Console,
    *,
    program: Program,
    nodes: int,
    rate: float,
    crowd: dict[str, int],
    seed: int,
    pace: float = 1.0,
) -> list[Outcome]:
    """Strike with all faults, those that need the same servers on one site; tell each outcome."""
    outcomes = []
    for kind in dict.fromkeys(fault.servers for fault in faults):
        servers = start(kind, program)
        try:
            async with Site(
                servers, nodes=nodes, rate=rate, crowd=crowd, seed=seed, pace=pace
            ) as site:
                for fault in faults:
                    if fault.servers != kind:
                        continue
                    outcome = await strike(site, fault, seed)
                    outcomes.append(outcome)
                    tell(console, site, outcome)
        finally:
            servers.close()
    return outcomes


def tell(console: Console, site: Site, outcome: Outcome) -> None:
    """Print the outcome of a fault, and what may explain it where it is bad."""
    mark = "[red]✗" if outcome.problems else "[green]✓"
    console.print(f"{mark}[/] {outcome.fault.id}: {outcome.fault.name}", highlight=False)
    for problem in outcome.problems:
        console.print(f"    {problem}", highlight=False, markup=False)
    for name in outcome.verdict.stuck:
        target = site.clients[name]
        ends = ", ".join((*target.losses[-5:], *target.retries[-5:]))
        console.print(f"    {name} lost connections by: {ends}", highlight=False, markup=False)
    if outcome.problems:
        for line, times in site.log.items():
            console.print(f"      {times} × {line}", highlight=False, markup=False)
    site.log.clear()


COLUMNS: Final = (
    # Numbers acknowledged to their publishers, and those that may have been published.
    *("published", "failed"),
    *("cuts", "heard", "gaps"),
    # What clients missed where they were told of a gap, and where they were not.
    *("told", "lost"),
    *("doubled", "disordered", "stuck"),
    # Seconds until all clients were up to date.
    "settled",
)


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return the figures of all faults."""
    table = Table(box=None, pad_edge=False)
    table.add_column("fault", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for each in outcomes:
        verdict = each.verdict
        figures = (
            *(each.acknowledged, each.failed),
            *(each.cuts, verdict.heard, verdict.gaps.total()),
            *(verdict.told, verdict.lost),
            *(verdict.doubled, verdict.disordered, len(verdict.stuck)),
        )
        table.add_row(
            each.fault.id, *(f"{figure:,}" for figure in figures), f"{each.settling:.1f} s"
        )
    return table


def matches(name: str, patterns: Sequence[str] | None) -> bool:
    """Return whether a name matches one of the patterns; without any it does."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[FAULT]...", help="Faults, such as cuts or k*.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replay the chances of a run.")] = None,
    program: Annotated[Program, typer.Option(help="Server of the broker.")] = "redis",
    nodes: Annotated[int, typer.Option(help="Processes that serve.")] = 4,
    rate: Annotated[float, typer.Option(help="Numbers a second, of each node.")] = 10.0,
    clients: Annotated[int, typer.Option(help="Clients in all, of every door.")] = 200,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only clients of these kinds, such as *sse*.")
    ] = None,
) -> None:
    """Count what gets lost in silence while servers, nodes and links fail."""
    console = Console(width=100)
    chosen = [fault for fault in FAULTS if matches(fault.id, patterns)]
    if not chosen:
        ids = ", ".join(fault.id for fault in FAULTS)
        raise typer.BadParameter(f"no such fault; there are {ids}")
    # It complains of each cut.
    logging.getLogger("engineio.client").setLevel(logging.CRITICAL)
    seed = secrets.randbelow(10**9) if seed is None else seed
    console.print(f"{nodes} nodes, {clients} clients, {program}: --seed {seed}", highlight=False)
    sizes = {name: size for name, size in CROWD.items() if matches(name, kind)}
    crowd = {
        name: max(1, round(size * clients / sum(sizes.values()))) for name, size in sizes.items()
    }
    outcomes = uvloop.run(
        run(chosen, console, program=program, nodes=nodes, rate=rate, crowd=crowd, seed=seed)
    )
    console.print(table(outcomes))
    lost = sum(each.verdict.lost for each in outcomes)
    console.print(f"lost in silence: {lost:,}", highlight=False)
    sys.exit(any(each.problems for each in outcomes))


if __name__ == "__main__":
    app()
