"""The module that is exported: pictures of any sizes in, labels in their own pixels out.

Everything here is read by TorchScript, and shared with eager prediction so that the two cannot
drift apart. Letters: B pictures, H and W pixels, N boxes.
"""

import torch
from torch import Tensor, nn

from detmtl.data.fit import fit, scale_boxes
from detmtl.structures.boxes import clip
from detmtl.structures.labels import BoxLabels, Labels

CONFIDENCE = ".confidence"
"""Ends the name under which a file tells how sure it is of a map. No task has such a name: torch allows a
module's name no dot."""


def pad_images(images: list[Tensor], divisor: int) -> tuple[Tensor, Tensor]:
    """Pads pictures at the right and the bottom with 0 to one size.

    Args:
        images: B of (3, H, W) uint8, at least one.
        divisor: the common height and width are multiples of it.

    Returns:
        (B, 3, H, W) uint8, and the true heights and widths (B, 2) int64, both on the pictures' device.
    """
    height, width = 1, 1
    sizes: list[list[int]] = []
    for image in images:
        height = max(height, image.shape[1])
        width = max(width, image.shape[2])
        sizes.append([image.shape[1], image.shape[2]])
    height = (height + divisor - 1) // divisor * divisor
    width = (width + divisor - 1) // divisor * divisor
    shape = [len(images), 3, height, width]
    batch = torch.zeros(shape, dtype=images[0].dtype, device=images[0].device)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
    return batch, torch.tensor(sizes, dtype=torch.int64, device=images[0].device)


def of_one_size(images: list[Tensor], divisor: int) -> list[list[int]]:
    """Returns the positions of pictures (3, H, W) in groups of one padded size.

    Padded for the sake of larger company, a picture would get other scores than alone.
    """
    groups: list[list[int]] = []
    shapes: list[tuple[int, int]] = []
    for i, image in enumerate(images):
        height = (image.shape[1] + divisor - 1) // divisor
        width = (image.shape[2] + divisor - 1) // divisor
        group = -1
        for k, shape in enumerate(shapes):
            if shape[0] == height and shape[1] == width:
                group = k
        if group < 0:
            shapes.append((height, width))
            groups.append([i])
        else:
            groups[group].append(i)
    return groups


def to_original(boxes: Tensor, fitted: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Returns boxes (N, 4) of a fitted picture in pixels of the original one, cut at its edges.

    Args:
        boxes: xyxy, pixels of the fitted picture.
        fitted: its height and width.
        original: height and width of the picture as it was given.
    """
    scaled = scale_boxes(boxes, fitted, original)
    return clip(scaled, float(original[0]), float(original[1]))


def in_original(labels: Labels, fitted: tuple[int, int], original: tuple[int, int]) -> Labels:
    """Returns labels of a fitted picture in pixels of the original one; see `to_original`."""
    scaled = labels.resized(fitted, original)
    if isinstance(labels, BoxLabels) and isinstance(scaled, BoxLabels):
        return scaled.with_boxes(to_original(labels.boxes, fitted, original))
    return scaled


def check_images(images: list[Tensor]) -> None:
    """Raises ValueError unless every picture is (3, H, W) uint8 with at least one pixel."""
    for i, image in enumerate(images):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"picture {i} has the shape {image.shape}; give (3, H, W), RGB")
        if image.dtype != torch.uint8:
            raise ValueError(f"picture {i} is not uint8; give values 0..255 as torch.uint8")
        if image.numel() == 0:
            raise ValueError(f"picture {i} has no pixels: its shape is {image.shape}")


class TaskDecoder(nn.Module):
    """Raw outputs of a task that has an exporter to its labels.

    Args:
        name: of the task.
        first, count: where its outputs stand among the network's, and how many there are.
        decoder: see `detmtl.tasks.task.Exporter`.
    """

    def __init__(self, name: str, first: int, count: int, decoder: nn.Module):
        super().__init__()
        self.name = name
        self.first = first
        self.count = count
        self.decoder = decoder
        self.confidence = name + CONFIDENCE

    def forward(self, outputs: list[Tensor], sizes: Tensor, originals: Tensor) -> list[Tensor]:
        """Returns the labels of B pictures, and of maps how sure they are, from all of the network's outputs,
        the sizes (B, 2) in the network's pixels and those as given."""
        return self.decoder(outputs[self.first : self.first + self.count], sizes, originals)


class BoxedDecoder(nn.Module):
    """The head of a task about boxes, on the boxes that were found.

    Args:
        name: of the task.
        first, levels: where its features stand among the network's outputs, and how many there are.
        head, form: see `detmtl.tasks.box_task.BoxTask`.
        points: whether it gives points, whose x and y have to be brought to the picture as given.
    """

    def __init__(
        self, name: str, first: int, levels: int, head: nn.Module, form: nn.Module, points: bool
    ):
        super().__init__()
        self.name = name
        self.first = first
        self.levels = levels
        self.head = head
        self.form = form
        self.points = points

    def forward(
        self,
        outputs: list[Tensor],
        picture: int,
        boxes: Tensor,
        classes: Tensor,
        fitted: Tensor,
        original: Tensor,
    ) -> Tensor:
        """Returns what it says of N boxes, (N, ...).

        Args:
            outputs: of the network, for B pictures.
            picture: which of them.
            boxes, classes: (N, 4) in pixels of the network's picture, (N,).
            fitted, original: (3, height, width), the picture in the network's size and as given.
        """
        features: list[Tensor] = []
        for i in range(self.first, self.first + self.levels):
            features.append(outputs[i][picture : picture + 1])
        nowhere = torch.zeros(boxes.shape[0], dtype=torch.int64, device=boxes.device)
        found = self.form(self.head(features, boxes, nowhere), boxes, classes)
        if self.points:
            x = original.shape[2] / fitted.shape[2]
            y = original.shape[1] / fitted.shape[1]
            found = found * torch.tensor([x, y, 1.0], dtype=found.dtype, device=found.device)
        return found


class Detector(nn.Module):
    """Resizing, network, decoding and resizing back in one scriptable module.

    Args:
        network: (B, 3, H, W) uint8 -> list of all tasks' raw outputs, those of the detection task
            first.
        decoder: (outputs, sizes (B, 2)) -> per picture (boxes (N, 4) xyxy in pixels of the network's
            picture, scores (N,), classes (N,) int64), sorted by score; None: there is no detection.
        class_names: names of the boxes by class index.
        short, long: a picture is scaled so that its short side is `short`, or its long side `long`
            if that makes it smaller.
        divisor: the padded height and width are multiples of it.
        box_outputs: how many of the outputs are the detection task's.
        others: of the tasks that have an exporter.
        boxed: of the tasks about the boxes; they need a decoder.
    """

    names: list[str]  # said here, since TorchScript cannot tell what an empty list is of

    def __init__(
        self,
        network: nn.Module,
        decoder: nn.Module | None,
        class_names: list[str],
        short: int,
        long: int,
        divisor: int,
        box_outputs: int,
        others: list[TaskDecoder],
        boxed: list[BoxedDecoder],
    ):
        super().__init__()
        self.network = network
        self.decoder = decoder
        self.names = list(class_names)
        self.short = short
        self.long = long
        self.divisor = divisor
        self.box_outputs = box_outputs
        self.others = nn.ModuleList(others)
        self.boxed = nn.ModuleList(boxed)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Finds what the model's tasks look for.

        Args:
            images: (3, H, W) uint8 RGB each, of any sizes, on the module's device.

        Returns:
            Per picture a dict. Of detection, best score first: `boxes` (N, 4) float32 xyxy in pixels
            of the picture as given, `labels` (N,) int64 index into `class_names()`, `scores` (N,) in
            [0, 1]. Under the name of a semantic task (H, W) uint8 class indices, and under that with
            `CONFIDENCE` (H, W) float32 their probabilities; under that of a task of tags (T,)
            probabilities; under that of depth (H, W) float32 meters. Of tasks about boxes row n says
            something of box n: of attributes (N, T) probabilities of all values; of masks (N, S, S)
            probabilities on a grid over the box; of keypoints (N, K, 3) x, y in pixels of the picture as
            given, and a confidence.
        """
        check_images(images)
        fitted = [fit(image, self.short, self.long) for image in images]
        results: list[dict[str, Tensor]] = []
        for _ in images:
            unfilled: dict[str, Tensor] = {}
            results.append(unfilled)
        for together in of_one_size(fitted, self.divisor):
            batch, sizes = pad_images([fitted[i] for i in together], self.divisor)
            outputs = self.network(batch)
            if self.decoder is not None:
                found = self.decoder(outputs[: self.box_outputs], sizes)
                for k, i in enumerate(together):
                    fitted_boxes, scores, classes = found[k]
                    boxes = to_original(
                        fitted_boxes,
                        (fitted[i].shape[1], fitted[i].shape[2]),
                        (images[i].shape[1], images[i].shape[2]),
                    )
                    results[i] = {"boxes": boxes, "labels": classes, "scores": scores}
                    for of_boxes in self.boxed:
                        results[i][of_boxes.name] = of_boxes(  # pyright: ignore[reportArgumentType]
                            outputs, k, fitted_boxes, classes, fitted[i], images[i]
                        )
            if len(self.others) > 0:
                given = [[images[i].shape[1], images[i].shape[2]] for i in together]
                originals = torch.tensor(given, dtype=torch.int64, device=batch.device)
                for other in self.others:
                    values = other(outputs, sizes, originals)
                    for k, i in enumerate(together):
                        results[i][other.name] = values[k]  # pyright: ignore[reportArgumentType]
                        if len(values) > len(together):
                            results[i][other.confidence] = values[len(together) + k]  # pyright: ignore[reportArgumentType]
        return results

    @torch.jit.export
    def class_names(self) -> list[str]:
        """Returns the class names, in the order of `labels`."""
        return self.names
