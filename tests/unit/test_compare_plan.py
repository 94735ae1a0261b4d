"""From a comparison's file to the settings of its runs."""

from pathlib import Path

import pytest

from detmtl.comparing.keys import (
    canonical,
    makes_silver,
    run_key,
    store_name,
    teacher_key,
    teachers_of,
)
from detmtl.comparing.plan import Planner, cells_of, effort
from detmtl.comparing.settings import base_config, chosen, parse_seeds, read_compare
from detmtl.run_folder import RunFolder
from detmtl.structures.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASE = """\
data:
  root: here
  classes: [cat, dog]
  sources:
    gold: {kind: coco, images: images, annotations: gold.json}
    pool: {kind: folder, images: pool}
  val: {kind: coco, images: images, annotations: val.json}
  batch_size: 2
model:
  backbone: {name: resnet18}
tasks:
  boxes: {kind: detection}
silver: {teacher: {kind: gold, train: {steps: 5}}, pools: [pool]}
mix: {mode: batch, shares: {gold: 1, pool: 1}}
train: {steps: 3}
"""
COMPARE = """\
base: base.yaml
arms: {gold: {mix.mode: gold}, electrum: {}, teacher: teacher}
baseline: gold
"""
UNKEYED = [
    "data.root=elsewhere",
    "data.workers=3",
    "train.log_every=7",
    "train.pictures_every=null",
    "export.format=null",
    "silver.batch_size=3",
    "online.audit_every=7",
]


@pytest.fixture
def planner(tmp_path):
    def made(text="", base=BASE, overrides=(), compare=COMPARE):
        (tmp_path / "base.yaml").write_text(base)
        path = tmp_path / "compare.yaml"
        path.write_text(compare + text)
        return Planner(read_compare(path), path, overrides)

    return made


def of(planner, arm="electrum", seed=0, cell=0):
    return planner.of_arm(cells_of(planner.settings)[cell], arm, seed)


def test_layers_of_settings(planner):
    made = planner("set: {train.steps: 4, optim.lr: 1.0e-3}\nseeded: [mix.weights.pool]\n")
    assert of(made, "gold").mix.mode == "gold" and of(made).mix.mode == "batch"
    assert of(made, seed=3).train.steps == 4 and of(made, seed=3).optim.lr == 1e-3
    assert of(made, seed=3).seed == 3 and of(made, seed=3).mix.weights == {"pool": 3}
    told = planner("set: {train.steps: 4}\n", overrides=["train.steps=6"])
    assert of(told).train.steps == 6, "the command line comes after the file"
    arm = planner("set: {train.steps: 4}\n".replace("set", "note: x\nset"))
    assert of(arm).train.steps == 4


def test_an_arm_without_the_section_of_a_seed_goes_without_it(planner):
    seeds = "seeded: [silver.teacher.train.warmup, data.sources.gold.subset.seed]\n"
    made = planner(seeds + "set: {data.sources.gold.subset.count: 8}\n")
    alone = {"silver": None, "mix": {"mode": "gold"}, "data.sources.gold.subset": None}
    arms = made.settings.arms | {"alone": alone}
    made.settings = made.settings.model_copy(update={"arms": arms})
    whole = of(made, "alone", seed=2)
    assert whole.silver is None and whole.data.sources["gold"].subset is None
    rest = of(made, seed=2)
    assert rest.data.sources["gold"].subset.seed == rest.silver.teacher.train["warmup"] == 2
    with pytest.raises(InputError, match=r"data\.sources\.golden"):
        of(planner("seeded: [data.sources.golden.subset.seed]\n"))


def test_values_arrive_as_they_are(planner):
    dog = "\N{DOG FACE}"
    made = planner(
        f'set: {{data.classes: [cat, "{dog}"], mix.shares: {{gold: 1, pool: 1}}}}\n'
        "seeded: [mix.shares.pool]\n"
    )
    before = made.digest()
    settings = of(made, seed=3)
    assert settings.data.classes == ["cat", dog] and settings.mix.shares == {"gold": 1, "pool": 3}
    assert made.digest() == before, "a run's seed changed what all runs have in common"
    with pytest.raises(InputError, match=r"set: optim\.lr: .* finite number; found Infinity"):
        of(planner("set: {optim.lr: .inf}\n"))


def test_cells_are_every_combination_of_grid_and_curve(planner):
    text = """\
grid: {steps: {few: {train.steps: 2}, many: {train.steps: 9}}}
curve: {data.sources.gold.subset.count: [8, 16], data.batch_size: [1, 2]}
"""
    made = planner(text)
    cells = cells_of(made.settings)
    assert [c.name for c in cells] == [
        "few, gold 8",
        "few, gold 16",
        "many, gold 8",
        "many, gold 16",
    ]
    last = of(made, cell=3)
    assert (last.train.steps, last.data.sources["gold"].subset.count, last.data.batch_size) == (
        9,
        16,
        2,
    )
    assert [c.x for c in cells] == [8, 16, 8, 16] and cells[3].axes == {"steps": "many"}


def test_mistakes_are_told_with_their_place(planner):
    with pytest.raises(
        InputError, match=r"compare\.yaml:\d+: sedes: unknown setting; did you mean"
    ):
        planner("sedes: 3\n")
    with pytest.raises(
        InputError, match="ceiling: 'all' is no arm; arms has gold, electrum, teacher"
    ):
        planner("ceiling: all\n")
    with pytest.raises(InputError, match="equal lengths"):
        planner("curve: {train.steps: [1, 2], data.batch_size: [1]}\n")
    with pytest.raises(InputError, match=r"backbone\.name: is the horizontal .* found r18, r50"):
        planner("curve: {model.backbone.name: [r18, r50], train.steps: [1, 2]}\n")
    with pytest.raises(InputError, match=r"curve: train\.steps: is empty"):
        planner("curve: {train.steps: []}\n")
    with pytest.raises(InputError, match="grid: size: is empty"):
        planner("grid: {size: {}}\n")
    with pytest.raises(InputError, match=r"compare\.yaml: set: train\.stepz: .*unknown setting"):
        of(planner("set: {train.stepz: 4}\n"))
    with pytest.raises(InputError, match=r"base: nowhere\.yaml: no such file"):
        base_config(
            planner().settings.model_copy(update={"base": "nowhere.yaml"}), Path("compare.yaml")
        )
    with pytest.raises(InputError, match="--only x: is no arm; there are gold; electrum; teacher"):
        chosen(planner().settings.arms, ["x"])


def test_gold_alone_is_one_run_whatever_the_teacher(planner):
    text = "grid: {floor: {low: {silver.floor: 0.01}, high: {silver.floor: 0.2}}}\n"
    made = planner(text)
    gold = [canonical(of(made, "gold", cell=i)) for i in (0, 1)]
    assert run_key(gold[0], {}) == run_key(gold[1], {})
    assert gold[0].silver is None and set(gold[0].data.sources) == {"gold"}
    electrum = [canonical(of(made, cell=i)) for i in (0, 1)]
    assert run_key(electrum[0], {}) != run_key(electrum[1], {})


def test_keys(planner):
    made = planner()
    settings = of(made)
    assert run_key(settings, {}) != run_key(of(made, seed=1), {})
    assert run_key(settings, {"gold": "a"}) != run_key(settings, {"gold": "b"}), "other files"
    silver = settings.silver.model_copy(update={"store": Path("elsewhere")})
    moved = settings.model_copy(update={"silver": silver})
    assert run_key(settings, {}) == run_key(moved, {}), "where a store lies changes nothing"
    warned = settings.silver.model_copy(update={"gates": "warn"})
    going_on = settings.model_copy(update={"silver": warned})
    assert run_key(settings, {}) == run_key(going_on, {}), (
        "what ended is kept when gates shall warn"
    )
    train = settings.train.model_copy(update={"score_in_background": False})
    scored = settings.model_copy(update={"train": train})
    assert run_key(settings, {}) == run_key(scored, {}), "nor where scores are counted"
    train = settings.train.model_copy(update={"compile": "default"})
    compiled = settings.model_copy(update={"train": train})
    assert run_key(settings, {}) != run_key(compiled, {}), "other roundings"
    assert store_name(settings, "a") != store_name(settings, "b")
    named = of(planner(base=BASE.replace("kind: gold, ", "kind: gold, task: boxes, ")))
    assert store_name(settings, "a") != store_name(named, "a"), "another task, other labels"
    assert run_key(settings, {}) != run_key(named, {})
    assert "task" not in teachers_of(settings)["teacher"], "keys of before the setting stay"
    assert teacher_key(settings, {}) == teacher_key(of(made, seed=1), {}), "no chance in a teacher"


def begin(path, settings):
    """Returns the folder of a run of which the training has left something."""
    folder = RunFolder(path)
    folder.claim(settings)
    folder.last.touch()
    return folder


@pytest.mark.parametrize("changed", UNKEYED)
def test_what_has_no_effect_is_not_in_a_key_and_a_begun_run_goes_on(planner, tmp_path, changed):
    alone = (of(planner()), of(planner(overrides=[changed])))
    assert alone[0] != alone[1] and len({run_key(s, {}) for s in alone}) == 1
    assert len({teacher_key(s, {}) for s in alone}) == 1
    begin(tmp_path / "alone", alone[0]).claim(alone[1])
    in_mode_online = [
        of(planner(overrides=["mix={mode: online}", "train.ema=0.9", *more]))
        for more in ([], [changed])
    ]
    begun = begin(tmp_path / "online", in_mode_online[0])
    if changed.startswith("online"):
        assert len({run_key(s, {}) for s in in_mode_online}) == 2
        with pytest.raises(InputError, match=r"with other settings \(online\.audit_every was"):
            begun.claim(in_mode_online[1])
    else:
        assert len({run_key(s, {}) for s in in_mode_online}) == 1
        begun.claim(in_mode_online[1])


@pytest.mark.parametrize(
    "changed", ["device=cuda", "train.compile=default", "optim.lr=0.3", "model.frozen=[fpn]"]
)
def test_what_has_an_effect_is_in_a_key(planner, changed):
    assert run_key(of(planner()), {}) != run_key(of(planner(overrides=[changed])), {})


def test_a_setting_that_came_later_is_in_no_key_where_it_is_not_given(planner, monkeypatch):
    """So runs of before it stay known."""
    monkeypatch.setattr("detmtl.comparing.keys.digest", lambda facts: facts)
    _, without, _ = run_key(of(planner()), {})
    _, given, _ = run_key(of(planner(overrides=["model.frozen=[fpn]"])), {})
    assert "frozen" not in without["model"] and given["model"]["frozen"] == ["fpn"]


def test_effort_counts_the_steps_of_a_teacher_that_a_student_starts_from(planner):
    assert effort(of(planner())) == (3, 2)
    base = BASE.replace("kind: gold, ", "kind: gold, burn_in: true, ")
    assert effort(of(planner(base=base))) == (8, 2)
    assert effort(of(planner(base=base), "gold")) == (3, 2)
    assert makes_silver(of(planner())) and not makes_silver(of(planner(), "gold"))


def test_split_cuts_every_source_of_the_same_pictures(planner):
    base = BASE.replace("images: pool}", "images: images, subset: {count: 4, rest: true}}")
    base = base.replace("gold.json}", "gold.json, subset: {count: 4}}")
    settings = of(planner("split: {train: 0.5, audit: 0.2, test: 0.3, seed: 7}\n", base=base))
    parts = [
        s.subset for s in (*settings.data.sources.values(), settings.data.val, settings.data.test)
    ]
    assert [p.part for p in parts] == [(0, 0.5), (0, 0.5), (0.5, 0.7), (0.7, 1)]
    assert {p.seed for p in parts} == {7}
    assert (parts[0].count, parts[1].count, parts[1].rest, parts[2].count) == (4, 4, True, None)
    assert settings.silver.audit == "val"


def test_split_mistakes(planner):
    with pytest.raises(InputError, match=r"add up to 1\.100"):
        planner("split: {train: 0.7}\n")
    with pytest.raises(InputError, match="a subset's seed, which split fixes"):
        planner("split: {}\nseeded: [data.sources.gold.subset.seed]\n")
    two = BASE.replace(
        "    pool:", "    more: {kind: coco, images: m, annotations: m.json}\n    pool:"
    )
    with pytest.raises(InputError, match=r"which source is to be cut.*gold, more"):
        of(planner("split: {}\n", base=two))
    with pytest.raises(InputError, match="'pool' is no source with labels by people"):
        of(planner("split: {source: pool}\n"))
    tested = BASE.replace(
        "  batch_size", "  test: {kind: coco, images: t, annotations: t.json}\n  batch_size"
    )
    with pytest.raises(InputError, match=r"has data\.test already"):
        of(planner("split: {}\n", base=tested))


def test_what_changes_the_experiment_and_what_does_not(planner):
    digest = planner().digest()
    assert planner("seeds: 9\nnote: hello\n").digest() == digest
    turned = "arms: {teacher: teacher, electrum: {}, gold: {mix.mode: gold}}\nbaseline: gold\n"
    assert planner(compare=f"base: base.yaml\n{turned}").digest() == digest, "only the order"
    assert planner("set: {train.steps: 4}\n").digest() != digest
    assert planner(overrides=["train.steps=4"]).digest() != digest
    assert planner(base=BASE.replace("steps: 3", "steps: 4")).digest() != digest
    assert planner("seeded: [optim.lr]\n").digest() != digest
    assert planner(base=BASE + "seed: 4\n").digest() == digest, "a comparison has its own seeds"


@pytest.mark.parametrize("changed", UNKEYED)
def test_what_no_key_knows_is_the_same_experiment(planner, changed):
    assert planner(overrides=[changed]).digest() == planner().digest()
    name, _, value = changed.partition("=")
    assert planner(f"set: {{{name}: {value}}}\n").digest() == planner().digest()


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("0-2", [0, 1, 2]), ("4,7", [4, 7]), ("5-5", [5])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "0", "-2", "1,x"])
def test_seeds_that_are_none(text):
    with pytest.raises(InputError, match="must be a count"):
        parse_seeds(text)


@pytest.mark.parametrize(
    "path",
    [
        *sorted(CONFIGS.glob("compare_*.yaml")),
        CONFIGS.parent / "benchmarks" / "compare_torchvision.yaml",
    ],
    ids=lambda p: p.stem,
)
def test_configs_are_right_in_every_arm_and_make_equal_efforts(path, monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS.parent)  # where a task of benchmarks/ is found by its name
    folder = "" if path.parent == CONFIGS else "benchmarks/"
    assert f"--config {folder}{path.name}" in path.read_text()
    settings = read_compare(path)
    planner = Planner(settings, path, [])
    for cell in cells_of(settings):
        arms = [a for a in settings.arms if a != "teacher"]
        runs = {arm: planner.of_arm(cell, arm, 0) for arm in arms}
        assert len({effort(run) for run in runs.values()}) == 1, cell.name
