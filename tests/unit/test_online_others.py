"""Mode online for maps and tags: the choice is a store's, and one look of the teacher serves all kinds."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, os.path.dirname(__file__))
from diagnosis_stand_ins import NAMES, model_of
from map_stand_ins import TEACHER, halves, store_of_maps
from silver_stand_ins import HEIGHT, WIDTH, pictures
from test_loader import make_source
from test_online import ONLINE

from detmtl.balancing.fixed import FixedSettings
from detmtl.config import settings_from
from detmtl.data.augment import Augment
from detmtl.data.fit import InputSettings
from detmtl.data.loader import drafts
from detmtl.data.maps import MapClasses, MapFolder
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.tags import TagClasses, Tags
from detmtl.engine import online_audit
from detmtl.engine.distributed import Process
from detmtl.engine.evaluator import predict
from detmtl.engine.online import online_batches
from detmtl.engine.online_audit import Audits, Choices, audit_pictures
from detmtl.engine.online_boxes import OnlineBoxes
from detmtl.engine.online_maps import OnlineMaps
from detmtl.engine.online_tags import OnlineTags
from detmtl.engine.optim import OptimSettings
from detmtl.engine.trainer import TrainSettings
from detmtl.run_online import online_kinds
from detmtl.run_sources import to_be_labelled
from detmtl.silver.card import TeacherCard
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.maps import audit_maps, select_maps, with_silver_maps
from detmtl.silver.overlay import OverlaySettings
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.silver.tags import audit_tags, select_tags, with_silver_tags
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import UNKNOWN, Grade, MapLabels, TagLabels
from detmtl.structures.sample import Batch

AUGMENT = Augment([{"HorizontalFlip": {"p": 1.0}}], 48, 64)
STEPS, START = 8, 4


def with_maps(source, folder: Path, which=slice(None)):
    """Returns a source some of whose pictures have a map: class a above, b below."""
    folder.mkdir(exist_ok=True)
    for i in range(len(source))[which]:
        height, width = source.sizes[i].tolist()
        values = np.ones((height, width), np.uint8)
        values[height // 2 :] = 2
        Image.fromarray(values).save(folder / Path(source.files.name(i)).with_suffix(".png").name)
    wanted = MapFolder(folder=folder.name, categories={1: "a", 2: "b"}, missing="absent")
    classes = MapClasses(classes=NAMES)
    return replace(source, maps=wanted.load(source.files, folder.parent, classes, "x"))


def with_tags(source, which=slice(None)):
    """Returns a source of some of whose pictures a is told, and b denied."""
    n = len(source)
    present = np.zeros(n, bool)
    present[which] = True
    targets = np.tile(np.array([1, 0], np.float32), (n, 1))
    told = Tags(targets, np.ones((n, 2), np.float32), present, np.zeros(n, np.uint8))
    return replace(source, tags=told)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Gold; a pool whose first picture has a map and whose second has tags; and pictures to audit by, the
    last of them without a map."""
    folder = tmp_path_factory.mktemp("pictures")
    gold, pool, held = (
        make_source(folder, n, k) for n, k in (("gold", 5), ("pool", 6), ("held", 6))
    )
    pool = replace(
        pool, annotations=None, coverage=np.zeros((1, 2), np.float32), grade=Grade.SILVER
    )
    return [
        with_tags(with_maps(gold, folder / "gold_maps")),
        with_tags(with_maps(pool, folder / "pool_maps", slice(1)), slice(1, 2)),
        with_tags(with_maps(held, folder / "held_maps", slice(5))),
    ]


def kinds_of(**changed):
    """All kinds of labels, none of them picky."""
    boxes = SelectionSettings(threshold=0.0, ignore_from=None, max_boxes=5)
    select = {
        "maps": MapSelection(),
        "tags": TagSelection(absent_below=0.5, shown_from=0.5),
    } | changed
    return [
        OnlineBoxes("boxes", LabelSpace.of(NAMES), 0.0, boxes, OverlaySettings()),
        OnlineMaps("map", NAMES, select["maps"]),
        OnlineTags("tags", NAMES, select["tags"]),
    ]


def prepared():
    settings = TrainSettings(steps=STEPS, precision="fp32", ema=0.8)
    model, balancer = model_of(), FixedSettings().build(["boxes", "map", "tags"])
    balancer.attach(model.shared_parameters(), model.own_parameters())
    return settings.prepare(
        model, balancer, OptimSettings(warmup=0), Process(0, 1, torch.device("cpu")), {}, NAMES
    )


def stream(state, sources, kinds, folder=None):
    mix = MixSettings(mode="online", burn_in=START / STEPS, shares={"gold": 1, "pool": 1})
    mixture = Mixture(sources[:2], mix, 4, seed=2, steps=STEPS)
    audits = None
    if folder is not None:
        gold = audit_pictures(sources[2], 64, kinds)
        size = InputSettings(short=48, long=64)
        audits = Audits(state, gold, kinds, folder, START, 2, size, "fp32")
    choices = Choices(kinds, START, audits)
    waiting = drafts(mixture, AUGMENT, ["pool"], 0, STEPS, seed=2)
    labelled = online_batches(waiting, 0, state, mixture.sources, AUGMENT, choices, kinds, "fp32")
    return labelled, mixture, choices


def weak_views(sources, number):
    mix = MixSettings(mode="online", burn_in=START / STEPS, shares={"gold": 1, "pool": 1})
    mixture = Mixture(sources[:2], mix, 4, seed=2, steps=STEPS)
    (draft,) = drafts(mixture, AUGMENT, ["pool"], number, number + 1, seed=2)
    return Batch.of([replace(draft.samples[i], labels={}) for i in draft.waiting])


def test_one_look_of_the_teacher_labels_boxes_maps_and_tags(sources):
    """The strong view is flipped, and the map with it; what people gave of a picture stays."""
    state, kinds = prepared(), kinds_of(maps=MapSelection(confidence=0.4))
    batches, mixture, _ = stream(state, sources, kinds)
    seen = {"teacher": 0, "people": 0}
    for number, batch in enumerate(batches):
        maps, tags = batch.labels["maps"], batch.labels["tags"]
        waiting = [i for i, pick in enumerate(mixture.picks(number)) if pick.source == 1]
        if number < START:
            assert not waiting, "gold alone until the burn-in is over"
            continue
        found = predict(state.averaged, weak_views(sources, number), state.device, "fp32")
        for k, i in enumerate(waiting):
            place = mixture.picks(number)[i].index
            height, width = batch.sizes[i].tolist()
            assert batch.labels["boxes"].unpadded(batch.sizes.tolist())[i].coverage.tolist() == [
                1,
                1,
            ]
            classes, sure = found["map"][k].classes, found["map"][k].weights
            confident = (sure * 255).round() >= np.ceil(0.4 * 255)
            expected = torch.where(confident, classes, torch.tensor(UNKNOWN, dtype=torch.uint8))
            own = maps.classes[i, :height, :width]
            if place == 0:
                assert (own[: height // 2 - 1] == 0).all() and (own[height // 2 + 1 :] == 1).all()
                seen["people"] += 1
            else:
                assert torch.equal(own, expected.flip(1))
                seen["teacher"] += 1
            if place == 1:
                assert tags.targets[i].tolist() == [1, 0]
            else:
                assert (
                    tags.targets[i].tolist() == (found["tags"][k].targets >= 0.5).float().tolist()
                )
            assert tags.weights[i].tolist() == [1, 1]
    assert min(seen.values()) > 0


def test_audits_look_once_at_all_pictures_and_are_kept_by_kind(sources, tmp_path, monkeypatch):
    looks = []

    def counted(model, batch, *more):
        looks.append(len(batch))
        return predict(model, batch, *more)

    monkeypatch.setattr(online_audit, "predict", counted)
    kinds = kinds_of()
    batches, _, choices = stream(prepared(), sources, kinds, tmp_path / "online")
    weights = [b.labels["maps"].weights for b in batches]
    made = sorted(p.relative_to(tmp_path / "online") for p in (tmp_path / "online").glob("*/*"))
    assert [str(p) for p in made] == [
        f"{n:08d}/{kind}" for n in (4, 6) for kind in ("boxes", "maps", "tags")
    ]
    assert sum(looks) == 2 * 6, "six pictures, twice"
    stores = {p.name: Store.open(tmp_path / "online" / p) for p in made[:3]}
    assert {name: len(store) for name, store in stores.items()} == {
        "boxes": 6,
        "maps": 5,
        "tags": 6,
    }
    assert {name: store.card.task for name, store in stores.items()} == {n: n for n in stores}
    # what gold says of the teacher weighs its labels
    audit = audit_maps(stores["maps"], sources[2], MapClasses(classes=NAMES), kinds[1].select)
    precise = {round(float(x), 4) for x in weights_of(audit, kinds[1])}
    assert {round(float(x), 4) for x in weights[START].unique()} <= precise | {0.0, 1.0}
    assert choices.told() == {f"online/weak_audits_of_{n}": 0 for n in ("boxes", "maps", "tags")}
    # a run that goes on looks again at nothing and chooses the same
    again = stream(prepared(), sources, kinds, tmp_path / "online")[2]
    some = MapLabels(torch.arange(2, dtype=torch.uint8)[None], torch.ones(1, 2), torch.ones(2))
    first, second = (c(STEPS - 1)["maps"](some) for c in (choices, again))
    assert torch.equal(first.weights, second.weights) and sum(looks) == 2 * 6


def weights_of(audit, kind):
    choice = kind.choice(audit)
    some = MapLabels(torch.arange(2, dtype=torch.uint8)[None], torch.ones(1, 2), torch.ones(2))
    return choice(some).weights[0]


def test_a_kind_with_too_little_evidence_waits_alone(sources, tmp_path):
    """Two pictures' tags do not tell what scores are worth."""
    sources = [*sources[:2], with_tags(sources[2], slice(2))]
    tags = TagSelection.model_validate({"soft_targets": True, "calibration": "platt"})
    kinds = kinds_of(tags=tags)
    batches, _, choices = stream(prepared(), sources, kinds, tmp_path / "online")
    with pytest.warns(UserWarning, match="audit of tags before batch 4 has too little evidence"):
        seen = list(batches)
    assert choices.told()["online/weak_audits_of_tags"] == 2
    assert choices.told()["online/weak_audits_of_maps"] == 0
    for batch in seen[START:]:
        silver = batch.grades == Grade.SILVER
        assert (batch.labels["maps"].classes[silver] != UNKNOWN).any()
        told = batch.labels["tags"].weights[silver].sum(1)
        assert set(told.tolist()) <= {0.0, 2.0}, "people's alone"


def test_what_cannot_be_audited_is_told_before_the_training(sources):
    gold = audit_pictures(sources[2], 3, kinds_of())
    assert len(gold.of["maps"]) == 3 and gold.of["maps"].maps.present().all()
    assert len(gold.of["tags"]) == len(gold.of["boxes"]) == 3
    everything = {i for of in gold.of.values() for i in of.ids.tolist()}
    assert set(gold.pictures.ids.tolist()) == everything
    for missing, kind in (("maps", 1), ("tags", 2)):
        with pytest.raises(
            InputError, match=f"source 'held' has no {missing} to audit the teacher by"
        ):
            audit_pictures(replace(sources[2], **{missing: None}), 5, kinds_of()[kind:][:1])


@pytest.mark.parametrize("audited", [False, True])
def test_the_choice_of_maps_is_a_store_s(tmp_path, audited):
    """The same maps, through a store and a selection, and at once; the model knows the background."""
    source = pictures(tmp_path / "p", 8)
    classes = MapClasses(classes={name: [name] for name in TEACHER})
    maps = [halves(i % 4, (i + 1) % 4) for i in range(8)]
    sure = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    select = MapSelection(confidence=0.3, per_class={"car": 0.6}, border=1)
    store, audit = store_of_maps(tmp_path / "s", source, maps, confidence=sure), None
    if audited:
        (tmp_path / "gold").mkdir()
        for i in range(8):
            Image.fromarray(halves(i % 4, 1)).save(tmp_path / "gold" / f"{i:03d}.png")
        folder = MapFolder(folder="gold", categories=dict(enumerate(TEACHER)))
        gold = replace(source, maps=folder.load(source.files, tmp_path, classes, "gold"))
        audit = audit_maps(store, gold, classes, select)
    written = with_silver_maps(source, select_maps(store, source, classes, select, audit), classes)
    choose = OnlineMaps("map", TEACHER, select).choice(audit)
    for i, values in enumerate(maps):
        found = MapLabels(
            torch.from_numpy(values), torch.from_numpy(sure / 255).float(), torch.ones(4)
        )
        at_once, offline = choose(found), written.labels(i)["maps"]
        assert torch.equal(at_once.classes, offline.classes)
        known = offline.classes != UNKNOWN
        torch.testing.assert_close(at_once.weights[known], offline.weights[known])
        torch.testing.assert_close(at_once.coverage, offline.coverage)
        assert at_once.grade == offline.grade == Grade.SILVER
    assert audited == bool(at_once.weights[known].min() < 1)


@dataclass
class _Tagged:
    content_hash: str
    scores: np.ndarray


class _Tags:
    """As much of a store of tags as selection and audit look at."""

    def __init__(self, path, source, scores):
        self.path, self.rows = path, list(map(_Tagged, source.hashes(), scores))
        self.card = TeacherCard(
            name="t",
            weights_sha256="0" * 64,
            classes=("night", "rain"),
            preprocessing="",
            task="tags",
        )

    def records_of(self, hashes):
        return (record for record in self.rows if record.content_hash in hashes)

    def digest(self):
        return "d" * 16


@pytest.mark.parametrize("soft", [False, True])
def test_the_choice_of_tags_is_a_store_s(tmp_path, soft):
    source = pictures(tmp_path / "p", 30)
    classes = TagClasses(classes=["night", "rain"])
    rng = np.random.default_rng(0)
    scores = rng.random((30, 2)).astype(np.float32).round(3)
    store = _Tags(tmp_path / "s", source, scores)
    truth = (scores + rng.normal(0, 0.3, scores.shape) > 0.5).astype(np.float32)
    ones = np.ones_like(truth)
    gold = replace(source, tags=Tags(truth, ones, np.ones(30, bool), np.zeros(30, np.uint8)))
    audit = audit_tags(store, gold, classes)
    select = TagSelection.model_validate(
        {"absent_below": 0.3, "shown_from": 0.7, "soft_targets": soft, "calibration": "platt"}
    )
    written = with_silver_tags(source, select_tags(store, source, classes, select, audit), classes)
    choose = OnlineTags("tags", ("night", "rain"), select).choice(audit)
    for i in range(30):
        found = TagLabels(torch.from_numpy(scores[i]), torch.ones(2))
        at_once, offline = choose(found), written.labels(i)["tags"]
        known = offline.weights > 0
        torch.testing.assert_close(at_once.weights, offline.weights, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            at_once.targets[known], offline.targets[known], atol=1e-4, rtol=0
        )
        assert at_once.grade == Grade.SILVER
    assert 0 < float(offline.weights.min()) < 1


SEVERAL = {
    **ONLINE,
    "data": {**ONLINE["data"], "maps": {"classes": NAMES}, "tags": {"classes": NAMES}},
    "tasks": {
        "boxes": {"kind": "detection"},
        "map": {"kind": "semantic"},
        "tags": {"kind": "tags"},
    },
    "online": {"pools": ["pool"], "labels": ["tags", "boxes", "maps"]},
}


def test_kinds_come_from_the_settings():
    kinds = online_kinds(settings_from(SEVERAL))
    assert [(k.written, k.task) for k in kinds] == [
        ("boxes", "boxes"),
        ("maps", "map"),
        ("tags", "tags"),
    ]
    silver = {
        "teacher": {"kind": "gold"}, "pools": ["pool"], "select_maps": {"confidence": 0.7},
    }  # fmt: skip
    _, maps, _ = online_kinds(settings_from(SEVERAL | {"silver": silver}))
    assert maps.select.confidence == 0.7, "as silver's"
    own = SEVERAL["online"] | {"select_maps": {"border": 2}, "select_tags": {"shown_from": 0.9}}
    _, maps, tags = online_kinds(settings_from(SEVERAL | {"silver": silver, "online": own}))
    assert (maps.select.confidence, maps.select.border, tags.select.shown_from) == (0.0, 2, 0.9)
    # a task of noise learns from maps too, and finds none
    noise = {"noise": {"kind": "detmtl.tasks.noise:NoiseConfig", "of": {"kind": "semantic"}}}
    found = settings_from(SEVERAL | {"tasks": noise | SEVERAL["tasks"]})
    assert [k.task for k in online_kinds(found)] == ["boxes", "map", "tags"]
    assert online_kinds(settings_from(SEVERAL | {"mix": {"mode": "batch"}, "silver": silver})) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tasks": {"boxes": {"kind": "detection"}}},
         "online.labels: has maps, and no task learns from maps"),
        ({"online": {"pools": ["pool"]}, "tasks": {"map": {"kind": "semantic"}}},
         "online.labels: has boxes, and no task learns from boxes"),
        ({"online": SEVERAL["online"] | {"select_maps": {"per_class": {"c": 0.5}}}},
         "online.select_maps.per_class: 'c' is no class"),
        ({"online": SEVERAL["online"]
          | {"select_tags": {"shown_from": {"precision": 0.9}}, "audit_every": None}},
         "online.select_tags: a threshold is given as a precision"),
        ({"online": SEVERAL["online"] | {"select_maps": {"least_precision": 0.5}, "audit_every": None}},
         "online.select_maps.least_precision: needs an audit"),
        ({"data": SEVERAL["data"] | {"tags": {"classes": NAMES, "from_boxes": True}}},
         "online.labels: has tags, which follow from boxes here"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_told(changed, told):
    with pytest.raises(InputError) as caught:
        settings_from(SEVERAL | changed)
    assert told in str(caught.value)


def test_a_pool_that_is_gold_for_boxes_may_wait_for_maps(sources):
    gold, pool = sources[0], replace(sources[0], name="pool")
    maps_only = settings_from(SEVERAL | {"online": {"pools": ["pool"], "labels": ["maps"]}})
    found = to_be_labelled(maps_only, {"gold": gold, "pool": replace(pool, maps=None)})
    assert found["pool"].annotations is pool.annotations and found["pool"].grade == Grade.SILVER
    assert len(found["pool"]) == len(pool)
    with pytest.raises(InputError, match="people have given all maps of 'pool'"):
        to_be_labelled(maps_only, {"gold": gold, "pool": pool})
    silver = replace(pool, grade=Grade.SILVER)
    found = to_be_labelled(maps_only, {"gold": sources[2], "pool": silver})["pool"]
    assert found.maps is None and found.tags is pool.tags and found.annotations is not None
    everything = settings_from(SEVERAL)
    found = to_be_labelled(everything, {"gold": sources[2], "pool": silver})["pool"]
    assert found.maps is None and found.tags is None and found.annotations is None
