"""torchvision's models as teachers, with random weights in a file."""

from urllib.error import URLError

import pytest
import torch
from torchvision.models import WeightsEnum, get_model, get_model_weights

from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.from_torchvision import TorchvisionTeacherSettings

DETECTOR, SEGMENTER = "ssdlite320_mobilenet_v3_large", "lraspp_mobilenet_v3_large"


def random_weights(path, model, num_classes, **more):
    torch.manual_seed(0)
    network = get_model(model, weights=None, weights_backbone=None, num_classes=num_classes, **more)
    torch.save(network.state_dict(), path)
    return network.eval()


def load(root, **settings):
    return TorchvisionTeacherSettings(**settings).load(root)


def picture(height=40, width=60):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return image, ImageInfo(0, "p.jpg", height, width, "s")


def test_a_detector_gives_what_torchvision_gives(tmp_path):
    network = random_weights(tmp_path / "w.pth", DETECTOR, 3)
    teacher = load(tmp_path, model=DETECTOR, path="w.pth", classes=["cat", "dog"])
    image, info = picture()
    with torch.inference_mode():
        wanted = network([image.float() / 255])[0]
    labels = teacher.annotate([image], [info], 0.05)[0]
    assert len(labels) == len(wanted["boxes"]) > 0
    torch.testing.assert_close(labels.boxes, wanted["boxes"])
    torch.testing.assert_close(labels.scores, wanted["scores"])
    assert torch.equal(labels.classes, wanted["labels"] - 1)


def test_the_names_of_official_weights_come_without_background_and_gaps(tmp_path):
    random_weights(tmp_path / "w.pth", DETECTOR, 91)
    teacher = load(tmp_path, model=DETECTOR, weights="DEFAULT", path="w.pth")
    names = teacher.card.classes
    assert len(names) == 80 and names[0] == "person" and names[-1] == "toothbrush"
    assert names[11] == "stop sign"  # place 13 of 91: places 0 and 12 mean nothing
    assert teacher.card.task == "boxes" and teacher.card.name == DETECTOR


def test_a_detector_may_have_more_classes_than_a_map_can_hold(tmp_path):
    random_weights(tmp_path / "w.pth", DETECTOR, 300)
    names = [f"class {i}" for i in range(299)]
    assert len(load(tmp_path, model=DETECTOR, path="w.pth", classes=names).card.classes) == 299
    random_weights(tmp_path / "m.pth", SEGMENTER, 300)
    with pytest.raises(InputError, match="a map holds at most 254"):
        load(tmp_path, model=SEGMENTER, path="m.pth", classes=names)


def test_labels_of_gaps_are_not_kept(tmp_path):
    network = random_weights(tmp_path / "w.pth", DETECTOR, 4)
    classes = ["cat", "N/A", "dog"]
    teacher = load(tmp_path, model=DETECTOR, path="w.pth", classes=classes)
    image, info = picture()
    with torch.inference_mode():
        wanted = network([image.float() / 255])[0]
    kept = wanted["labels"] != 2
    assert 0 < kept.sum() < len(kept)
    labels = teacher.annotate([image], [info], 0.05)[0]
    assert torch.equal(labels.classes, (wanted["labels"][kept] == 3).long())
    torch.testing.assert_close(labels.scores, wanted["scores"][kept])


def test_the_card_tells_which_output_is_which_class(tmp_path):
    random_weights(tmp_path / "w.pth", DETECTOR, 4)
    one, other = (
        load(tmp_path, model=DETECTOR, path="w.pth", classes=classes).card
        for classes in (["cat", "N/A", "dog"], ["cat", "dog", "N/A"])
    )
    assert one.classes == other.classes and one.identity() != other.identity()


def test_a_segmenter_gives_torchvisions_classes_in_the_pictures_size(tmp_path):
    network = random_weights(tmp_path / "w.pth", SEGMENTER, 3)
    classes = ["cat", "dog"]
    teacher = load(tmp_path, model=SEGMENTER, path="w.pth", classes=classes, side=40)
    image, info = picture()  # has the side of 40 pixels: nothing is scaled
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    given = (image.float() / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        wanted = network(given[None])["out"][0].softmax(0)
    labels = teacher.annotate([image], [info])[0]
    best, place = wanted.max(0)
    torch.testing.assert_close(labels.weights, best, atol=1e-4, rtol=0)
    codes = torch.tensor([OTHER, 0, 1], dtype=torch.uint8)
    sure = wanted.sort(0).values.diff(dim=0)[-1] > 1e-4
    assert sure.float().mean() > 0.9 and torch.equal(labels.classes[sure], codes[place][sure])
    small = teacher.annotate([image[:, :13, :7]], [info])[0]
    assert small.classes.shape == (13, 7) and teacher.card.task == "maps"


def test_an_auxiliary_head_is_read_where_the_file_has_one(tmp_path):
    model = "deeplabv3_mobilenet_v3_large"
    for aux in (True, False):
        random_weights(tmp_path / "w.pth", model, 21, aux_loss=aux)
        teacher = load(tmp_path, model=model, weights="DEFAULT", path="w.pth")
        assert len(teacher.card.classes) == 20 and teacher.card.classes[-1] == "tvmonitor"


def test_official_weights_of_a_file_run_as_torchvision_runs_them(tmp_path, monkeypatch):
    """torchvision builds frozen norms for them, and for some without their epsilon."""
    model = "fasterrcnn_resnet50_fpn"
    options = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0}
    state = random_weights(tmp_path / "w.pth", model, 91).state_dict()
    state["backbone.body.bn1.running_var"] *= 1e-5  # as small as the epsilon, which would show
    torch.save(state, tmp_path / "w.pth")
    official = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: official)
    network = get_model(model, weights="COCO_V1", **options).eval()
    teacher = load(tmp_path, model=model, weights="COCO_V1", path="w.pth", options=options)
    image = picture()[0].float() / 255
    with torch.inference_mode():
        wanted = network.backbone(image[None])["0"]
        found = teacher._network.backbone(image[None])["0"]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_what_is_missing_and_what_is_left_over_is_listed(tmp_path):
    random_weights(tmp_path / "w.pth", SEGMENTER, 3)
    given = {"model": SEGMENTER, "path": "w.pth", "classes": ["cat", "dog"]}
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    state["extra.weight"] = state.pop("classifier.cbr.0.weight")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"lacks classifier\.cbr\.0\.weight") as caught:
        load(tmp_path, **given)
    assert "no place for extra.weight" in str(caught.value)
    random_weights(tmp_path / "w.pth", SEGMENTER, 4)
    with pytest.raises(InputError, match=r"has the shape \(4, 40, 1, 1\); the network needs \(3,"):
        load(tmp_path, **given)
    (tmp_path / "w.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"teacher\.path: .* cannot be read as weights"):
        load(tmp_path, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "retinanet_resnet50"}, r"\(nearest: retinanet_resnet50_fpn\)"),
        ({"model": "resnet50", "weights": "DEFAULT"}, "no detector or segmenter 'resnet50'"),
        ({"model": DETECTOR}, "give `weights`"),
        ({"model": DETECTOR, "path": "w.pth"}, "with its `classes`"),
        ({"model": DETECTOR, "weights": "COCO"}, "it has DEFAULT, COCO_V1"),
        ({"model": DETECTOR, "weights": "DEFAULT", "path": "none.pth"}, "no such file"),
        ({"model": DETECTOR, "weights": "DEFAULT", "side": 300}, "leave the other one out"),
        ({"model": SEGMENTER, "weights": "DEFAULT", "options": {"a": 1}}, "leave the other one"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, **settings)


def test_an_option_that_the_detector_does_not_have_is_refused(tmp_path):
    random_weights(tmp_path / "w.pth", DETECTOR, 3)
    given = {"model": DETECTOR, "path": "w.pth", "classes": ["cat", "dog"]}
    with pytest.raises(
        InputError, match=r"teacher\.options: ssd.* has no wrong_one; it has .*score_thresh"
    ):
        load(tmp_path, **given, options={"wrong_one": 1})


def test_without_a_network_the_error_says_where_to_get_the_file(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fails)
    with pytest.raises(
        InputError, match=r"https://.*ssdlite.* cannot be downloaded .*teacher\.path"
    ):
        load(tmp_path, model=DETECTOR, weights="DEFAULT")


@pytest.mark.network
@pytest.mark.slow
def test_the_official_weights_find_nothing_in_black_and_are_who_they_say(tmp_path):
    teacher = load(tmp_path, model=DETECTOR, weights="DEFAULT")
    digest = get_model_weights(DETECTOR).DEFAULT.url.rpartition("-")[2].removesuffix(".pth")
    assert teacher.card.weights_sha256.startswith(digest)
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    found = teacher.annotate([image], [ImageInfo(0, "p", 100, 100, "s")], 0.5)[0]
    assert len(found) == 0
