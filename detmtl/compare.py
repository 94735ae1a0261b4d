"""Many runs as one experiment: arms over paired seeds, and a verdict.

    data and settings are checked -> a plan of runs -> teachers, stores and trainings, each once
    -> report.json, report.md, report.html and a table

Everything is in one folder: `runs/` (ordinary run folders, named by a hash of all that decides them),
`stores/` (a teacher's labels, shared by all its students), and the reports. The same command again goes
on where the last one stopped; what is done is not repeated.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detmtl.comparing import origins
from detmtl.comparing.jobs import FAILED, Job, Pool
from detmtl.comparing.keys import digest, makes_silver
from detmtl.comparing.ledger import earlier_uses, pictures_digest, record_use
from detmtl.comparing.plan import Plan, Planner
from detmtl.comparing.prepare import Prepared, prepare
from detmtl.comparing.results import result
from detmtl.comparing.scores import is_done, read_finished
from detmtl.comparing.settings import CompareSettings, chosen, read_compare
from detmtl.comparing.start import alone_in, start_alone
from detmtl.report import compare_page, page
from detmtl.report.told import told_files
from detmtl.structures.errors import InputError
from detmtl.structures.whole import write_whole


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        config: file of the comparison.
        out: its folder, in which one process at a time does runs.
        overrides: `a.b=value`, for all arms.
        seeds: instead of the file's.
        only: arms to run; [] all.
        parallel: runs at once.
        threads: of each run.
        report_only: runs nothing, and reports what is finished.
    """

    config: Path
    out: Path
    overrides: Sequence[str] = ()
    seeds: Sequence[int] | None = None
    only: Sequence[str] = ()
    parallel: int = 1
    threads: int | None = None
    report_only: bool = False


def compare(request: Request, console: Console | None = None) -> int:
    """Runs what is not done yet, writes the reports, and returns 0, or 1 if a run failed.

    Raises:
        InputError: settings or data are wrong, or arms are not comparable; told before any run starts. Or a
            metric that its task does not have; told once a run is done.
    """
    console = console or Console()
    page.require()
    settings = read_compare(request.config)
    arms = chosen(settings.arms, request.only)
    seeds = list(request.seeds or settings.all_seeds)
    planner = Planner(settings, request.config, request.overrides)
    process = start_alone()
    make_writable(request.out)
    with nullcontext() if request.report_only else alone_in(request.out):
        prepared = prepare(planner, list(settings.arms), seeds, request.out, process, console)
        _check_tasks(settings, prepared.plan)
        jobs = jobs_of(prepared.plan, request.out, arms)
        execute(request, prepared, jobs, planner.digest(), console)
    found = collect(settings, prepared, request.out)
    title = settings.title or f"Comparison {request.config.stem}"
    found |= about(title, settings.note, request, prepared, jobs)
    write_reports(found, request.out, compare_page.markdown(found), compare_page.html(found))
    _tell(found, request.out, console)
    return 1 if any(job.failure for job in jobs) else 0


def execute(
    request: Request, prepared: Prepared, jobs: Sequence[Job], experiment: str, console: Console
) -> None:
    """Does the jobs that are not done, unless only a report is wanted, and notes the use of the pictures
    that they are scored on.

    Where only a report is wanted, those that failed when they were tried last are failures, too.

    Args:
        experiment: hash of the settings that are compared.
    """
    if not request.report_only:
        _note_uses(prepared, request.out, experiment)
        todo = [job for job in jobs if not job.done]
        if todo:
            console.print(_plan_line(prepared.plan, todo, jobs), markup=False)
            Pool(request.parallel, request.threads, console).run(jobs)
    for job in jobs:
        job.recall()
    _warn_of_failures(prepared, request.out)
    prepared.cautions.extend(origins.cautions(origins.origins(prepared.plan, request.out)))
    _warn_of_earlier_uses(prepared, request.out, experiment)


def jobs_of(plan: Plan, out: Path, arms: set[str]) -> list[Job]:
    """Returns the jobs behind the runs of these arms, in an order in which they can be done."""
    jobs: dict[str, Job] = {}
    wanted = list(dict.fromkeys(key for (_, arm, _), key in plan.at.items() if arm in arms))
    sharing: defaultdict[Path, list[str]] = defaultdict(list)
    for key in wanted:
        settings = plan.runs[key].settings
        if plan.runs[key].kind != "teacher" and makes_silver(settings):
            assert settings.silver is not None and settings.silver.store is not None
            sharing[settings.silver.store].append(key)

    def job(key: str) -> Job:
        if key not in jobs:
            run = plan.runs[key]
            content = {
                "kind": run.kind,
                "settings": run.settings.resolved(),
                "teacher": run.teacher,
                "trunk": run.trunk,
            }
            before = [job(other) for other in run.before]
            device = run.settings.device
            jobs[key] = Job(out / "runs" / key, plan.names(key), content, run.steps, device, before)
        return jobs[key]

    for key in wanted:
        job(key)
    for store, keys in sharing.items():
        students = [jobs[key] for key in keys]
        if all(student.done for student in students):
            continue
        content = {"kind": "label", "store": store.name, "runs": sorted(keys)}
        before = [jobs[t] for t in dict.fromkeys(plan.runs[k].teacher for k in keys) if t]
        name = f"label-{digest([store.name, *sorted(keys)])}"
        named, device = f"labels of {students[0].name}", students[0].device
        label = Job(out / "runs" / name, named, content, 0, device, before)
        jobs[name] = label
        for student in students:
            student.after.append(label)
    return list(jobs.values())


def collect(settings: CompareSettings, prepared: Prepared, out: Path) -> dict[str, Any]:
    """Returns the result over all runs that are finished."""
    scores = read_finished(prepared.plan, out, settings.resamples)
    trained = [s for s in scores.values() if prepared.plan.runs[s.key].kind == "train"]
    known = {name for s in trained for name in s.metrics}
    if known and (unknown := [m for m in settings.metrics if m not in known]):
        raise InputError(
            f"metrics: '{unknown[0]}' is no metric of these runs; there are {', '.join(sorted(known))}"
        )
    return result(settings, prepared, scores)


def _check_tasks(settings: CompareSettings, plan: Plan) -> None:
    tasks = dict.fromkeys(t for run in plan.runs.values() for t in run.settings.tasks)
    for metric in settings.metrics:
        if metric.split("/")[0] not in tasks:
            raise InputError(
                f"metrics: '{metric}' is of no task; a metric is TASK/NAME, and the tasks are "
                f"{', '.join(tasks)}"
            )


def about(
    title: str, note: str, request: Request, prepared: Prepared, jobs: Sequence[Job]
) -> dict[str, Any]:
    """Returns what a report says of itself."""
    keys = set(prepared.plan.at.values())
    finished = sum(is_done(request.out / "runs" / key) for key in keys)
    return {
        "title": title,
        "note": note,
        "scored": _scored_on(prepared),
        "provenance": origins.provenance(origins.origins(prepared.plan, request.out)),
        "finished": finished,
        "planned": len(keys),
        "failures": [
            {"name": j.name, "why": j.failure, "log": str(j.folder / "log.txt")}
            for j in jobs
            if j.failure
        ],
    }


def _scored_on(prepared: Prepared) -> str:
    """Returns on which pictures everything was scored, in words; cells that share them are told as one."""
    cells: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for i, (pictures, name) in prepared.scored.items():
        of = pictures_digest(pictures), f"data.{name}: {len(pictures)} pictures"
        cells[of].append(prepared.plan.cells[i].name)
    told = [
        f"{of} ({', '.join(names)})" if len(cells) > 1 else of for (_, of), names in cells.items()
    ]
    return f"Scored on {'; '.join(told)}."


def _note_uses(prepared: Prepared, out: Path, experiment: str) -> None:
    for source, _ in prepared.scored.values():
        record_use(out, source, experiment)


def _warn_of_failures(prepared: Prepared, out: Path) -> None:
    """Adds a caution for each arm of which some seeds have a result and others failed."""
    plan, done = prepared.plan, set()
    lost: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    for (cell, arm, seed), key in plan.at.items():
        folder = out / "runs" / key
        if is_done(folder):
            done.add((cell, arm))
        elif (folder / FAILED).is_file():
            lost[cell, arm].append(str(seed))
    for cell, arm in sorted(lost.keys() & done):
        where = f" ({plan.cells[cell].name})" if plan.cells[cell].name else ""
        seeds = f"seed{'s' * (len(lost[cell, arm]) > 1)} {', '.join(lost[cell, arm])}"
        prepared.cautions.append(
            f"{arm}{where} has no result in {seeds}: there it failed. What is said of it is over its other "
            "seeds alone, as if failing said nothing."
        )


def _warn_of_earlier_uses(prepared: Prepared, out: Path, experiment: str) -> None:
    for source, name in prepared.scored.values():
        uses = earlier_uses(out, source, experiment)
        if uses:
            told = "; ".join(f"{use.date} in {use.folder}" for use in uses)
            caution = (
                f"The pictures of data.{name} were scored before with other settings ({told}): what was "
                "changed since may have been changed because of their scores."
            )
            if caution not in prepared.cautions:
                prepared.cautions.append(caution)


def _plan_line(plan: Plan, todo: Sequence[Job], jobs: Sequence[Job]) -> str:
    steps = sum(job.steps for job in todo)
    return (
        f"{len(plan.at)} places in {len(set(plan.at.values()))} runs; {len(todo)} of {len(jobs)} jobs to "
        f"do, {steps} training steps"
    )


def make_writable(out: Path) -> None:
    """Makes the folder of a comparison.

    Raises:
        InputError: it cannot be written.
    """
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None


def write_reports(found: dict[str, Any], out: Path, markdown: str, html: str) -> None:
    """Writes report.json, report.md and report.html, each whole or not at all."""
    for name, text in (
        ("report.json", json.dumps(found, indent=1) + "\n"),
        ("report.md", markdown),
        ("report.html", html),
    ):
        write_whole(out / name, text)


def _tell(found: dict[str, Any], out: Path, console: Console) -> None:
    """Prints the table, the verdict, and where everything is."""
    table = Table(title=found["title"], title_justify="left")
    columns, rows = compare_page.summary(found, differences=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    tell_rest(found, [v["text"] for v in found["verdict"]], out, console)


def tell_rest(found: Mapping[str, Any], said: Sequence[str], out: Path, console: Console) -> None:
    """Prints what was found in words, what to mind, what is missing or failed, and where everything is."""
    for line in (*said, found["scored"], *(f"caution: {c}" for c in found["cautions"])):
        console.print(line, markup=False, soft_wrap=True)
    if found["finished"] < found["planned"]:
        console.print(f"{found['finished']} of {found['planned']} runs are finished", markup=False)
    for failure in found["failures"]:
        console.print(f"failed: {failure['name']}: {failure['why']}", markup=False, soft_wrap=True)
    files = {
        "report": "report.html",
        "report in Markdown": "report.md",
        "all numbers": "report.json",
        "runs": "runs",
    }
    console.print(told_files({what: out / name for what, name in files.items()}), soft_wrap=True)
