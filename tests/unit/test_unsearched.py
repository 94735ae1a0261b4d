"""Classes that no teacher of a run looks for are told before it labels."""

from io import StringIO

import pytest
from rich.console import Console
from silver_stand_ins import ColorTeacher, card
from test_teacher_arm import ONE, TEXT

from detmtl import run_teachers
from detmtl.config import read_settings
from detmtl.engine import distributed
from detmtl.run_folder import OpenRun, RunFolder


def _settings(tmp_path, *overrides):
    (tmp_path / "run.yaml").write_text(TEXT.format(root=tmp_path))
    return read_settings(tmp_path / "run.yaml", [*ONE, *overrides])


def test_a_class_that_was_renamed_since_the_teacher_learned(tmp_path):
    classes = "data.classes=[person, vehicle, bike]"
    settings = _settings(tmp_path, classes, "data.unmapped=drop")
    (told,) = run_teachers.unsearched(settings, [card("person", "car")])
    assert told.startswith("silver: of data.classes no teacher looks for vehicle, bike, and in")
    assert "the names car of theirs belong to no class" in told
    assert told.endswith("list it there, as {vehicle: [vehicle, car]}")
    settings = _settings(tmp_path, "data.classes={person: [person], vehicle: [vehicle, car]}")
    assert run_teachers.unsearched(settings, [card("person", "car")]) == []
    # one that abstains does not look
    (told,) = run_teachers.unsearched(settings, [card("person", "car", unsearched=("car",))])
    assert "no teacher looks for vehicle" in told and "belong to no class" not in told
    several = [card("person"), card("car")]
    assert run_teachers.unsearched(settings, several) == []


@pytest.mark.parametrize(
    ("task", "setting", "names", "lost"),
    [("maps", "data.maps", ["person"], "car"), ("tags", "data.tags", ["car"], "person")],
)
def test_of_maps_and_tags(tmp_path, task, setting, names, lost):
    other = card(*names).model_copy(update={"task": task})
    (told,) = run_teachers.unsearched(_settings(tmp_path), [other])
    # of maps `rest` is what all other names are
    assert told.startswith(f"silver: of {setting}.classes no teacher looks for {lost}, and in")


def test_it_is_told_before_the_labelling(tmp_path, monkeypatch):
    monkeypatch.setattr(run_teachers, "load_teachers", lambda _: iter([ColorTeacher()]))
    settings = _settings(tmp_path, "data.classes=[person, vehicle]", "data.unmapped=drop")
    text = StringIO()
    console = Console(file=text, width=60)
    run = OpenRun(settings, RunFolder(tmp_path / "run"), distributed.start("cpu"), console)
    written, teacher = run_teachers.written_offline(run)
    assert written == "boxes" and isinstance(teacher, ColorTeacher)
    assert "no teacher looks for vehicle, and" in text.getvalue()
