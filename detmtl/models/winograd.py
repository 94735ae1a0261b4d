"""Convolutions of 3 x 3 with fewer products, for processors that multiply in float32.

Letters: N pictures, C and K channels in and out, H and W positions, T tiles of 4 x 4 positions.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

TILE, KERNEL = 4, 3
WINDOW = TILE + KERNEL - 1
"""A side of what one tile is computed from."""
TILES_AT_ONCE = 512
"""They bound the memory, 36 times their channels in numbers each time; fewer are slower."""
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Winograd(TorchFunctionMode):
    """Within it, convolutions on the CPU for which that is faster go by Winograd's algorithm.

    The model stays as it is, as under autocast. A tile of 4 x 4 results takes 36 products a pair of channels
    for 144, and additions: float32 convolutions of 3 x 3, stride 1, undilated and ungrouped, of enough
    channels and positions that the products are what takes time. Values differ from the exact sum by about
    3e-6 in norm, a few times what the direct sum does; within a tile it is the largest input that counts.
    Under autocast nothing goes by it. Whatever computes a part of a network again for the backward pass
    (activation checkpointing) has to do so within it too.

    Source: Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308,
    F(4 x 4, 3 x 3); the gradients are the same three products, transposed.

    Args:
        fixed: only `copy_`, `load_state_dict` and the like may write to the weights: their transformed
            kernels, of four times the size, are kept for good; else until it is left.
    """

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self._fixed = fixed
        self._kept: Any = WeakIdKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return Winograd, (self._fixed,)  # what is kept is kept by identity, which a copy has not

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if not self._fixed:  # fused optimizers write without raising a weight's version
            self._kept.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Returns what `func` returns."""
        if func is torch.conv2d:
            found = self._convolved(*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))

    def _convolved(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """Returns what `torch.conv2d` does, or None for what is no faster so."""
        if _both(stride) != (1, 1) or _both(dilation) != (1, 1) or isinstance(padding, str):
            return None
        if groups != 1 or not pays(input, weight, _both(padding)):
            return None
        return conv2d(input, weight, bias, _both(padding), self._transformed(weight))

    def _transformed(self, weight: Tensor) -> Tensor:
        if weight.is_inference():  # nobody counts what is written to it
            return transformed(weight)
        state = weight.data_ptr(), weight._version
        before, kernels = self._kept.get(weight, (None, None))
        if before != state or (kernels.is_inference() and torch.is_grad_enabled()):
            kernels = transformed(weight)
            self._kept[weight] = state, kernels
        return kernels  # type: ignore[no-any-return]


def pays(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Returns whether a convolution of stride 1 can be done this way and is faster for it.

    Measured by benchmarks/winograd.py: few channels leave too little to multiply, few tiles too little to
    share the kernels' transformation; a backward pass gains more than a forward one.
    """
    if weight.shape[2:] != (KERNEL, KERNEL) or x.dim() != 4 or x.shape[1] != weight.shape[1]:
        return False
    if not (
        x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    ):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    tiles = _Tiles(x.shape, padding)
    # of one picture, whatever else is in the batch
    least = 64 if learns and tiles.each >= 128 else 96
    return tiles.each >= 16 and min(weight.shape[:2]) >= least


def transformed(weight: Tensor) -> Tensor:
    """Returns the kernels (K, C, 3, 3) as (36, C, K), to multiply transformed windows with."""
    out, into = weight.shape[:2]
    rows = weight.detach().permute(2, 3, 1, 0).reshape(KERNEL**2, into * out)
    return _through("kernel", rows).view(WINDOW**2, into, out)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: tuple[int, int] = (0, 0),
    kernels: Tensor | None = None,
) -> Tensor:
    """Returns what `torch.nn.functional.conv2d` does of stride 1, in channels_last; differentiable once.

    Args:
        x: (N, C, H, W), float32 or float64; in channels_last it is not copied.
        weight: (K, C, 3, 3).
        bias: (K,).
        padding: zeros on each side, of rows and of columns.
        kernels: `transformed(weight)`, if it is there already.
    """
    if kernels is None:
        kernels = transformed(weight)
    return _Convolution.apply(x, weight, bias, padding, kernels)  # type: ignore[no-any-return]


class _Tiles:
    """Tiles that cover what comes out of a convolution, rows of tiles in groups that are computed at once."""

    def __init__(self, shape: torch.Size, padding: tuple[int, int]):
        self.count, _, self.height, self.width = shape
        self.top, self.left = padding
        self.out = (self.height + 2 * self.top - 2, self.width + 2 * self.left - 2)
        self.rows, self.columns = (-(-max(0, side) // TILE) for side in self.out)
        self.each = self.rows * self.columns

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Yields pictures and rows of tiles that are computed together."""
        pictures = max(1, TILES_AT_ONCE // self.each)
        rows = self.rows if pictures > 1 else max(1, TILES_AT_ONCE // self.columns)
        for n in range(0, self.count, pictures):
            for r in range(0, self.rows, rows):
                yield slice(n, min(n + pictures, self.count)), slice(r, min(r + rows, self.rows))

    def padded(self, x: Tensor) -> Tensor:
        """Returns x as (N, rows and columns of all windows, C), in that order in memory."""
        below = self.rows * TILE + 2 - self.height - self.top
        beside = self.columns * TILE + 2 - self.width - self.left
        around = (0, 0, self.left, beside, self.top, below)
        return F.pad(x.permute(0, 2, 3, 1), around).contiguous()

    def windows(self, padded: Tensor, pictures: slice, rows: slice) -> Tensor:
        """Returns the transformed windows (36, T, C) of a group."""
        n, row, column, _ = padded.stride()
        sizes = (
            WINDOW,
            WINDOW,
            pictures.stop - pictures.start,
            rows.stop - rows.start,
            self.columns,
        )
        steps = (row, column, n, TILE * row, TILE * column)
        start = padded.storage_offset() + pictures.start * n + rows.start * TILE * row
        windows = padded.as_strided((*sizes, padded.shape[3]), (*steps, 1), start)
        return _through("input", windows.reshape(WINDOW**2, -1)).view(
            WINDOW**2, -1, padded.shape[3]
        )

    def tiles(self, maps: Tensor) -> Tensor:
        """Returns maps (N, K, H, W) of what comes out as (4, 4, N, rows, columns, K), with zeros beyond."""
        beyond = self.columns * TILE - maps.shape[3], self.rows * TILE - maps.shape[2]
        last = maps.permute(0, 2, 3, 1)
        if any(beyond):
            last = F.pad(last, (0, 0, 0, beyond[0], 0, beyond[1]))
        apart = last.reshape(self.count, self.rows, TILE, self.columns, TILE, maps.shape[1])
        return apart.permute(2, 4, 0, 1, 3, 5)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
        kernels: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, kernels)
        ctx.padding = padding
        tiles, channels = _Tiles(x.shape, padding), kernels.shape[2]
        padded = tiles.padded(x)
        height, width = tiles.rows * TILE, tiles.columns * TILE
        whole = torch.empty(
            (tiles.count, channels, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        apart = tiles.tiles(whole)
        for pictures, rows in tiles:
            products = torch.bmm(tiles.windows(padded, pictures, rows), kernels).view(WINDOW**2, -1)
            there = _part(apart, (2, 3), pictures, rows)
            found = _through("output", products).view(there.shape)
            if bias is None:
                there.copy_(found)
            else:
                torch.add(found, bias, out=there)
        if tiles.out == (height, width):
            return whole
        # no view, which whoever activates in place could not write to
        inner = whole[:, :, : tiles.out[0], : tiles.out[1]]
        return inner.clone(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = gradients
        x, kernels = ctx.saved_tensors
        tiles, (into, out) = _Tiles(x.shape, ctx.padding), kernels.shape[1:]
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        padded = tiles.padded(x) if of_weight else None
        in_kernels = gradient.new_zeros(WINDOW**2, into, out) if of_weight else None
        height, width = (tiles.rows + 1) * TILE, (tiles.columns + 1) * TILE
        in_windows = gradient.new_zeros(tiles.count, height, width, into) if of_x else None
        apart = tiles.tiles(gradient)
        for pictures, rows in tiles if of_x or of_weight else ():
            group = _part(apart, (2, 3), pictures, rows).reshape(TILE**2, -1)
            products = _through("output", group, back=True).view(WINDOW**2, -1, out)
            if in_kernels is not None and padded is not None:
                windows = tiles.windows(padded, pictures, rows).transpose(1, 2)
                in_kernels += torch.bmm(windows, products)
            if in_windows is not None:
                found = torch.bmm(products, kernels.transpose(1, 2)).view(WINDOW**2, -1)
                found = _through("input", found, back=True)
                squares = (tiles.count, tiles.rows + 1, TILE, tiles.columns + 1, TILE, into)
                _add_windows(in_windows.view(squares), found, pictures, rows)
        of_inner = of_kernels = None
        if in_windows is not None:
            inner = in_windows.narrow(1, tiles.top, tiles.height).narrow(2, tiles.left, tiles.width)
            of_inner = inner.permute(0, 3, 1, 2)
        if in_kernels is not None:
            of_kernels = _through("kernel", in_kernels.view(WINDOW**2, -1), back=True)
            of_kernels = of_kernels.view(KERNEL, KERNEL, into, out).permute(3, 2, 0, 1)
        return of_inner, of_kernels, gradient.sum((0, 2, 3)) if of_bias else None, None, None


def _add_windows(sums: Tensor, windows: Tensor, pictures: slice, rows: slice) -> None:
    """Adds windows (36, T * C) to where they lie in sums (N, rows + 1, 4, columns + 1, 4, C); each reaches
    two positions into the tiles beside and below."""
    columns, channels = sums.shape[3] - 1, sums.shape[5]
    there = _part(sums, (0, 1), pictures, rows)
    below = _part(sums, (0, 1), pictures, slice(rows.start + 1, rows.stop + 1))
    sizes = (WINDOW, WINDOW, there.shape[0], there.shape[1], columns, channels)
    apart = windows.view(sizes).permute(2, 3, 0, 4, 1, 5)
    reach = WINDOW - TILE
    for first, into in ((0, there), (TILE, below)):
        high = TILE if first == 0 else reach
        found, into = apart.narrow(2, first, high), into.narrow(2, 0, high)
        into.narrow(3, 0, columns).add_(found.narrow(4, 0, TILE))
        into.narrow(3, 1, columns).narrow(4, 0, reach).add_(found.narrow(4, TILE, reach))


def _part(x: Tensor, dims: tuple[int, int], pictures: slice, rows: slice) -> Tensor:
    """Returns the pictures and rows of x; `narrow`, unlike an index, also of many gradients at once."""
    for dim, part in zip(dims, (pictures, rows), strict=True):
        x = x.narrow(dim, part.start, part.stop - part.start)
    return x


def _through(which: str, squares: Tensor, back: bool = False) -> Tensor:
    """Returns squares (side * side, numbers) of windows, kernels or tiles transformed, columns and then rows;
    `back`: the gradient of that."""
    matrix = _matrix(which, squares.dtype)
    if back:
        matrix = matrix.t()
    to, side = matrix.shape
    columns = matrix @ squares.reshape(side, -1)
    return torch.matmul(matrix, columns.view(to, side, -1)).view(to * to, -1)


def _both(value: int | Sequence[int]) -> tuple[int, int]:
    """Returns a convolution's argument for rows and columns."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


@functools.cache
def _matrix(which: str, dtype: torch.dtype) -> Tensor:
    """Returns a transformation of one side of a square."""
    values = {"input": _INPUT, "kernel": _KERNEL, "output": _OUTPUT}[which]
    return torch.tensor(values, dtype=dtype, device="cpu")
