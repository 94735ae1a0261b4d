"""What a report says of where its runs were made."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from detmtl.comparing import origins
from detmtl.comparing.plan import Plan, Run

HERE = {"commit": "b", "hardware": "laptop", "versions": "torch 2"}
SERVER = {"commit": "a", "hardware": "server", "versions": "torch 2"}
FACTS = {"command": "detmtl compare", "commit": "b", "date": "today", **HERE}


@pytest.fixture(autouse=True)
def laptop(monkeypatch):
    monkeypatch.setattr(origins, "origin", lambda: HERE)
    monkeypatch.setattr(origins, "facts", lambda: FACTS)


def done(folder, *starts, **job):
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "done.json").write_text(json.dumps({"origins": starts}))


def test_a_report_states_the_origin_of_its_runs_and_its_own_beside_it():
    there = origins.provenance([SERVER])
    assert {**there, "reported by": ""} == FACTS | SERVER | {"reported by": ""}
    assert there["reported by"] == "commit b; hardware laptop"
    assert origins.provenance([HERE]) == origins.provenance([]) == FACTS
    both = origins.provenance([HERE, SERVER])
    assert (both["commit"], both["versions"]) == ("a; also b", "torch 2")


def test_code_of_teachers_and_labels_counts_too(tmp_path):
    def run(key, store=None, teacher=None):
        silver = None if store is None else SimpleNamespace(store=Path("elsewhere") / store)
        return Run(key, "train", SimpleNamespace(silver=silver), 1, teacher)  # type: ignore[arg-type]

    plan = Plan([], {r.key: r for r in (run("t"), run("s", "labels", "t"), run("not yet"))})
    runs = tmp_path / "runs"
    done(runs / "t", SERVER | {"commit": "old"})
    done(runs / "s", HERE)
    done(runs / "label-1", SERVER, HERE, store="labels")
    done(runs / "label-2", SERVER | {"commit": "of others"}, store="others")
    done(runs / "label-3", SERVER | {"commit": "from before"}, runs=["s"])
    found = origins.origins(plan, tmp_path)
    assert sorted(o["commit"] for o in found) == ["a", "b", "old"]
    (told,) = origins.cautions(found)
    assert told.endswith("made by different code: a, b, old.") and not origins.cautions([HERE])


def test_every_start_of_a_job_is_noted(tmp_path, monkeypatch):
    assert origins.note_start(tmp_path) == origins.note_start(tmp_path) == [HERE]
    monkeypatch.setattr(origins, "origin", lambda: SERVER)
    assert origins.note_start(tmp_path) == [HERE, SERVER]
