"""Tables of very many classes show those that gold has most, and say where the others are."""

import json

import numpy as np
from coco_files import annotation

from detmtl.cli import main
from detmtl.silver import share_table
from detmtl.silver.share_table import left_out, unsearched_words


def _file(tmp_path, classes):
    """Writes gold of which class k has k boxes, and results that find them all."""
    boxes = [(k, j) for k in range(classes) for j in range(k)]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 900, "width": 900}],
        "annotations": [
            annotation(n + 1, 1, k + 1, [5 * j, 5, 4, 4]) | {"area": 16}
            for n, (k, j) in enumerate(boxes)
        ],
        "categories": [{"id": k + 1, "name": f"class/{k}."} for k in range(classes)],
    }
    (tmp_path / "gold.json").write_text(json.dumps(data))
    rows = [
        {"score": 0.9, **{k: a[k] for k in ("image_id", "category_id", "bbox")}}
        for a in data["annotations"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))


def test_evaluate_prints_the_classes_with_the_most_boxes(tmp_path, capsys, monkeypatch):
    from detmtl.verbs import model

    _file(tmp_path, 9)
    words = ["--detections", tmp_path / "found.json", "--annotations", tmp_path / "gold.json"]
    words = [str(w) for w in ("evaluate", *words)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert all(f"AP/class/{k}." in told for k in range(9)) and "further" not in told
    monkeypatch.setattr(model, "MOST", 3)
    assert main([*words, "--json", str(tmp_path / "all.json")]) == 0
    told = capsys.readouterr().out
    for kind in ("AP", "F1", "score"):
        shown = [k for k in range(9) if f" {kind}/class/{k}." in told]
        assert shown == [6, 7, 8], kind
    assert " AP50 " in told and " F1@.5 " in told
    assert (
        f"18 numbers of further classes, which have fewer boxes in gold, are in the file of {tmp_path}"
        in (" ".join(told.split()))
    )
    whole = json.loads((tmp_path / "all.json").read_text())
    assert sum("class/" in name for name in whole) == 27


def test_words_on_classes_beside_an_audit_s_table(monkeypatch):
    monkeypatch.setattr(share_table, "MOST", 2)
    assert [str(words) for words in left_out(5, "classes that gold shows less")] == [
        "3 classes that gold shows less are in summary.json, and on the page."
    ]
    assert [*left_out(2, "classes")] == []
    known = np.array([True, False, True, False])
    assert unsearched_words("abcd", known) == "Classes that no teacher looks for: b, d."
    assert unsearched_words("abcd", known | True) == ""
    assert unsearched_words([str(i) for i in range(20)], np.zeros(20, bool)).endswith(
        "and 12 more."
    )
