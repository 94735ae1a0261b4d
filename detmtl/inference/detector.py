"""The module that is exported: pictures of any sizes in, boxes in their own pixels out.

Everything here is read by TorchScript, and shared with eager prediction so that the two cannot
drift apart. Letters: B pictures, H and W pixels, N boxes.
"""

import torch
from torch import Tensor, nn

from detmtl.data.fit import fit, scale_boxes
from detmtl.structures.boxes import clip


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


def check_images(images: list[Tensor]) -> None:
    """Raises ValueError unless every picture is (3, H, W) uint8 with at least one pixel."""
    for i, image in enumerate(images):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"picture {i} has the shape {image.shape}; give (3, H, W), RGB")
        if image.dtype != torch.uint8:
            raise ValueError(f"picture {i} is not uint8; give values 0..255 as torch.uint8")
        if image.numel() == 0:
            raise ValueError(f"picture {i} has no pixels: its shape is {image.shape}")


class Detector(nn.Module):
    """Resizing, network, decoding and resizing back in one scriptable module.

    Args:
        network: (B, 3, H, W) uint8 -> list of the detection task's raw outputs.
        decoder: (outputs, sizes (B, 2)) -> per picture (boxes (N, 4) xyxy in pixels of the network's
            picture, scores (N,), classes (N,) int64), sorted by score.
        class_names: names by class index.
        short, long: a picture is scaled so that its short side is `short`, or its long side `long`
            if that makes it smaller.
        divisor: the padded height and width are multiples of it.
    """

    def __init__(
        self,
        network: nn.Module,
        decoder: nn.Module,
        class_names: list[str],
        short: int,
        long: int,
        divisor: int = 32,
    ):
        super().__init__()
        self.network = network
        self.decoder = decoder
        self.names = list(class_names)
        self.short = short
        self.long = long
        self.divisor = divisor

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detects objects.

        Args:
            images: (3, H, W) uint8 RGB each, of any sizes, on the module's device.

        Returns:
            Per picture a dict, best score first: `boxes` (N, 4) float32 xyxy in pixels of the picture
            as given, `labels` (N,) int64 index into `class_names()`, `scores` (N,) in [0, 1].
        """
        check_images(images)
        fitted = [fit(image, self.short, self.long) for image in images]
        results: list[dict[str, Tensor]] = []
        for _ in images:
            unfilled: dict[str, Tensor] = {}
            results.append(unfilled)
        for together in of_one_size(fitted, self.divisor):
            batch, sizes = pad_images([fitted[i] for i in together], self.divisor)
            found = self.decoder(self.network(batch), sizes)
            for k, i in enumerate(together):
                boxes, scores, classes = found[k]
                boxes = to_original(
                    boxes,
                    (fitted[i].shape[1], fitted[i].shape[2]),
                    (images[i].shape[1], images[i].shape[2]),
                )
                results[i] = {"boxes": boxes, "labels": classes, "scores": scores}
        return results

    @torch.jit.export
    def class_names(self) -> list[str]:
        """Returns the class names, in the order of `labels`."""
        return self.names
