"""Hugging Face's detectors as teachers: tiny ones with random weights in a folder."""

import json
import sys

import pytest
import torch

from detmtl.structures.boxes import clip
from detmtl.structures.errors import InputError
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.from_transformers import TransformersTeacherSettings, _token_spans

pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
import transformers

NAMES = {0: "N/A", 1: "cat", 2: "dog"}


def load(root, **settings):
    return TransformersTeacherSettings(**settings).load(root)


def picture(height=40, width=60):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return image, ImageInfo(0, "p.jpg", height, width, "s")


def detr(folder, names=NAMES):
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        backbone=None,
        use_pretrained_backbone=False,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=6,
        id2label=names,
    )
    network = transformers.DetrForObjectDetection(config).eval()
    network.save_pretrained(folder)
    size = {"shortest_edge": 32, "longest_edge": 512}
    transformers.DetrImageProcessor(size=size).save_pretrained(folder)
    return network


def test_a_detector_gives_what_its_pipeline_gives(tmp_path):
    detr(tmp_path / "m")
    teacher = load(tmp_path, model="m", name="detr")
    assert teacher.card.classes == ("cat", "dog") and teacher.card.name == "detr"
    image, info = picture()
    network = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "m").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")
    with torch.inference_mode():
        outputs = network(**processor(images=image, return_tensors="pt"))
    wanted = processor.post_process_object_detection(
        outputs, threshold=0.01, target_sizes=torch.tensor([[40, 60]])
    )[0]
    real = wanted["labels"] > 0  # 0 is N/A
    found = teacher.annotate([image], [info], 0.01)[0]
    assert len(found) == real.sum() > 0
    order = wanted["scores"][real].argsort(descending=True)
    torch.testing.assert_close(found.scores, wanted["scores"][real][order])
    limit = torch.tensor([60.0, 40, 60, 40])
    boxes = torch.minimum(wanted["boxes"][real][order].clamp(min=0), limit)
    torch.testing.assert_close(found.boxes, boxes)
    assert torch.equal(found.classes, wanted["labels"][real][order] - 1)


def test_suppression_and_most_boxes(tmp_path):
    detr(tmp_path / "m")
    image, info = picture()
    every = load(tmp_path, model="m").annotate([image], [info], 0.01)[0]
    assert len(load(tmp_path, model="m", max_boxes=1).annotate([image], [info], 0.01)[0]) == 1
    some = load(tmp_path, model="m", nms=0.01).annotate([image], [info], 0.01)[0]
    assert 0 < len(some) < len(every)


def test_missing_weights_and_nameless_classes_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    detr(tmp_path / "m", {0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(InputError, match="2 classes without names"):
        load(tmp_path, model="m")
    with pytest.raises(InputError, match="names 1 classes; the model has 2"):
        load(tmp_path, model="m", classes=["cat"])
    assert load(tmp_path, model="m", classes=["cat", "dog"]).card.classes == ("cat", "dog")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    del tensors["class_labels_classifier.weight"]
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the file lacks class_labels_classifier\.weight"):
        load(tmp_path, model="m", classes=["cat", "dog"])
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        load(tmp_path, model="m")


def clip_tokenizer(folder):
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    root = tmp_path_factory.mktemp("owl")
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(root / "t")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.OwlViTConfig(
        text_config=shape
        | {"intermediate_size": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
        | {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id},
        vision_config=shape | {"intermediate_size": 16, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    transformers.OwlViTForObjectDetection(config).save_pretrained(root / "m")
    size = {"height": 32, "width": 32}
    images = transformers.OwlViTImageProcessor(size=size, crop_size=size, do_center_crop=False)
    transformers.OwlViTProcessor(images, tokenizer).save_pretrained(root / "m")
    return root


def test_a_zero_shot_detector_is_told_its_classes(owl):
    asked = {"cat": ["cat", "kitten"], "dog": ["dog"]}
    settings = {"model": "m", "zero_shot": True, "prompt": "a {}"}
    teacher = load(owl, **settings, classes=asked)
    assert teacher.card.classes == ("cat", "dog") and "a kitten" in teacher.card.preprocessing
    image, info = picture()
    network = transformers.OwlViTForObjectDetection.from_pretrained(owl / "m").eval()
    processor = transformers.OwlViTProcessor.from_pretrained(owl / "m")
    texts = ["a cat", "a kitten", "a dog"]
    with torch.inference_mode():
        outputs = network(**processor(text=[texts], images=image, return_tensors="pt"))
    wanted = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=torch.tensor([[40, 60]])
    )[0]
    found = teacher.annotate([image, image], [info, info], 0.0)
    boxes = clip(wanted["boxes"], 40, 60)
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)  # some lie beside the picture
    scores, texts = wanted["scores"][real], wanted["labels"][real]
    order = scores.argsort(descending=True, stable=True)
    assert len(found[0]) == len(scores) > 4
    for labels in found:
        torch.testing.assert_close(labels.scores, scores[order])
        torch.testing.assert_close(labels.boxes, boxes[real][order])
        assert torch.equal(labels.classes, torch.tensor([0, 0, 1])[texts[order]])


def test_the_card_tells_which_text_means_which_class(owl):
    one, other = (
        load(owl, model="m", zero_shot=True, classes=asked).card
        for asked in ({"cat": ["a", "b"], "dog": ["c"]}, {"cat": ["a"], "dog": ["b", "c"]})
    )
    assert one.classes == other.classes and one.identity() != other.identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs to be told what to look for"),
        ({"classes": ["a"], "prompt": "x"}, "needs one {}"),
        ({"classes": {"a": []}}, "'a' has no text"),
        ({"classes": ["a", "a"]}, "'a' is listed twice"),
    ],
)
def test_what_a_zero_shot_detector_needs_is_said(owl, settings, message):
    with pytest.raises(InputError, match=message):
        load(owl, model="m", zero_shot=True, **settings)


def test_a_zero_shot_detector_is_not_taken_for_another(owl):
    with pytest.raises(InputError, match="zero_shot: true"):
        load(owl, model="m")


def grounding_dino(root):
    torch.manual_seed(0)
    folder = root / "m"
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, ".", "?", "traffic", "light", "cat", "dog"]
    (root / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(root / "vocab.txt"))
    backbone = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3"],
    )
    text = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        use_timm_backbone=False,
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,  # of one, transformers finds no second box head to tie to the first
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_feature_levels=4,
        max_text_len=16,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 512}
    )
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def test_grounding_dino_gives_each_box_its_best_text(tmp_path):
    grounding_dino(tmp_path)
    classes = ["cat", "traffic light", "dog"]
    teacher = load(tmp_path, model="m", zero_shot=True, classes=classes)
    image, info = picture()
    found = teacher.annotate([image], [info], 0.0)[0]
    processor = transformers.GroundingDinoProcessor.from_pretrained(tmp_path / "m")
    network = transformers.GroundingDinoForObjectDetection.from_pretrained(tmp_path / "m").eval()
    text = "cat . traffic light . dog ."
    with torch.inference_mode():
        outputs = network(**processor(images=image, text=text, return_tensors="pt"))
    tokens = outputs.logits[0].sigmoid()  # [CLS] cat . traffic light . dog . [SEP]
    of_class = torch.stack([tokens[:, 1], tokens[:, 3:5].amax(1), tokens[:, 6]], dim=1)
    scores, labels = of_class.max(1)
    order = scores.argsort(descending=True, stable=True)
    torch.testing.assert_close(found.scores, scores[order])
    assert torch.equal(found.classes, labels[order])
    with pytest.raises(InputError, match="has a dot"):
        load(tmp_path, model="m", zero_shot=True, classes=["St. Bernard"])
    with pytest.raises(InputError, match="tokens, and this network reads 16"):
        load(tmp_path, model="m", zero_shot=True, classes=[f"cat {i}" for i in range(9)])


def test_token_spans_are_between_the_dots(tmp_path):
    class Tokenizer:
        all_special_ids = [0, 9]

        def convert_tokens_to_ids(self, token):
            return {".": 5}[token]

    spans = _token_spans(torch.tensor([0, 1, 5, 2, 3, 5, 9]), Tokenizer())
    assert spans.int().tolist() == [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]]


def test_a_model_that_is_not_there_is_told(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is no folder, and 'my model' no name on the hub"):
        load(tmp_path, model="my model")
    import huggingface_hub

    def fails(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(InputError, match=r"cannot be fetched from the hub.*no route to host"):
        load(tmp_path, model="owner/model")


def test_without_transformers_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'detmtl\[transformers\]'"):
        load(tmp_path, model="m")


@pytest.mark.network
@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched(tmp_path):
    teacher = load(tmp_path, model="hustvl/yolos-tiny")
    assert len(teacher.card.classes) == 80 and teacher.card.name == "yolos-tiny"
