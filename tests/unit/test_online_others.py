"""Mode online for maps and tags: the choice is a store's, and one look of the teacher serves all kinds."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed as dist
from torch import multiprocessing

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
from detmtl.data.flat import FileNames
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
from detmtl.engine.recorder import Recorder
from detmtl.engine.trainer import TrainSettings, train
from detmtl.run_online import online_kinds
from detmtl.run_sources import to_be_labelled
from detmtl.silver.card import TeacherCard
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.maps import ChosenMaps, audit_maps
from detmtl.silver.overlay import OverlaySettings
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.silver.tags import ChosenTags, audit_tags
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import UNKNOWN, Grade, MapLabels, TagLabels
from detmtl.structures.sample import Batch, ImageInfo

AUGMENT = Augment([{"HorizontalFlip": {"p": 1.0}}], 48, 64)
STEPS, START = 8, 4
INFO = ImageInfo(0, "0.png", HEIGHT, WIDTH, "pool")


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


def stream(state, sources, kinds, folder=None, first=0, rank=0, world=1):
    mix = MixSettings(mode="online", burn_in=START / STEPS, shares={"gold": 1, "pool": 1})
    mixture = Mixture(sources[:2], mix, 4, seed=2, steps=STEPS)
    audits = None
    if folder is not None:
        gold = audit_pictures(sources[2], 64, kinds)
        size = InputSettings(short=48, long=64)
        audits = Audits(state, gold, kinds, folder, START, 2, size, "fp32")
    choices = Choices(kinds, START, audits)
    waiting = drafts(mixture, AUGMENT, ["pool"], first, STEPS, rank=rank, world=world, seed=2)
    labelled = online_batches(
        waiting, first, state, mixture.sources, AUGMENT, choices, kinds, "fp32"
    )
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
    precise = set(weights_of(audit, kinds[1]).tolist())
    assert all(0 < x < 1 for x in precise)
    assert precise & set(weights[START].unique().tolist())
    assert choices.told() == {f"online/weak_audits_of_{n}": 0 for n in ("boxes", "maps", "tags")}
    # a run that goes on looks again at nothing and chooses the same
    again = stream(prepared(), sources, kinds, tmp_path / "online")[2]
    some = MapLabels(torch.arange(2, dtype=torch.uint8)[None], torch.ones(1, 2), torch.ones(2))
    first, second = (c(STEPS - 1)["maps"](some, INFO) for c in (choices, again))
    assert torch.equal(first.weights, second.weights) and sum(looks) == 2 * 6


def weights_of(audit, kind):
    choice = kind.choice(audit)
    some = MapLabels(torch.arange(2, dtype=torch.uint8)[None], torch.ones(1, 2), torch.ones(2))
    return choice(some, INFO).weights[0]


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
        for i in silver.nonzero()[:, 0].tolist():
            people = batch.infos[i].path.endswith("pool1.png")
            assert (batch.labels["tags"].weights[i] > 0).all() == people


def test_what_cannot_be_audited_is_told_before_the_training(sources):
    gold = audit_pictures(sources[2], 3, kinds_of())
    assert len(gold.of["maps"]) == 3 and gold.of["maps"].maps.present().all()
    assert len(gold.of["tags"]) == len(gold.of["boxes"]) == 3
    everything = {i for of in gold.of.values() for i in of.ids.tolist()}
    assert set(gold.pictures.ids.tolist()) == everything
    for missing, kind in (("maps", 1), ("tags", 2)):
        with pytest.raises(
            InputError, match=f"source 'held' has no {missing} by people to audit the teacher by"
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
    chosen = ChosenMaps(store, classes, select)
    written = chosen.read(source, chosen.select(source, audit))
    choose = OnlineMaps("map", TEACHER, select).choice(audit)
    for i, values in enumerate(maps):
        found = MapLabels(
            torch.from_numpy(values), torch.from_numpy(sure / 255).float(), torch.ones(4)
        )
        at_once, offline = choose(found, INFO), written.labels(i)["maps"]
        assert torch.equal(at_once.classes, offline.classes)
        known = offline.classes != UNKNOWN
        torch.testing.assert_close(at_once.weights[known], offline.weights[known])
        torch.testing.assert_close(at_once.coverage, offline.coverage)
        assert at_once.grade == offline.grade == Grade.SILVER
    assert audited == bool(at_once.weights[known].min() < 1)


def test_pixels_of_a_class_that_the_model_has_not_learned_are_unknown(tmp_path):
    """Until gold confirms some, in as many pictures as it takes to measure it."""
    source = pictures(tmp_path / "p", 8)
    classes = MapClasses(classes={name: [name] for name in TEACHER})
    maps, select = [halves(1, 2) for _ in range(8)], MapSelection(weight="one")
    store = store_of_maps(tmp_path / "s", source, maps)
    taught = OnlineMaps("map", TEACHER, select, known={"background", "person", "sofa"})

    def against(*truth):
        folder = tmp_path / f"gold{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for i, values in enumerate(truth):
            Image.fromarray(values).save(folder / f"{i:03d}.png")
        written = MapFolder(folder=folder.name, categories=dict(enumerate(TEACHER)))
        gold = replace(source, maps=written.load(source.files, tmp_path, classes, "gold"))
        return audit_maps(store, gold, classes, select)

    found = MapLabels(torch.from_numpy(maps[0]), None, torch.ones(4))
    without = [
        None,
        against(*[halves(1, 0)] * 8),
        against(*[halves(1, 2)] * 4, *[halves(1, 0)] * 4),
        against(*[halves(1, 2)] * 4, *[halves(2, 1)] * 4),  # all show cars
    ]
    for audit in without:
        labels = taught.choice(audit)(found, INFO)
        assert labels.classes.unique().tolist() == [1, UNKNOWN]
        assert labels.coverage[2] == 0 and labels.coverage[1] == 1
    assert 2 in OnlineMaps("map", TEACHER, select).choice(None)(found, INFO).classes
    sure = MapSelection.model_validate({"weight": "one", "confidence": {"precision": 0.9}})
    known = OnlineMaps("map", TEACHER, sure, known={"background", "person", "sofa"})
    labels = known.choice(against(*[halves(1, 0)] * 8))(found, INFO)
    assert 1 in labels.classes, "what it takes for cars says nothing of persons"
    labels = taught.choice(against(*[halves(1, 2)] * 8))(found, INFO)
    assert labels.classes.unique().tolist() == [1, 2] and labels.coverage[2] == 1


def test_tags_that_the_model_has_not_learned_are_unknown(tmp_path):
    source = pictures(tmp_path / "p", 30)
    scores = np.tile(np.array([[0.9, 0.1]], np.float32), (30, 1))
    scores[:3, 1] = 0.8
    store, classes = _Tags(tmp_path / "s", source, scores), TagClasses(classes=["night", "rain"])
    taught = OnlineTags("tags", ("night", "rain"), TagSelection(), known={"night"})
    found = TagLabels(torch.tensor([0.9, 0.1]), torch.ones(2))

    def weights(truth, nights=30):
        looked = np.ones_like(truth)
        looked[nights:, 0] = 0
        gold = replace(source, tags=Tags(truth, looked, np.ones(30, bool), np.zeros(30, np.uint8)))
        return taught.choice(audit_tags(store, gold, classes))(found, INFO).weights.tolist()

    assert taught.choice(None)(found, INFO).weights.tolist() == [1, 0]
    night, shown = (
        np.tile(np.array([[1, 0]], np.float32), (30, 1)),
        (scores > 0.5).astype(np.float32),
    )
    assert weights(night) == [1, 0], "that it is never there says nothing of finding it"
    assert weights(shown) == [1, 1]
    shown[2, 1] = 0
    assert weights(shown) == [1, 0], "two pictures may be luck"

    scores = np.tile(np.array([[0.1, 0.1]], np.float32), (30, 1))
    scores[:5, 0] = 0.9
    store, found = (
        _Tags(tmp_path / "none", source, scores),
        TagLabels(torch.from_numpy(scores[9]), torch.ones(2)),
    )
    shown = np.tile(np.array([[0, 1]], np.float32), (30, 1))
    shown[:5, 0] = 1
    assert weights(shown, nights=12) == [1, 0], "what it misses of rain says nothing of night"


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
    chosen = ChosenTags(store, classes, select)
    written = chosen.read(source, chosen.select(source, audit))
    choose = OnlineTags("tags", ("night", "rain"), select).choice(audit)
    for i in range(30):
        found = TagLabels(torch.from_numpy(scores[i]), torch.ones(2))
        at_once, offline = choose(found, INFO), written.labels(i)["tags"]
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
    # a task of noise learns from maps too, and finds none, nor does what a task from outside finds count
    noise = {"noise": {"kind": "detmtl.tasks.noise:NoiseConfig", "of": {"kind": "semantic"}}}
    found = settings_from(SEVERAL | {"tasks": noise | SEVERAL["tasks"]})
    assert [k.task for k in online_kinds(found)] == ["boxes", "map", "tags"]
    assert online_kinds(settings_from(SEVERAL | {"mix": {"mode": "batch"}, "silver": silver})) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tasks": {"boxes": {"kind": "detection"}}},
         "online.labels: has maps, and no task finds maps"),
        ({"online": {"pools": ["pool"]}, "tasks": {"map": {"kind": "semantic"}}},
         "online.labels: has boxes, and no task finds boxes"),
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
    bare = replace(gold, maps=None, tags=None)
    found = to_be_labelled(maps_only, {"gold": bare, "pool": replace(pool, maps=None)})
    assert found["pool"].annotations is pool.annotations and found["pool"].grade == Grade.SILVER
    assert len(found["pool"]) == len(pool)
    with pytest.raises(InputError, match="people have given all maps of 'pool'"):
        to_be_labelled(maps_only, {"gold": bare, "pool": pool})


def test_pools_that_teachers_give_maps_have_no_doubles_by_maps_not_by_boxes(sources):
    silver = {"teacher": {"kind": "gold", "task": "map"}, "pools": ["pool"]}
    tree = {k: v for k, v in SEVERAL.items() if k != "online"}
    settings = settings_from(tree | {"silver": silver, "mix": {"mode": "concat"}})
    gold, pool = (
        sources[0],
        replace(sources[0], name="pool", annotations=None, maps=None, tags=None),
    )
    boxes_alone = {"gold": replace(gold, maps=None, tags=None), "pool": pool}
    assert len(to_be_labelled(settings, boxes_alone, "maps")["pool"]) == len(pool)
    with pytest.warns(UserWarning, match=r"'pool': 5 of 5 pictures are left out, because people"):
        assert len(to_be_labelled(settings, boxes_alone, "boxes")["pool"]) == 0
    some = replace(gold, annotations=None, tags=None).subset([0, 2])
    with pytest.warns(
        UserWarning, match="2 of 5 pictures are left out, because people gave .* maps"
    ):
        found = to_be_labelled(settings, {"gold": some, "pool": pool}, "maps")["pool"]
    assert found.hashes() == [pool.hashes()[i] for i in (1, 3, 4)]
    with_boxes = replace(pool, annotations=gold.annotations, coverage=gold.coverage)
    found = to_be_labelled(settings, {"gold": some, "pool": with_boxes}, "maps")["pool"]
    assert len(found) == len(pool), "what people said of them beside stands nowhere else"
    assert found.maps.by_people().tolist() == [True, False, True, False, False]


def test_each_kind_s_own_grade_says_whose_it_is(sources):
    """What a model wrote gives way to the new labels, what people gave stays."""
    held, pool = sources[2], replace(sources[0], name="pool")
    everything = settings_from(SEVERAL)
    boxes = replace(pool.annotations, grade=np.full_like(pool.annotations.grade, Grade.SILVER))
    by_model = replace(pool, grade=Grade.SILVER, annotations=boxes)
    found = to_be_labelled(everything, {"gold": held, "pool": by_model})["pool"]
    assert found.annotations is None and found.maps is pool.maps and found.tags.present.all()
    of_model = replace(pool.maps, grade=Grade.SILVER)
    graded = replace(pool.tags, grade=np.array([0, 1, 1, 1, 1], np.uint8))
    found = to_be_labelled(
        everything, {"gold": held, "pool": replace(pool, maps=of_model, tags=graded)}
    )["pool"]
    assert found.annotations is pool.annotations and found.maps is None
    assert found.tags.present.tolist() == [True, False, False, False, False]
    assert by_people_of(sources[2]) == (5, 6) and by_people_of(replace(held, maps=of_model)) == (
        0,
        6,
    )


def by_people_of(gold):
    _, maps, tags = kinds_of()
    return int(maps.judged(gold).sum()), int(tags.judged(gold).sum())


def test_people_s_maps_and_tags_of_the_same_picture_elsewhere_are_handed_over(sources):
    gold = replace(sources[0], maps=sources[0].maps.take(np.arange(5)))
    copies = replace(sources[0], name="pool", annotations=None, maps=None, tags=None)
    copies = replace(copies, coverage=np.zeros((1, 2), np.float32), grade=Grade.SILVER)
    half = with_tags(replace(gold, coverage=np.array([[1, 0]], np.float32)), slice(2))
    both = to_be_labelled(settings_from(SEVERAL), {"gold": half, "pool": copies})["pool"]
    assert len(both) == 5 and both.maps.present().all()
    assert torch.equal(both.labels(1)["maps"].classes, gold.labels(1)["maps"].classes)
    assert both.tags.present.tolist() == [True, True, False, False, False]
    assert both.tags.targets[0].tolist() == [1, 0] and both.coverage.tolist()[0] == [1, 0]
    maps_only = settings_from(SEVERAL | {"online": {"pools": ["pool"], "labels": ["maps"]}})
    fewer = replace(gold, maps=with_only(gold.maps, [0, 3]))
    with pytest.warns(
        UserWarning, match="2 of 5 pictures are left out, because people gave their maps"
    ):
        found = to_be_labelled(maps_only, {"gold": fewer, "pool": copies})["pool"]
    assert found.ids.tolist() == copies.ids[[1, 2, 4]].tolist()


def with_only(maps, which):
    names = [maps.files[i] if i in which else "" for i in range(len(maps.files))]
    return replace(maps, files=FileNames.of("/", names))


def test_pools_that_people_gave_maps_are_gold_in_the_burn_in(sources):
    """As pools with boxes by people are: the teacher has to have learned something."""
    bare = replace(sources[1], maps=None, tags=None)
    mix = MixSettings(mode="online", burn_in=0.5)
    told = replace(bare, maps=with_only(sources[0].maps.take(np.arange(5).repeat(2)[:6]), range(6)))
    assert [p.source for p in Mixture([told], mix, 2, seed=0, steps=4).picks(0)] == [0, 0]
    with pytest.raises(InputError, match="needs gold and silver sources"):
        Mixture([bare], mix, 2, seed=0, steps=4)
    some = replace(bare, maps=with_only(told.maps, [0]))
    with pytest.raises(InputError, match="needs gold and silver sources"):
        Mixture([some], mix, 2, seed=0, steps=4)


def test_a_border_is_in_pixels_of_the_file():
    """At half the size half as many pixels around an edge are unknown, and at least one."""
    choose = OnlineMaps("map", NAMES, MapSelection(border=4)).choice(None)
    classes = torch.zeros(24, 32, dtype=torch.uint8)
    classes[:, 16:] = 1
    found = MapLabels(classes, None, torch.ones(2))
    for factor, unknown in ((1, 8), (2, 4), (4, 2), (100, 2)):
        info = ImageInfo(0, "0.png", 24 * factor, 32 * factor, "pool")
        assert int((choose(found, info).classes[5] == UNKNOWN).sum()) == unknown


def test_an_audit_that_tells_nothing_changes_no_choice(sources, tmp_path):
    """Gold maps of which nothing is known, and tags without weight."""
    held = sources[2]
    unknown = replace(held.maps, lookup=np.full_like(held.maps.lookup, UNKNOWN))
    kinds = kinds_of()
    batches, _, choices = stream(
        prepared(), [*sources[:2], replace(held, maps=unknown)], kinds, tmp_path / "online"
    )
    with pytest.warns(UserWarning, match="audit of maps before batch 4 has too little evidence"):
        seen = list(batches)
    assert choices.told()["online/weak_audits_of_maps"] == 2
    silver = seen[-1].grades == Grade.SILVER
    assert (seen[-1].labels["maps"].classes[silver] == UNKNOWN).any()
    weightless = replace(held.tags, weights=np.zeros_like(held.tags.weights))
    with pytest.raises(InputError, match="has no tags by people"):
        audit_pictures(replace(held, tags=weightless), 5, kinds[2:])


def trained(folder, sources, killed_at=None, state=None):
    """Trains with all kinds of labels, audited; returns the weights."""

    class Killed(Exception):
        pass

    settings = TrainSettings(
        steps=STEPS, precision="fp32", ema=0.8, save_every=5, log_every=2, pictures_every=None
    )
    state = state or prepared()
    batches, _, choices = stream(state, sources, kinds_of(), folder / "online", state.step)

    def until_killed():
        for i, batch in enumerate(batches, state.step):
            if i == killed_at:
                raise Killed
            yield batch

    names = {"boxes": NAMES, "map": NAMES, "tags": NAMES}
    try:
        with Recorder(folder, STEPS, names, state.step, False) as told:
            train(
                state, until_killed(), settings, OptimSettings(warmup=0), lambda model: {}, told, folder,
                ["gold", "pool"], more_scalars=choices.told,
            )  # fmt: skip
    except Killed:
        pass
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def test_a_run_that_was_cut_off_goes_on_to_the_bit(sources, tmp_path):
    whole = trained(tmp_path / "whole", sources)
    trained(tmp_path / "part", sources, killed_at=7)
    state = prepared()
    state.load(tmp_path / "part" / "last.pt")
    assert state.step == 5, "after the audit before batch 4"
    part = trained(tmp_path / "part", sources, state=state)
    assert [name for name in whole if not torch.equal(whole[name], part[name])] == []


def test_an_audit_of_an_earlier_version_is_told(sources, tmp_path):
    trained(tmp_path, sources, killed_at=6)
    state = prepared()
    state.load(tmp_path / "last.pt")
    assert state.step == 5
    (tmp_path / "online/00000004/maps").rename(tmp_path / "away")
    (tmp_path / "online/00000004/raw").mkdir()
    with pytest.raises(InputError, match="the audit is of an earlier version of detmtl"):
        trained(tmp_path, sources, state=state)


def _of_rank(rank, folder, sources):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    batches, _, _ = stream(prepared(), sources, kinds_of(), folder / "online", rank=rank, world=2)
    torch.save(
        [(b.labels["maps"].classes, b.labels["tags"].targets) for b in batches],
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_label_what_one_labels(sources, tmp_path):
    multiprocessing.start_processes(_of_rank, (tmp_path, sources), nprocs=2, start_method="fork")
    batches, _, _ = stream(prepared(), sources, kinds_of(), tmp_path / "alone")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for number, batch in enumerate(batches):
        for rank in (0, 1):
            maps, tags = ranks[rank][number]
            height, width = maps.shape[1:]
            agree = maps == batch.labels["maps"].classes[rank::2][:, :height, :width]
            assert agree.float().mean() > 0.99, "but for ties"
            assert torch.equal(tags, batch.labels["tags"].targets[rank::2])
    stores = {p.name: Store.open(p) for p in (tmp_path / "online" / "00000004").iterdir()}
    assert {name: len(store) for name, store in stores.items()} == {
        "boxes": 6,
        "maps": 5,
        "tags": 6,
    }
