"""Settings: reading, overriding, and every mistake told at once."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from detmtl.config import (
    find_config,
    read_settings,
    settings_from,
    settings_schema,
    write_settings,
)
from detmtl.silver.overlay import OverlaySettings
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings
from detmtl.tasks.multitask import build_model

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(
    p for p in FOLDER.glob("*.yaml") if not p.name.startswith(("compare_", "transfer_"))
)

MINIMAL = """\
data:
  root: here
  classes: [cat, dog]
  sources:
    gold: {kind: coco, images: images, annotations: gold.json}
  val: {kind: coco, images: images, annotations: val.json}
  batch_size: 2
model:
  backbone: {name: resnet18}
tasks:
  boxes: {kind: detection}
mix: {mode: gold}
augment: {steps: [{HorizontalFlip: {p: 0.5}}]}
train: {steps: 3}
"""


class Elsewhere(Settings):
    """Settings of a task outside of the package, of labels that there are not."""

    kind: str
    labels: str = "words"

    def build(self, *_):
        raise AssertionError


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a config and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_settings(path, overrides)
    return caught.value.problems


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_load_build_and_say_how_they_are_run(path, tmp_path):
    settings = read_settings(path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("--config " + path.name in line for line in head)
    assert any("Machine:" in line for line in head)
    assert any("result" in line.lower() or "Not yet run" in line for line in head)
    plain = {"pretrained": False, "weights": None}
    backbone = settings.model.backbone.model_copy(update=plain)
    names = settings.data.names()
    model = build_model(
        settings.model.model_copy(update={"backbone": backbone, "start": None}),
        settings.tasks,
        names["boxes"],
        other_names=names,
    )
    assert list(model.tasks) == list(settings.tasks)
    settings.augment.build(settings.input)
    settings.balancing.build(list(settings.tasks))
    write_settings(settings, tmp_path / "resolved.yaml")
    assert read_settings(tmp_path / "resolved.yaml") == settings


def test_resolved_settings_spell_out_defaults(write, tmp_path):
    settings = read_settings(write(MINIMAL))
    write_settings(settings, tmp_path / "settings.yaml")
    assert "weight_decay: 0.02" in (tmp_path / "settings.yaml").read_text()
    assert settings_from(settings.resolved()) == settings


def test_all_mistakes_at_once_with_lines(write):
    text = MINIMAL.replace("steps: 3", "stepz: 3").replace("batch_size: 2", "batch_size: none")
    text = text.replace("name: resnet18", "name: resnet18, frozen_stage: 1")
    found = problems(write(text))
    assert len(found) == 4
    by_setting = {p.split(": ")[1]: p for p in found}
    assert "did you mean 'steps'?" in by_setting["train.stepz"]
    assert "run.yaml:14" in by_setting["train.stepz"]
    assert "required and missing" in by_setting["train.steps"]
    assert "did you mean 'frozen_stages'?" in by_setting["model.backbone.frozen_stage"]
    assert 'found "none"' in by_setting["data.batch_size"]
    assert "run.yaml:7" in by_setting["data.batch_size"]


def test_unknown_setting_inside_a_union_names_its_neighbors(write):
    found = problems(write(MINIMAL.replace("annotations: gold.json", "annotation: gold.json")))
    assert any(
        "data.sources.gold.annotation: unknown setting; did you mean 'annotations'?" in p
        for p in found
    )
    found = problems(write(MINIMAL.replace("{kind: detection}", "{kind: detection, anchor: {}}")))
    assert any("tasks.boxes.anchor" in p and "'anchors'" in p for p in found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("gold: {kind: coco, ", "gold: {"),
            "data.sources.gold: has no `kind`; it needs one of coco, folder",
        ),
        (
            ("boxes: {kind: detection}", "boxes: {}"),
            "tasks.boxes: has no `kind`; it needs one of attributes, de",
        ),
    ],
)
def test_a_missing_kind_lists_the_known(write, change, told):
    (problem,) = problems(write(MINIMAL.replace(*change)))
    assert told in problem


def test_unknown_kind_lists_the_known(write):
    found = problems(write(MINIMAL.replace("gold: {kind: coco", "gold: {kind: cocoa")))
    assert any("coco" in p and "voc" in p and "yolo" in p for p in found)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "NAME.NAME=VALUE"),
        ("train.stps=3", "did you mean 'steps'?"),
        ("train.steps=many", "found"),
        ("train.steps=[1", "not YAML"),
        ("augment.steps.7.p=1", "position in a list"),
    ],
)
def test_mistakes_in_overrides_name_the_override(write, override, words):
    (problem,) = problems(write(MINIMAL), override)
    assert "--set " + override.split("=")[0] in problem
    assert words in problem


def test_overrides_reach_any_depth(write):
    settings = read_settings(
        write(MINIMAL),
        ["train.steps=7", "silver=null", "tasks.boxes.test.nms=0.4", "data.sources.gold.weight=2"],
    )
    assert settings.train.steps == 7
    assert settings.tasks["boxes"].test.nms == 0.4
    assert settings.data.sources["gold"].weight == 2


def test_yaml_is_read_as_version_1_2(write):
    text = MINIMAL.replace("classes: [cat, dog]", "classes: [no, on]")
    settings = read_settings(write(text + "optim: {lr: 1e-4}\n"))
    assert settings.data.classes == ["no", "on"]
    assert settings.optim.lr == 1e-4


def test_repeated_key_is_refused(write):
    (problem,) = problems(write(MINIMAL + "train: {steps: 4}\n"))
    assert "train" in problem and "run.yaml:" in problem


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mix: {mode: gold}", "mix: {mode: silver}", "leaves no source"),
        ("mix: {mode: gold}", "mix: {mode: batch, shares: {golden: 1}}", "'golden' is no source"),
        ("val: {kind: coco,", "val: {kind: coco, grade: silver,", "labelled by people"),
        (
            "mix: {mode: gold}",
            "mix: {mode: concat}",
            "nothing can be learned from it",
        ),
    ],
)
def test_what_no_part_can_see_alone(write, old, new, words):
    pool = "    pool: {kind: folder, images: pool}\n    gold:"
    text = MINIMAL.replace(old, new)
    if words == "nothing can be learned from it":
        text = text.replace("    gold:", pool)
    assert any(words in p for p in problems(write(text)))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("''", "tasks: '': a task's name may not be empty"),
        ("a/b", "tasks: 'a/b': a task's name may not be empty, nor have a dot, a slash"),
        ('"a\\nb"', r"tasks: 'a\nb': a task's name may not"),
        ("keys", "tasks.keys: torch's modules have something of that name; take another"),
        ("teacher", "tasks.teacher: is where the scores of a teacher stand"),
        ("drawn", "tasks.drawn: is where predict puts its drawings; take another name"),
        ("1", "tasks.1: a name must be text; put 1 in quotes"),
    ],
)
def test_a_name_that_no_task_can_have_is_told_with_its_settings(write, name, told):
    text = MINIMAL.replace("boxes: {kind: detection}", f"{name}: {{kind: detection}}")
    assert any(told in p for p in problems(write(text)))
    kept = MINIMAL.replace("boxes: {kind: detection}", "my büxes: {kind: detection}")
    assert [*read_settings(write(kept)).tasks] == ["my büxes"]


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_source_is_not_named_as_a_split(write, name):
    (problem,) = problems(write(MINIMAL), f"data.sources.{name}={{kind: folder, images: x}}")
    assert f"data.sources.{name}: is the name of a split" in problem


def test_gold_alone_passes_over_pictures_without_labels(write):
    pool = "    pool: {kind: folder, images: pool}\n    gold:"
    assert read_settings(write(MINIMAL.replace("    gold:", pool))).mix_sources() == ["gold"]


def test_silver_needs_known_pools_and_audit(write):
    silver = "silver: {teacher: {kind: gold}, pools: [lake], audit: vall}\n"
    found = problems(write(MINIMAL + silver))
    assert any("'lake' is no source" in p for p in found)
    assert any("'vall' is neither 'val' nor" in p for p in found)


def test_config_by_name_and_unknown_name():
    assert find_config("retina_electrum").name == "retina_electrum.yaml"
    with pytest.raises(InputError, match=r"nearest: retina_electrum\.yaml"):
        find_config("retina_electrm.yaml")


def test_schema_accepts_the_configs_and_refuses_a_mistake():
    schema = json.loads(settings_schema())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    settings = read_settings(CONFIGS[0]).resolved()
    assert not list(validator.iter_errors(settings))
    settings["train"]["stepz"] = 1
    assert list(validator.iter_errors(settings))


def test_a_mode_can_be_changed_without_its_shares(write):
    text = MINIMAL.replace(
        "    gold:", "    pool: {kind: folder, images: pool}\n    gold:"
    ).replace("mix: {mode: gold}", "mix: {mode: batch, shares: {gold: 1, pool: 3}}")
    text += "silver: {teacher: {kind: gold}, pools: [pool]}\n"
    settings = read_settings(write(text))
    assert settings.mix_for(settings.mix_sources()).shares == {"gold": 1, "pool": 3}
    alone = read_settings(write(text), ["mix.mode=gold"])
    assert alone.mix_sources() == ["gold"]
    assert alone.mix_for(["gold"]).shares == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.best=boxez/AP", "names no task"),
        ("balancing.weights={boxez/class: 2}", "'boxez/class' names no task; the tasks are boxes"),
        ("tasks.more={kind: detection}", "at most one detection"),
        ("tasks.boxes.labels=tags", "tasks.boxes.labels: "),
        ("tasks.more={kind: 'test_config:Elsewhere'}", "tasks.more: learns from words, which"),
        ("data.classes.0.x=1", "has no parts"),
    ],
)
def test_what_would_show_only_after_hours_is_told_at_once(write, override, words):
    assert any(words in p for p in problems(write(MINIMAL), override))


def test_merged_keys_of_yaml_are_read(write):
    text = MINIMAL.replace("  val: {kind: coco,", "  val: {<<: *g,")
    text = text.replace("gold: {kind", "gold: &g {kind")
    assert read_settings(write(text)).data.val.kind == "coco"


@pytest.mark.parametrize("name", [".", "", "/"])
def test_a_folder_is_no_config(name):
    with pytest.raises(InputError, match="no such file"):
        find_config(name)


ONLINE = MINIMAL.replace("  val:", "    pool: {kind: folder, images: pool}\n  val:").replace(
    "{mode: gold}", "{mode: online}"
)


def test_online_needs_no_silver_section(write):
    path = write(ONLINE)
    settings = read_settings(path)
    assert settings.mix_sources() == ["gold", "pool"]
    assert settings.when_online().pools == ["pool"] and settings.when_online().audit == "val"
    assert read_settings(path, ["online.audit_every=null"]).when_online().audit is None
    # other modes have nobody to label the folder, and no pools that are labelled as they come
    assert read_settings(path, ["mix.mode=gold"]).when_online() is None
    (problem,) = problems(path, "mix.mode=concat")
    assert "data.sources.pool: is of kind folder" in problem


def test_online_takes_what_silver_says_unless_told_otherwise(write):
    silver = "silver={teacher: {kind: gold}, pools: [pool], select: {threshold: 0.8}}"
    settings = read_settings(write(ONLINE), [silver])
    assert settings.when_online().pools == ["pool"]
    assert settings.when_online().select.threshold == 0.8
    own = read_settings(write(ONLINE), [silver, "online.select={threshold: 0.6}"])
    assert own.when_online().select.threshold == 0.6
    assert read_settings(write(ONLINE)).when_online().select.threshold == 0.5


def test_online_s_floor_is_that_of_the_task_that_labels(write):
    plates = "tasks.plates={kind: detection, test: {score_threshold: 0.3}}"
    path = write(ONLINE)
    alone = read_settings(path).when_online().floor
    assert read_settings(path, [plates, "export.format=null"]).when_online().floor == alone < 0.3


def test_online_mistakes_are_told(write):
    path = write(ONLINE)
    text = "\n".join(problems(path, "train.ema=null", "online.pools=[polo]"))
    assert "'polo' is no source" in text and "the averaged model is the teacher" in text
    (problem,) = problems(path, "online.audit=gold")
    assert "is trained on" in problem
    text = "\n".join(problems(path, "online.audit=pool"))
    assert "neither 'val' nor a labelled source" in text
    text = "\n".join(problems(write(MINIMAL), "mix.mode=online"))
    assert "online needs pictures to label" in text
    text = "\n".join(problems(path, "data.val.grade=silver"))
    assert "data.val: must be labelled by people" in text, "trap: validating on silver"


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("{per_class: {dgo: 0.6}}", "per_class: 'dgo' is no class (nearest: 'dog')"),
        ("{ignore_budget: 1.0}", "ignore_budget: counts over all pictures of a pool"),
        ("{max_empty: 0.5}", "max_empty: counts over all pictures of a pool"),
        ("{threshold: 0.04, ignore_from: null}", "threshold: 0.04 is below 0.05"),
        ("{threshold: {precision: 0.9}}", "a threshold is given as a precision"),
        ("{soft_targets: true}", "probabilities need an audit against gold"),
        ("{max_density: 2}", "max_density: needs an audit against gold"),
    ],
)
def test_what_online_cannot_choose_by_is_told_when_the_settings_are_read(write, select, expected):
    path = write(ONLINE)
    audit = [] if "need" not in expected and "precision" not in expected else ["null"]
    others = [f"online.audit_every={value}" for value in audit]
    (problem,) = problems(path, f"online.select={select}", *others)
    assert "online.select" in problem and expected in problem
    # of a policy that is the pools' as well, too, and where to give mode online its own
    silver = f"silver={{teacher: {{kind: gold}}, pools: [pool], select: {select}}}"
    inherited = problems(path, silver, *others)
    assert len(inherited) == 2 and "silver.select" in inherited[0] and expected in inherited[0]
    assert "online.select: is not given" in inherited[1]
    read_settings(path, [silver, "online.select={threshold: 0.6}", *others])
    read_settings(path, [silver, "mix.mode=batch", *others])


def test_online_has_one_teacher_and_a_task_for_what_it_writes(write):
    path = write(ONLINE)
    (problem,) = problems(path, "online.select={fusion: {method: nms}}")
    assert "online.select.fusion: mode online has one teacher" in problem
    # what several teachers of other pools need is no fault
    silver = "silver={teacher: {kind: gold}, pools: [pool], select: {fusion: {method: nms}}}"
    assert read_settings(path, [silver]).when_online().select.fusion.method == "nms"
    maps = ONLINE.replace("{kind: detection}", "{kind: semantic}")
    text = "\n".join(problems(write(maps.replace("boxes:", "sky:")), "data.maps={classes: [sky]}"))
    assert "online.labels: has boxes, and no task finds boxes" in text
    assert "list kinds of which there are some: maps" in text


def test_online_lays_its_boxes_under_gold_as_silver_does(write):
    path = write(ONLINE)
    assert read_settings(path).when_online().overlay == OverlaySettings()
    silver = "silver={teacher: {kind: gold}, pools: [pool], overlay: {double: 0.7}}"
    assert read_settings(path, [silver]).when_online().overlay.double == 0.7
    own = read_settings(path, [silver, "online.overlay={double: 0.3}"])
    assert own.when_online().overlay.double == 0.3


def test_balancing_is_told_apart_by_kind(write):
    path = write(MINIMAL)
    assert read_settings(path).balancing.kind == "fixed"
    assert read_settings(path, ["balancing={weights: {boxes: 2.0}}"]).balancing.weights
    assert read_settings(path, ["balancing.kind=famo"]).balancing.rate == 0.025
    (problem,) = problems(path, "balancing={kind: famo, rat: 1}")
    assert "balancing" in problem and "did you mean 'rate'?" in problem
    (problem,) = problems(path, "balancing.kind=famoo")
    assert "no kind 'famoo'; did you mean 'famo'? there are dwa, famo, fixed" in problem
