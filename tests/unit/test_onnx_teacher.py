import json
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from detmtl.metrics.coco import evaluate_files
from detmtl.structures.errors import InputError
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.from_onnx import OnnxTeacherSettings
from detmtl.teachers.onnx_adapters import FastestDetAdapter, YoloxAdapter
from detmtl.teachers.onnx_input import NetworkInput, Preparation
from detmtl.teachers.onnx_outputs import FastestDet


def info(image, path="p.jpg"):
    return ImageInfo(1, path, image.shape[1], image.shape[2], "s")


def constant_network(path, output: np.ndarray, size=(32, 64), batch: int | str = 1):
    """Writes a network that answers `output` (of one picture) whatever it sees."""
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    answer = numpy_helper.from_array(output[None].astype(np.float32), "answer")
    shape = [batch, *output.shape]
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, *size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [zero, answer],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))


def yolox_output(cells: dict[int, tuple[list[float], list[float]]], rows=42, classes=2):
    """Rows of a 32 x 64 network: 32 cells of stride 8, 8 of stride 16, 2 of stride 32."""
    out = np.zeros((rows, 5 + classes), np.float32)
    for row, (box, scores) in cells.items():
        out[row] = [*box, 1.0, *scores]
    return out


def preparation(size, adapter, channels_last=False, dtype=np.float32):
    into = NetworkInput("image", size, channels_last, dtype, 1)
    return Preparation(into, adapter, adapter.usual)


def load(tmp_path, adapter, classes=("cat", "dog"), **settings):
    return OnnxTeacherSettings(
        path="n.onnx", classes=list(classes), adapter=adapter, threads=1, **settings
    ).load(tmp_path)


def test_yolox_boxes_come_out_in_pixels_of_each_picture(tmp_path):
    # Row 32 + 1: second cell of stride 16, center (1 + .5, 0 + .5) * 16 = (24, 8), 16 x 8 pixels.
    box = [0.5, 0.5, 0.0, float(np.log(0.5))]
    constant_network(tmp_path / "n.onnx", yolox_output({33: (box, [0.2, 0.9])}))
    teacher = load(tmp_path, {"kind": "yolox"})
    images = [torch.zeros(3, 64, 128, dtype=torch.uint8), torch.zeros(3, 16, 24, dtype=torch.uint8)]
    big, small = teacher.annotate(images, [info(x) for x in images], 0.05)
    torch.testing.assert_close(big.boxes, torch.tensor([[32.0, 8, 64, 24]]))
    torch.testing.assert_close(small.boxes, torch.tensor([[8.0, 2, 16, 6]]))
    assert big.classes.tolist() == [1] and big.scores.tolist() == pytest.approx([0.9])
    assert teacher.annotate([], []) == []


def test_the_card_tells_which_output_is_which_class(tmp_path):
    cards = []
    for classes in (["cat", "N/A", "dog"], ["cat", "dog", "N/A"]):
        constant_network(tmp_path / "n.onnx", yolox_output({}, classes=3))
        cards.append(load(tmp_path, {"kind": "yolox"}, classes).card)
    assert cards[0].classes == cards[1].classes and cards[0].identity() != cards[1].identity()


def test_yolox_input_is_bgr_at_top_left_on_grey():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:] = (10, 20, 30)
    got = preparation((32, 64), YoloxAdapter())(image)
    assert got.shape == (3, 32, 64) and got.dtype == np.float32
    assert got[:, :16, :].reshape(3, -1).mean(axis=1).tolist() == [30, 20, 10]
    assert (got[:, 16:] == 114).all()


def test_floor_best_class_suppression_and_most_boxes(tmp_path):
    box = [0.5, 0.5, 0.0, 0.0]
    nearly = [0.55, 0.5, 0.0, 0.0]
    constant_network(
        tmp_path / "n.onnx",
        yolox_output({32: (box, [0.8, 0.3]), 35: (box, [0.6, 0.01]), 39: (nearly, [0.0, 0.04])}),
    )
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)

    def found(floor=0.05, **adapter):
        labels = load(tmp_path, {"kind": "yolox", **adapter}).annotate(
            [image], [info(image)], floor
        )
        return [round(s, 3) for s in labels[0].scores.tolist()]

    assert found() == [0.8, 0.6]
    assert found(best_class=False) == [0.8, 0.6, 0.3]
    assert found(0.02) == [0.8, 0.6, 0.04]
    assert found(max_boxes=1) == [0.8]


def test_fastestdet_boxes_and_input():
    form = FastestDet(("output",), (32, 64), 16, 2)
    prepare = preparation((32, 64), FastestDetAdapter())
    output = np.zeros((1, 7, 2, 4), np.float32)
    output[0, 0, 1, 2], output[0, 5:, 1, 2] = 0.9, (0.7, 0.3)
    boxes, scores = form.decode(output)
    boxes = prepare.in_pictures(boxes, np.array([[100, 200]]))
    # Cell (2, 1) of 4 x 2: center (.5, .5) of the picture, both sides sigmoid(0) = half of it.
    np.testing.assert_allclose(boxes[0, 6], [50, 25, 150, 75], rtol=1e-6)
    np.testing.assert_allclose(scores[0, 6], [0.9**0.6 * 0.7**0.4, 0.9**0.6 * 0.3**0.4], rtol=1e-6)
    assert scores.sum() == pytest.approx(scores[0, 6].sum())
    image = np.zeros((10, 10, 3), np.uint8)
    image[..., 0] = 255
    assert prepare(image)[:, 0, 0].tolist() == pytest.approx([0, 0, 1])


def test_a_network_with_batches_gets_them_whole(tmp_path):
    constant_network(tmp_path / "n.onnx", yolox_output({33: ([0, 0, 0, 0], [1, 0])}), batch="batch")
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    teacher = load(tmp_path, {"kind": "yolox"})
    single = teacher.annotate([image], [info(image)])[0]
    torch.testing.assert_close(single.boxes, torch.tensor([[8.0, 0, 24, 8]]))


def test_what_does_not_fit_is_said(tmp_path):
    constant_network(tmp_path / "n.onnx", yolox_output({}))
    with pytest.raises(InputError, match="needs"):
        load(tmp_path, {"kind": "yolox"}, classes=("one", "two", "three"))
    with pytest.raises(InputError, match="fastestdet"):
        load(tmp_path, {"kind": "fastestdet"})
    with pytest.raises(InputError, match=r"teacher\.size"):
        load(tmp_path, {"kind": "yolox"}, size=(64, 64))
    with pytest.raises(InputError, match="listed twice"):
        load(tmp_path, {"kind": "yolox"}, classes=("one", "one"))
    with pytest.raises(InputError, match="multiples"):
        YoloxAdapter().build({"o": (1, 1, 7)}, (32, 40), 2)
    with pytest.raises(InputError, match="multiples"):
        FastestDetAdapter().build({"o": (1, 1, 7)}, (32, 40), 2)
    (tmp_path / "n.onnx").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path, {"kind": "yolox"})
    (tmp_path / "n.onnx").unlink()
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path, {"kind": "yolox"})


def test_without_onnxruntime_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'detmtl\[onnx\]'"):
        load(tmp_path, {"kind": "yolox"})


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* have no result at all")
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("file", "kind", "expected"),
    [
        ("yolox_nano_coco/yolox_nano.onnx", "yolox", {"train": 0.330, "val": 0.338}),
        ("fastestdet_coco/FastestDet.onnx", "fastestdet", {"train": 0.201, "val": 0.207}),
    ],
)
def test_published_numbers_are_reached(real_data, tmp_path, file, kind, split, expected):
    names = f"weights/{file.split('/')[0]}/coco.names"
    teacher = OnnxTeacherSettings(
        path=f"weights/{file}", classes=names, adapter={"kind": kind}, threads=1
    ).load(real_data)
    annotations = real_data / "data" / "coco128" / "annotations" / f"instances_{split}.json"
    truth = json.loads(annotations.read_text())
    # coco.names has other spellings, but the order of COCO's ids.
    categories = sorted(c["id"] for c in truth["categories"])
    results = []
    for picture in truth["images"]:
        path = real_data / "data" / "coco128" / "images" / split / picture["file_name"]
        pixels = cv2.imread(str(path))[..., ::-1].copy()
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        labels = teacher.annotate([image], [info(image, str(path))], 0.02)[0]
        for box, c, score in zip(
            labels.boxes.tolist(), labels.classes.tolist(), labels.scores.tolist(), strict=True
        ):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append(
                {
                    "image_id": picture["id"],
                    "category_id": categories[c],
                    "bbox": bbox,
                    "score": score,
                }
            )
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = evaluate_files(tmp_path / "results.json", annotations)
    assert found["AP"] == pytest.approx(expected[split], abs=0.005)
