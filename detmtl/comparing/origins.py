"""Where the runs of a comparison were made: by which code, on which machine; and what a report says of it.

An origin is the commit, the hardware and the versions of a process, see `detmtl.report.provenance`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from detmtl.comparing.plan import Plan
from detmtl.comparing.scores import is_done
from detmtl.report.provenance import facts, origin
from detmtl.structures.whole import write_whole

Origin = Mapping[str, str]


def note_start(folder: Path) -> list[Origin]:
    """Notes in a job's folder where it is worked on now, and returns where it ever was: a job may be killed
    and go on elsewhere, by other code."""
    file = folder / "started"
    before: list[Origin] = json.loads(file.read_text()) if file.is_file() else []
    now = origin()
    starts = [*before, now] if now not in before else before
    write_whole(file, json.dumps(starts, indent=1))
    return starts


def origins(plan: Plan, out: Path) -> list[Origin]:
    """Returns the origins of all that is finished of a plan: its runs, their teachers, and the labels of
    their stores."""
    stores = {run.settings.silver.store for run in plan.runs.values() if run.settings.silver}
    names = {store.name for store in stores if store is not None}
    folders = [out / "runs" / key for key in plan.runs]
    for job in sorted((out / "runs").glob("label-*/job.json")):
        if json.loads(job.read_text()).get("store") in names:
            folders.append(job.parent)
    found: list[Origin] = []
    for folder in filter(is_done, folders):
        found += json.loads((folder / "done.json").read_text())["origins"]
    return [dict(items) for items in dict.fromkeys(tuple(o.items()) for o in found)]


def cautions(found: Sequence[Origin]) -> list[str]:
    """Returns a sentence where more than one state of the code was at work."""
    commits = sorted({o["commit"] for o in found})
    if len(commits) < 2:
        return []
    told = ", ".join(commits)
    return [f"The runs, teachers and labels included, were made by different code: {told}."]


def provenance(found: Sequence[Origin]) -> dict[str, str]:
    """Returns what a report says of its origin: that of what it reports, and in a line of its own what is
    otherwise where it is written.

    Args:
        found: origins of what it reports; [] where nothing is finished.
    """
    here = facts()
    names = found[0] if found else ()
    there = {name: "; also ".join(sorted({o[name] for o in found})) for name in names}
    other = [f"{name} {here[name]}" for name, value in there.items() if here[name] != value]
    return here | there | ({"reported by": "; ".join(other)} if other else {})
