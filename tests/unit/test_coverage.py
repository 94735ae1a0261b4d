"""What was looked for: `keep`, `covers`, files of coverage, LVIS, down to the gradient."""

import json
import warnings

import numpy as np
import pytest
import torch
from coco_files import NAMES, annotation, coco_data, save_coco, save_picture

from detmtl.data.coco import CocoSource
from detmtl.data.folder import FolderSource
from detmtl.data.joined import joined
from detmtl.data.loader import evaluation_batches
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.subset import Subset
from detmtl.data.voc import VocSource
from detmtl.data.yolo import YoloSource
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.tasks.detection import DetectionConfig

CLASSES = LabelSpace.of(NAMES)


def load(root, data=None, name="here", **settings):
    """Writes and reads a COCO folder of three pictures."""
    if data is not None:
        save_coco(root, data)
    source = CocoSource(images="images", annotations="coco.json", **settings)
    return source.load(name, root, CLASSES, root / "cache")


def test_keep_takes_some_classes_as_if_nobody_had_looked_for_the_others(tmp_path):
    source = load(tmp_path, coco_data(), keep=["dog", "cat"])
    assert source.annotations.classes.tolist() == [0, 1]  # the bird is gone
    assert source.coverage.tolist() == [[1, 1, 0]]
    assert len(load(tmp_path).annotations) == 3  # from no cache of the other settings
    naive = load(tmp_path, keep=["dog"], covers=NAMES)
    assert naive.annotations.classes.tolist() == [1] and naive.coverage.tolist() == [[1, 1, 1]]
    with pytest.raises(
        InputError, match=r"keep names 'dogs', which is no class \(nearest: 'dog'\)"
    ):
        load(tmp_path, keep=["dogs"])


def test_a_class_whose_boxes_are_not_kept_is_no_background_whatever_the_file_says(tmp_path):
    save_coco(tmp_path, coco_data())
    (tmp_path / "c.json").write_text(json.dumps({f"{i}.png": NAMES for i in range(3)}))
    source = load(tmp_path, keep=["cat"], covers_file="c.json")
    assert source.annotations.classes.tolist() == [0]
    assert source.coverage.tolist() == [[1, 0, 0]] * 3
    stated = load(tmp_path, keep=["cat"], covers=["dog"], covers_file="c.json")
    assert stated.coverage.tolist() == [[1, 1, 0]] * 3


def test_boxes_of_a_class_that_is_not_covered_stay_labels(tmp_path):
    source = load(tmp_path, coco_data(), covers=["dog"])
    assert source.annotations.classes.tolist() == [0, 2, 1]
    assert source.coverage.tolist() == [[0, 1, 0]]


VOC = (
    "<annotation><size><width>64</width><height>48</height></size><object><name>{}</name><bndbox>"
    "<xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_a_class_of_which_the_files_know_some_members_is_told(tmp_path, kind):
    pets = LabelSpace.of({"pet": ["cat", "dog"], "bird": ["bird"]})
    data = coco_data()
    data["annotations"] = [annotation(1, 10, 1, [4, 4, 20, 20]), annotation(2, 20, 9, [4, 4, 9, 9])]
    data["categories"] = [c for c in data["categories"] if c["name"] != "dog"]
    save_coco(tmp_path, data)
    for i, name in enumerate(("cat", "bird")):
        (tmp_path / f"{i}.xml").write_text(VOC.format(name))
        (tmp_path / f"{i}.txt").write_text(f"{i} 0.5 0.5 0.25 0.25\n")

    def read(**settings):
        source = {
            "coco": lambda: CocoSource(images="images", annotations="coco.json", **settings),
            "yolo": lambda: YoloSource(
                images="images", labels=".", names=["cat", "bird"], **settings
            ),
            "voc": lambda: VocSource(images="images", annotations=".", **settings),
        }[kind]()
        return source.load("mine", tmp_path, pets, tmp_path / "cache")

    for source in (read(), read(), read(subset=Subset(count=2))):  # the second from the cache
        (note,) = source.notes
        assert note.startswith("source 'mine': has of class 'pet' the categories cat but not dog")
        assert "`covers` without 'pet'" in note and source.coverage.tolist() == [[1, 1]]
        assert Mixture([source], MixSettings(mode="gold"), 1).notes == [note]
    told = read(covers=["bird"])
    assert told.notes == () and told.coverage.tolist() == [[0, 1]] and len(told.annotations) == 2
    assert read(keep=["bird"]).notes == ()
    (tmp_path / "c.csv").write_text("file_name,class\n0.png,bird\n")
    assert read(covers_file="c.csv").notes == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", json.dumps({"0.png": ["cat", "dog"], "1.png": {"bird": 0.5}, "2.png": []})),
        ("c.csv", "file_name,class,coverage\n0.png,cat,\n0.png,dog,1\n1.png,bird,0.5\n2.png,,\n"),
    ],
)
def test_a_file_says_picture_by_picture_what_was_looked_for(tmp_path, name, text):
    save_coco(tmp_path, coco_data())
    (tmp_path / name).write_text(text)
    source = load(tmp_path, covers_file=name)
    assert source.coverage.tolist() == [[1, 1, 0], [0, 0, 0.5], [0, 0, 0]]
    (tmp_path / name).write_text(text.replace("0.5", "0.75"))
    assert load(tmp_path, covers_file=name).coverage[1].tolist() == [0, 0, 0.75]  # read again


def test_pictures_that_the_file_does_not_name_keep_theirs(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    for name in "ab":
        save_picture(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "c.csv").write_text("file_name,class\nb.jpg,bird\n")
    settings = YoloSource(images="images", labels="labels", names=NAMES, covers_file="c.csv")
    source = settings.load("yolo", tmp_path, CLASSES, tmp_path / "cache")
    assert source.coverage.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_what_is_said_of_pictures_that_are_left_out_is_passed_over(tmp_path):
    data = coco_data()
    data["images"][2]["width"] = 0
    data["images"].append({"id": 40, "file_name": "gone.png", "height": 0, "width": 64})
    save_coco(tmp_path, data)
    save_picture(tmp_path / "images" / "unlisted.png")
    names = ("0.png", "2.png", "gone.png", "unlisted.png")
    (tmp_path / "c.csv").write_text("file_name,class\n" + "".join(f"{n},cat\n" for n in names))
    with pytest.warns(UserWarning, match="2 faults left out") as told:
        source = load(tmp_path, covers_file="c.csv", faults="drop")
    (warning,) = told
    assert "c.csv: entries passed over: 1, which name" in str(warning.message)
    assert str(warning.message).endswith("such as 'unlisted.png'")
    assert source.ids.tolist() == [10, 20] and source.coverage.tolist() == [[1, 0, 0], [1, 1, 1]]
    (tmp_path / "c.csv").write_text("file_name,class\n2.png,cow\nnever.png,cat\n,cat\n")
    with pytest.raises(InputError) as caught:
        load(tmp_path, covers_file="c.csv", faults="drop")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("listed", ["0.png", "./0.png", "absolute"])
@pytest.mark.parametrize("named", ["0.png", ".//0.png", "../images/0.png", "absolute"])
def test_a_picture_may_be_spelled_otherwise_than_in_the_annotations(tmp_path, listed, named):
    absolute = str(tmp_path / "images" / "0.png")
    data = coco_data()
    data["images"][0]["file_name"] = absolute if listed == "absolute" else listed
    save_coco(tmp_path, data)
    name = absolute if named == "absolute" else named
    (tmp_path / "c.csv").write_text(f"file_name,class\n{name},cat\n0.png,bird\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = load(tmp_path, covers_file="c.csv")
    assert source.coverage.tolist() == [[1, 0, 1], [1, 1, 1], [1, 1, 1]]


def test_a_file_that_names_no_picture_of_the_source_is_refused(tmp_path):
    save_coco(tmp_path, coco_data())
    save_picture(tmp_path / "images" / "other.png")
    (tmp_path / "c.csv").write_text("file_name,class\nother.png,cat\nother.png,dog\n")
    sentence = r"c\.csv: names no picture of the source \(the first of its names is 'other\.png'\)"
    with pytest.raises(InputError, match=sentence + r"; it needs .*images, such as '0\.png'"):
        load(tmp_path, covers_file="c.csv")
    (tmp_path / "c.csv").write_text("file_name,class\nother.png,cat\nother.png,dog\n0.png,cat\n")
    for _ in range(2):  # the second from the cache
        with pytest.warns(UserWarning, match="source 'here': c.csv: entries passed over: 2, which"):
            source = load(tmp_path, covers_file="c.csv")
        assert source.coverage.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(InputError, match=r"c\.json: names no picture of .* \(it is empty\)"):
        load(tmp_path, covers_file="c.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"3.png": ["cat"]}',
            r"c\.json, picture '3\.png': there is no picture '3\.png' in .*images",
        ),
        (
            '{"0.png": ["cats"]}',
            r"picture '0\.png' names 'cats', which is no class \(nearest: 'cat'\)",
        ),
        ('{"0.png": {"cat": 2}}', r"the coverage of 'cat' is 2; it lies in \[0, 1\]"),
        ('{"0.png": "cat"}', "'0.png' has 'cat'; it needs a list of classes"),
        ("[]", r"c\.json: is list; it needs"),
        ("{", r"c\.json: cannot be read as \.json"),
    ],
)
def test_a_json_file_that_makes_no_sense(tmp_path, text, sentence):
    save_coco(tmp_path, coco_data())
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        load(tmp_path, covers_file="c.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("picture,class\n0.png,cat\n", r"c\.csv: its columns are class, picture; it needs"),
        ("file_name,class,coverage\n0.png,cat,x\n", r"c\.csv line 2: the coverage of 'cat' is 'x'"),
        (
            "file_name,class\n0.png,cow\n",
            r"c\.csv line 2 names 'cow', which is no class; the classes",
        ),
        (
            "file_name,class\n0.png,cat,\n0.png,cat, dog\n",
            r"c\.csv line 3: has more fields than there are columns \(2\); a row names one class",
        ),
    ],
)
def test_a_csv_file_that_makes_no_sense(tmp_path, text, sentence):
    save_coco(tmp_path, coco_data())
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        load(tmp_path, covers_file="c.csv")


def test_a_file_that_is_not_there_and_a_folder_without_labels(tmp_path):
    save_coco(tmp_path, coco_data())
    with pytest.raises(InputError, match=r"gone\.csv"):
        load(tmp_path, covers_file="gone.csv")
    (tmp_path / "c.csv").write_text("file_name,class\n")
    for settings in ({"keep": ["cat"]}, {"covers": ["cat"]}, {"covers_file": "c.csv"}):
        with pytest.raises(
            InputError, match=f"`{next(iter(settings))}` is set, but a folder has no"
        ):
            FolderSource(images="images", **settings).load("f", tmp_path, CLASSES, tmp_path / "c")


def test_a_part_of_a_part():
    hashes = [f"{i:064x}" for i in range(40)]
    outer = Subset(share=0.5)
    first, rest = (
        Subset(share=0.25, seed=1, of=outer, rest=r).pick(hashes, "x") for r in (False, True)
    )
    assert len(first) == 5 and len(rest) == 15
    assert sorted([*first, *rest]) == outer.pick(hashes, "x").tolist()
    assert Subset(share=0.25, seed=1).pick(hashes, "x").tolist() != first.tolist()


def test_sources_are_joined_with_the_coverage_of_each_picture(tmp_path):
    one = load(tmp_path, coco_data(), keep=["dog"], subset=Subset(count=2))
    other = load(tmp_path, name="other", keep=["cat", "bird"], subset=Subset(count=2, rest=True))
    both = joined("both", [other, one])
    assert len(both) == 3 and both.ids.tolist() == [1, 2, 3] and both.name == "both"
    assert both.coverage.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    for i, (source, k) in enumerate([(other, 0), (one, 0), (one, 1)]):
        assert both.path(i) == source.path(k)
        ours, theirs = both.labels(i)["boxes"], source.labels(k)["boxes"]
        assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.classes, theirs.classes)
    assert both.hashes() == other.hashes() + one.hashes() and both.grade is Grade.GOLD


def gradients(source) -> torch.Tensor:
    """Returns the class loss' gradient (C,) on the logits of each class, absolute values summed."""
    task = DetectionConfig(kind="detection").build(
        "boxes", [16] * 5, [8, 16, 32, 64, 128], 3, NAMES
    )
    (batch,) = evaluation_batches(source, 64, 64, batch_size=3, workers=0)
    shapes = [
        (-(-batch.images.shape[2] // s), -(-batch.images.shape[3] // s))
        for s in (8, 16, 32, 64, 128)
    ]
    generator = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(3, 9 * 3, *shape, generator=generator).requires_grad_() for shape in shapes
    ]
    deltas = [torch.zeros(3, 9 * 4, *shape) for shape in shapes]
    task.loss([*logits, *deltas], batch)["class"].backward()
    return sum(x.grad.reshape(3, 9, 3, -1).abs().sum((0, 1, 3)) for x in logits)


@pytest.mark.parametrize(
    "way", ["lvis", "image", "info", "keep", "covers", "covers_file", "categories"]
)
def test_a_class_that_nobody_looked_for_has_no_gradient_from_the_file_on(tmp_path, way):
    data, settings = coco_data(), {}
    data["annotations"] = [
        annotation(1, 10, 1, [4, 4, 20, 20]),
        annotation(2, 20, 1, [4, 4, 30, 30]),
        annotation(3, 20, 9, [10, 4, 30, 30]),
    ]
    if way == "lvis":
        for row in data["images"][:2]:
            row["neg_category_ids"] = [1, 9]
        data["images"][2]["not_exhaustive_category_ids"] = [5]
    elif way == "image":
        for row in data["images"]:
            row["coverage"] = {"dog": 0}
    elif way == "info":
        data["info"] = {"coverage": {"dog": 0}}
    elif way == "categories":
        data["categories"] = [c for c in data["categories"] if c["name"] != "dog"]
    elif way == "covers_file":
        rows = [f"{i}.png,{name}" for i in range(3) for name in ("cat", "bird")]
        (tmp_path / "c.csv").write_text("\n".join(["file_name,class", *rows]))
        settings = {way: "c.csv"}
    else:
        settings = {way: ["cat", "bird"]}
    looked = gradients(load(tmp_path, data, **settings))
    assert looked[1] == 0 and looked[0] > 0 and looked[2] > 0
    if way != "categories":
        (tmp_path / "full").mkdir()
        full = coco_data()
        full["annotations"] = data["annotations"]
        assert gradients(load(tmp_path / "full", full))[1] > 0


def test_half_the_coverage_gives_half_the_gradient(tmp_path):
    data = coco_data()
    data["annotations"] = [annotation(1, 10, 1, [4, 4, 20, 20])]
    whole = gradients(load(tmp_path, data))
    data["images"] = [{**row, "coverage": {"dog": 0.5}} for row in data["images"]]
    half = gradients(load(tmp_path, data))
    np.testing.assert_allclose(half[1], whole[1] / 2, rtol=1e-5)
    np.testing.assert_allclose(half[[0, 2]], whole[[0, 2]], rtol=1e-6)
