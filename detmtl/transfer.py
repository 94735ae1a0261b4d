"""Do the tasks of a run help each other? Each alone against together, and why it is so.

    data and settings are checked -> runs, each once -> report.json, report.md, report.html and a table

A comparison like `compare`'s, in a folder of the same kind: the same command again goes on where the last
one stopped, and what is done is not repeated.
"""

from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detmtl.compare import Request, about, execute, jobs_of, make_writable, tell_rest, write_reports
from detmtl.comparing.scores import RunScores, read_finished
from detmtl.comparing.settings import chosen
from detmtl.comparing.start import alone_in, start_alone
from detmtl.comparing.transfer_plan import Transfer, prepare_transfer
from detmtl.comparing.transfer_result import transfer_result
from detmtl.comparing.transfer_settings import TransferSettings, read_transfer
from detmtl.report import page, transfer_page
from detmtl.structures.errors import InputError


def transfer(request: Request, console: Console | None = None) -> int:
    """Runs what is not done yet, writes the reports, and returns 0, or 1 if a run failed.

    Raises:
        InputError: settings or data are wrong; told before any run starts.
    """
    console = console or Console()
    page.require()
    settings = read_transfer(request.config)
    seeds = list(request.seeds or settings.all_seeds)
    process = start_alone()
    make_writable(request.out)
    with nullcontext() if request.report_only else alone_in(request.out):
        plan = prepare_transfer(
            settings, request.config, request.overrides, seeds, request.out, process, console
        )
        arms = chosen([arm.name for arm in plan.arms], request.only)
        jobs = jobs_of(plan.prepared.plan, request.out, arms)
        execute(request, plan.prepared, jobs, plan.digest, console)
    found = transfer_result(
        settings, plan, read_runs(settings, plan, request), request.out / "runs"
    )
    title = settings.title or f"Transfer {request.config.stem}"
    found |= about(title, settings.note, request, plan.prepared, jobs)
    write_reports(found, request.out, transfer_page.markdown(found), transfer_page.html(found))
    _tell(found, request, console)
    return 1 if any(job.failure for job in jobs) else 0


def read_runs(
    settings: TransferSettings, plan: Transfer, request: Request
) -> dict[int, dict[str, dict[int, RunScores]]]:
    """Returns variant's position -> arm -> seed -> what a finished run says.

    Raises:
        InputError: a task's metric is none of its run's.
    """
    found: dict[int, dict[str, dict[int, RunScores]]] = {}
    tasks = {arm.name: arm.tasks for arm in plan.arms}
    finished = read_finished(plan.prepared.plan, request.out, settings.resamples)
    for (variant, arm, seed), run in finished.items():
        _check_metrics(settings, run, tasks[arm])
        found.setdefault(variant, {}).setdefault(arm, {})[seed] = run
    return found


def _check_metrics(settings: TransferSettings, run: RunScores, tasks: tuple[str, ...]) -> None:
    for name in tasks:
        metric = settings.tasks[name].metric
        if metric not in run.metrics:
            known = ", ".join(sorted(m for m in run.metrics if m.startswith(f"{name}/")))
            raise InputError(
                f"tasks.{name}.metric: '{metric}' is no metric of these runs; there are {known}"
            )


def _tell(found: dict[str, Any], request: Request, console: Console) -> None:
    """Prints the table, the sentences, and where everything is."""
    table = Table(title=found["title"], title_justify="left")
    columns, rows = transfer_page.summary(found)
    numbers = ("alone", "together", "gain", "over seeds", "p (Holm)")
    for column in columns[:-1]:  # the advice is in the sentences
        justify = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row[:-1]))
    console.print(table)
    said = [text for _, text in transfer_page.sentences(found)]
    tell_rest(found, said, request.out, console)
