"""Weights of an ONNX network that lie beside it are part of who a teacher is, and of what a run reads."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detmtl.data.images import content_hash
from detmtl.inputs import named_files
from detmtl.structures.errors import InputError
from detmtl.teachers.from_onnx import OnnxTeacherSettings
from detmtl.teachers.onnx_files import external_files


def network(folder, weight, **saved):
    """Writes a segmenter of two classes; `saved` says where its weights go."""
    weights = np.full((2, 3, 1, 1), weight, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["scores"])],
        "conv",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx.data").unlink(missing_ok=True)  # or onnx would append to it
    onnx.save(model, str(folder / "m.onnx"), **saved)


BESIDE = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0}


def card(folder):
    settings = {"path": "m.onnx", "classes": ["cat", "dog"], "adapter": {"kind": "map"}}
    return OnnxTeacherSettings(**settings, threads=1).load(folder).card


def test_a_network_with_other_weights_beside_it_is_another_teacher(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    network(first, 1.0, **BESIDE)
    network(second, 2.0, **BESIDE)
    assert (first / "m.onnx").read_bytes() == (second / "m.onnx").read_bytes()
    assert external_files(first / "m.onnx") == [first / "m.onnx.data"]
    one, other = card(first), card(second)
    assert one.identity() != other.identity() and one.identity() == card(first).identity()


def test_a_network_in_one_file_stays_who_it_was(tmp_path):
    network(tmp_path, 1.0)
    assert external_files(tmp_path / "m.onnx") == []
    assert card(tmp_path).weights_sha256 == content_hash(tmp_path / "m.onnx")


def test_a_run_reads_the_weights_beside_the_network(tmp_path):
    network(tmp_path / "n", 1.0, **BESIDE)
    tree = {"silver": {"teacher": {"kind": "onnx", "path": "n/m.onnx"}}}
    before = named_files(tree, tmp_path, tmp_path / "cache")
    assert list(before) == ["n/m.onnx", "n/m.onnx: m.onnx.data"]
    network(tmp_path / "n", 2.0, **BESIDE)
    after = named_files(tree, tmp_path, tmp_path / "cache")
    assert {name for name in after if after[name] != before[name]} == {"n/m.onnx: m.onnx.data"}


def test_weights_of_constants_in_subgraphs_are_found(tmp_path):
    inner = numpy_helper.from_array(np.ones(3, np.float32), "inner")
    onnx.external_data_helper.set_external_data(inner, "deep/inner.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["out"], value=inner)],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])],
    )
    node = helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", [], [])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(InputError, match=r"weights are in .*inner\.bin, which is not there"):
        external_files(tmp_path / "m.onnx")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "inner.bin").write_bytes(b"1")
    assert external_files(tmp_path / "m.onnx") == [tmp_path / "deep" / "inner.bin"]


def test_what_is_no_network_is_told(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match="is no readable ONNX file"):
        external_files(tmp_path / "m.onnx")
