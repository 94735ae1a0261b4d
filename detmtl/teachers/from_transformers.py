"""Hugging Face's object detectors as teachers: those of fixed classes, and those that are told in words.

Letters: B pictures, N candidate boxes, S places for classes or texts (see slots.py), L tokens.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from detmtl.silver.card import TeacherCard
from detmtl.silver.mapping import suppress
from detmtl.structures.errors import InputError, missing_package
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.slots import ClassSlots, read_names
from detmtl.teachers.teacher import (
    Teacher,
    file_sha256,
    not_too_thin,
    same_shape,
    silver_boxes,
)
from detmtl.teachers.teacher_settings import TeacherSettings

FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""What is fetched of a model on the hub: no code, and no pickles."""


class TransformersTeacher(Teacher):
    """A detector of the transformers library.

    Args:
        network: in evaluation mode.
        processor: of its pictures (and texts).
        slots: what its labels, or the texts, mean.
        texts: what it is asked for; None: it has classes of its own.
        card: who it is.
        device: where the network is.
        nms: IoU above which the worse of two boxes of one class goes; None: all stay.
        max_boxes: the most boxes of a picture.
    """

    def __init__(
        self,
        network: Any,
        processor: Any,
        slots: ClassSlots,
        texts: Sequence[str] | None,
        card: TeacherCard,
        device: str,
        nms: float | None,
        max_boxes: int,
    ):
        self.card = card
        self._network, self._processor, self._device = network, processor, device
        self._classes = torch.from_numpy(slots.classes)
        self._texts, self._nms, self._max_boxes = texts, nms, max_boxes
        self._grounded = "dino" in network.config.model_type
        self._inputs = None if texts is None else self._tokens(texts)

    @torch.inference_mode()
    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> list[BoxLabels]:
        """Returns the boxes of each picture, see `Teacher.annotate`."""
        labels: dict[int, BoxLabels] = {}
        padded = [not_too_thin(image) for image in images]
        given = [self._prepared(image) for image in padded]
        # Those of one shape go together: padded for the sake of others, boxes would shift in some models.
        for together in same_shape([made["pixel_values"] for made in given]):
            batch = {
                name: torch.cat([given[i][name] for i in together]).to(self._device)
                for name in given[together[0]]
            }
            sizes = torch.tensor([padded[i].shape[1:] for i in together])
            for i, one in zip(together, self._found(batch, sizes, floor), strict=True):
                labels[i] = self._labels(one, images[i], floor)
        return [labels[i] for i in range(len(images))]

    def _prepared(self, image: Tensor) -> dict[str, Tensor]:
        images = self._processor if self._texts is None else self._processor.image_processor
        made = images(images=image.cpu(), return_tensors="pt", input_data_format="channels_first")
        return {name: made[name] for name in ("pixel_values", "pixel_mask") if name in made}

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Returns the tokens that a picture is asked with, S rows (OWL) or one (Grounding DINO)."""
        tokenizer = self._processor.tokenizer
        dotted = [text for text in texts if self._grounded and "." in text]
        if dotted:
            raise InputError(f"teacher.classes: '{dotted[0]}' has a dot, which parts texts here")
        if not self._grounded:
            return dict(tokenizer(list(texts), padding="max_length", return_tensors="pt"))
        made = tokenizer(" . ".join(texts) + " .", return_tensors="pt")
        most = self._network.config.max_text_len
        if made["input_ids"].shape[1] > most:
            raise InputError(
                f"teacher.classes: in words they have {made['input_ids'].shape[1]} tokens, and this "
                f"network reads {most}; ask for fewer classes, in several teachers"
            )
        return dict(made)

    def _found(
        self, batch: dict[str, Tensor], sizes: Tensor, floor: float
    ) -> list[dict[str, Tensor]]:
        """Returns boxes, labels and scores of B pictures of sizes (B, 2)."""
        processor = self._processor if self._texts is None else self._processor.image_processor
        if self._inputs is not None:
            count = len(batch["pixel_values"])
            batch = batch | {
                name: tokens.repeat(count, 1).to(self._device)
                for name, tokens in self._inputs.items()
            }
        outputs = self._network(**batch)
        sizes = sizes.to(self._device)
        if self._inputs is not None and self._grounded:
            spans = _token_spans(self._inputs["input_ids"][0], self._processor.tokenizer)
            return _grounded(outputs.logits, outputs.pred_boxes, spans, sizes)
        return processor.post_process_object_detection(outputs, threshold=floor, target_sizes=sizes)

    def _labels(self, found: Mapping[str, Tensor], image: Tensor, floor: float) -> BoxLabels:
        classes, count = self._classes[found["labels"].cpu()], len(self.card.classes)
        scores = found["scores"].float().clamp(0, 1)
        labels = silver_boxes(found["boxes"], classes, scores, image, count, floor)
        if self._nms is not None:
            keep = suppress(
                labels.boxes.numpy(), labels.scores.numpy(), labels.classes.numpy(), self._nms
            )
            labels = labels[torch.from_numpy(keep)]
        return labels[torch.arange(min(len(labels), self._max_boxes))]


class TransformersTeacherSettings(TeacherSettings):
    """A Hugging Face object detector."""

    kind: Literal["transformers"] = "transformers"
    model: str
    """A folder, or a name on the hub such as facebook/detr-resnet-50, which is downloaded."""
    revision: str | None = None
    """Of a model on the hub: a tag or, to be sure, a commit."""
    zero_shot: bool = False
    """Whether it is told its classes in words (OWL-ViT, OWLv2, Grounding DINO)."""
    classes: dict[str, list[str]] | list[str] | str | None = None
    """Class names, a file of them or, zero-shot, class -> texts that mean it. None: the model's own."""
    prompt: str = "{}"
    """Zero-shot: makes a text of a class's name, such as "a photo of a {}" for OWL-ViT."""
    nms: float | None = Field(default=None, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays; null: all."""
    max_boxes: PositiveInt = 300
    """The most boxes of a picture."""

    def build(self, root: Path, device: str) -> TransformersTeacher:
        """Builds the teacher; files are taken relative to `root`.

        Raises:
            InputError: transformers is missing, or the model is, or is of another kind.
        """
        try:
            import transformers
        except ImportError:
            raise missing_package(
                "transformers", "transformers", "a teacher of kind 'transformers'"
            ) from None
        folder = self._folder(root)
        network, processor = self._read(transformers, folder)
        texts, slots = self._asked(root) if self.zero_shot else (None, self._slots(root, network))
        weights = sorted(folder.glob("*.safetensors"))
        asked = "" if texts is None else f", asked for {texts}"
        images = processor if texts is None else processor.image_processor
        card = TeacherCard(
            name=self.named(Path(self.model).name),
            weights_sha256=file_sha256(*weights),
            classes=slots.names,
            preprocessing=f"{images.to_dict()}{asked}, nms {self.nms}, most boxes {self.max_boxes}, "
            f"{slots}",
            versions={"torch": torch.__version__, "transformers": transformers.__version__},
        )
        network = network.eval().requires_grad_(False).to(device)
        return TransformersTeacher(
            network, processor, slots, texts, card, device, self.nms, self.max_boxes
        )

    def _folder(self, root: Path) -> Path:
        """Returns the folder with the model, downloaded to Hugging Face's cache if it is a name."""
        folder = root / self.model
        if not folder.is_dir():
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.model):
                raise InputError(
                    f"teacher.model: {folder} is no folder, and '{self.model}' no name on the hub "
                    "(owner/model)"
                )
            from huggingface_hub import snapshot_download

            try:
                found = snapshot_download(self.model, revision=self.revision, allow_patterns=FILES)
            except Exception as problem:  # the hub's and the network's errors have no common base
                raise InputError(
                    f"teacher.model: {folder} is no folder, and '{self.model}' cannot be fetched from the "
                    f"hub ({' '.join(str(problem).split())[:200]}); download it where there is a network, "
                    "and give its folder"
                ) from None
            folder = Path(found)
        if not any(folder.glob("*.safetensors")):
            raise InputError(f"teacher.model: {folder} has no weights (*.safetensors)")
        return folder

    def _read(self, transformers: Any, folder: Path) -> tuple[Any, Any]:
        """Returns the network, checked that all of its weights are there, and the processor."""
        kind = "ZeroShotObjectDetection" if self.zero_shot else "ObjectDetection"
        auto = getattr(transformers, f"AutoModelFor{kind}")
        wants = transformers.AutoProcessor if self.zero_shot else transformers.AutoImageProcessor
        try:
            network, about = auto.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True
            )
            processor = wants.from_pretrained(folder)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as problem:
            first = " ".join(str(problem).split())[:300]
            raise InputError(
                f"teacher.model: {folder} cannot be read for {kind}: {first}"
                + (
                    ""
                    if self.zero_shot
                    else "; is it told its classes in words? set zero_shot: true"
                )
            ) from None
        problems = [
            f"teacher.model: {folder}: {what} {', '.join(map(str, sorted(about[key], key=str)[:10]))}"
            for key, what in (
                ("missing_keys", "the network needs, and the file lacks"),
                ("mismatched_keys", "of another shape than the network's:"),
            )
            if about[key]
        ]
        if problems:
            raise InputError(problems)
        return network, processor

    def _slots(self, root: Path, network: Any) -> ClassSlots:
        """Returns the classes of a network that has its own."""
        ids = network.config.id2label
        where = f"{self.model}/config.json, id2label"
        names = [str(ids.get(i, "N/A")) for i in range(max(ids) + 1)]
        if isinstance(self.classes, dict):
            raise InputError(
                "teacher.classes: texts for a class are for zero_shot: true; give a list"
            )
        if self.classes is not None:
            given, where = read_names(root, self.classes)
            if len(given) != len(names):
                raise InputError(f"{where}: names {len(given)} classes; the model has {len(names)}")
            names = given
        elif all(re.fullmatch(r"LABEL_\d+", name) for name in names):
            raise InputError(
                f"teacher.classes: {self.model} has {len(names)} classes without names; give them in order"
            )
        return ClassSlots.of(names, where)

    def _asked(self, root: Path) -> tuple[list[str], ClassSlots]:
        """Returns the texts of a zero-shot detector, and the class that each means."""
        if self.classes is None:
            raise InputError(
                "teacher.classes: a zero-shot detector needs to be told what to look for"
            )
        if self.prompt.count("{}") != 1:
            raise InputError(f"teacher.prompt: is '{self.prompt}'; it needs one {{}} for the name")
        if isinstance(self.classes, dict):
            names, where = list(self.classes), "teacher.classes"
            texts = [(text, name) for name, texts in self.classes.items() for text in texts]
        else:
            names, where = read_names(root, self.classes)
            texts = [(name, name) for name in names]
        slots = ClassSlots.of(names, where)
        without = [name for name in names if name not in {of for _, of in texts}]
        if without:
            raise InputError([f"{where}: '{name}' has no text" for name in without])
        classes = torch.tensor([slots.names.index(name) for _, name in texts]).numpy()
        return [self.prompt.format(text) for text, _ in texts], ClassSlots(slots.names, classes)


def _token_spans(tokens: Tensor, tokenizer: Any) -> Tensor:
    """Returns (S, L) bool, which tokens belong to each of the texts that dots part."""
    dot = tokens == tokenizer.convert_tokens_to_ids(".")
    special = torch.isin(tokens, torch.tensor(tokenizer.all_special_ids))
    text = torch.cumsum(dot, 0) - dot.long()
    rows = torch.arange(int(dot.sum()))[:, None]
    return (text == rows) & ~dot & ~special


def _grounded(
    logits: Tensor, boxes: Tensor, spans: Tensor, sizes: Tensor
) -> list[dict[str, Tensor]]:
    """Returns boxes, labels and scores of each picture, every box with its best text.

    The score of a text is that of its best token.
    Source: Liu et al. 2023, arXiv 2303.05499; there a box has a phrase of all tokens above a second
    threshold, which need be no text that was asked for.

    Args:
        logits: (B, N, at least L). boxes: (B, N, 4) cxcywh in fractions.
        spans: (S, L). sizes: (B, 2).
    """
    tokens = logits.sigmoid()[..., : spans.shape[1]]
    of_text = torch.stack(
        [tokens[..., span].amax(dim=-1) for span in spans.to(logits.device)], dim=-1
    )
    scores, labels = of_text.max(dim=-1)
    corners = torch.cat(
        [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1
    )
    corners = corners * sizes.flip(1).repeat(1, 2)[:, None].to(corners)
    return [
        {"boxes": b, "labels": c, "scores": s}
        for b, c, s in zip(corners, labels, scores, strict=True)
    ]
