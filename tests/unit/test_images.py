"""Decoding, sizes and hashes of picture files."""

import hashlib
import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from detmtl.data import images, jpeg
from detmtl.data.fit import fit
from detmtl.data.images import (
    content_hash,
    content_hashes,
    decoded,
    image_size,
    image_sizes,
    list_pictures,
    read_image,
    read_reduced,
    reduction,
    wrong_size,
)
from detmtl.structures.errors import InputError


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth picture (40, 60, 3), so that JPEG keeps it nearly."""
    y, x = np.mgrid[:40, :60]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff"])
def test_reads_every_format_as_rgb(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, **({"quality": 98} if suffix == "jpg" else {}))
    image = read_image(path)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - picture).mean() < 5  # channels swapped would be far off
    assert image_size(path) == (40, 60)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_applies_exif_rotation(tmp_path, picture, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, exif=exif.tobytes())
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    expected = np.rot90(picture, turns)
    image = read_image(path)
    assert image.shape == expected.shape
    assert image_size(path) == expected.shape[:2]
    assert np.abs(image.astype(int) - expected).mean() < 8


def test_the_size_of_a_png_takes_no_decoding_unless_exif_stands_behind_its_pixels(
    tmp_path, picture, monkeypatch
):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, before, behind = (tmp_path / f"{name}.png" for name in ("plain", "before", "behind"))
    Image.fromarray(picture).save(plain)
    Image.fromarray(picture).save(before, exif=exif.tobytes())
    data = before.read_bytes()
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    last = data.index(b"IEND") - 4
    behind.write_bytes(data[:at] + data[end:last] + data[at:end] + data[last:])
    assert image_size(behind) == read_image(behind).shape[:2] == (60, 40)
    cut = tmp_path / "cut.png"
    cut.write_bytes(data[:at] + data[end : last - 30])
    with pytest.raises(InputError, match=r"cut\.png: the picture is (truncated|broken)"):
        image_size(cut)
    monkeypatch.setattr(PngImageFile, "load", None)
    assert image_size(plain) == (40, 60) and image_size(before) == (60, 40)


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>'
    "</x:xmpmeta>"
)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_xmp_does_not_turn_a_picture_in_any_decoder(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP)
    more = {"pnginfo": text} if suffix == "png" else {"xmp": XMP.encode()}
    Image.fromarray(picture).save(path, **more)
    with Image.open(path) as told:
        assert told.getexif().get(0x0112) == 6  # the file says so, and Pillow heeds it
    assert image_size(path) == read_image(path).shape[:2] == picture.shape[:2]
    path.write_bytes(path.read_bytes() + bytes(20))  # to the slower decoder
    assert image_size(path) == read_image(path).shape[:2] == picture.shape[:2]


def test_grey_palette_alpha_and_16_bits_become_rgb(tmp_path, picture):
    grey = picture[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    alpha = np.dstack([picture, np.zeros((40, 60), np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), picture)
    Image.fromarray(picture).convert("P").save(tmp_path / "palette.gif")
    assert read_image(tmp_path / "palette.gif").shape == (40, 60, 3)
    deep = grey.astype(np.uint16) * 256 + 7
    for suffix in ("png", "tiff"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"deep.{suffix}")[..., 1], grey)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "gif"])
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_a_truncated_picture_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"cut\.{suffix}: the picture is (truncated|broken)"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_that_says_it_is_huge_is_refused_before_it_gets_memory(
    tmp_path, suffix, monkeypatch
):
    path, side = tmp_path / f"huge.{suffix}", 60_000
    Image.new("RGB", (64, 64)).save(path)
    data = bytearray(path.read_bytes())
    if suffix == "jpg":
        at = data.find(b"\xff\xc0") + 5
        data[at : at + 4] = side.to_bytes(2, "big") * 2
    else:
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    monkeypatch.setattr(images, "decoded_jpeg", None)  # neither is called
    monkeypatch.setattr(images.cv2, "imdecode", None)
    with pytest.raises(
        InputError, match=rf"huge\.{suffix}: the picture is too large \(.*3600000000"
    ):
        read_image(path)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path, picture):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path)
    plain = read_image(path)
    path.write_bytes(path.read_bytes() + b"appended by a camera")
    assert np.abs(read_image(path).astype(int) - plain).max() <= 3  # another decoder


def test_what_is_no_picture_is_told_in_a_sentence(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=r"text\.jpg: is not a picture"):
            read(tmp_path / "text.jpg")
        with pytest.raises(InputError, match=r"empty\.jpg: the file is empty"):
            read(tmp_path / "empty.jpg")
        with pytest.raises(InputError, match=r"gone\.jpg: no such picture"):
            read(tmp_path / "gone.jpg")
    sizes, problems = image_sizes([str(tmp_path / "text.jpg"), str(tmp_path / "gone.jpg")])
    assert sizes.tolist() == [[0, 0], [0, 0]] and [i for i, _ in problems] == [0, 1]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_of_32_bits_are_refused(tmp_path, kind):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((4, 6), 100, kind)).save(path)
    with pytest.raises(
        InputError, match=r"deep\.tif: has 32 bits .* convert the picture to 8 or 16"
    ):
        read_image(path)
    Image.fromarray(np.full((4, 6), 100 << 8, np.uint16)).save(path)
    assert (read_image(path) == 100).all()


def test_a_picture_whose_sides_are_exchanged_is_told_to_be_turned_by_exif():
    assert "EXIF" in wrong_size("a.jpg", (64, 48), (48, 64), "gold.json")
    assert "EXIF" not in wrong_size("a.jpg", (64, 48), (48, 63), "gold.json")


def test_list_pictures_goes_deep_and_leaves_the_rest(tmp_path, picture):
    for name in ("b/c.JPG", "a.png", ".hidden/x.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b/back").symlink_to(tmp_path)
    (tmp_path / "here").symlink_to(".")
    assert list_pictures(tmp_path) == ["a.png", os.path.join("b", "c.JPG")]
    (tmp_path / "again").symlink_to("b")  # which is no loop
    assert list_pictures(tmp_path) == ["a.png", "again/c.JPG", "b/c.JPG"]


def test_hashes_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i} ä.bin") for i in range(3)]
    for i, path in enumerate(paths):
        with open(path, "wb") as file:
            file.write(bytes([i]) * 1000)
    cache = tmp_path / "cache"
    done = []
    first = content_hashes(paths, cache, lambda *step: done.append(step))
    assert first == [hashlib.sha256(bytes([i]) * 1000).hexdigest() for i in range(3)]
    assert done == [(3, 3)]
    with open(cache / "content_hashes.tsv", "a") as file:
        file.write("torn row without an e")  # what a killed process leaves
    read: list[str] = []

    def counted(path):
        read.append(path)
        return content_hash(path)

    monkeypatch.setattr("detmtl.data.images.content_hash", counted)
    assert content_hashes(paths, cache) == first and read == []
    with open(paths[1], "wb") as file:
        file.write(b"longer than before" * 1000)
    assert (
        content_hashes(paths, cache)[1] == hashlib.sha256(b"longer than before" * 1000).hexdigest()
    )
    assert read == [paths[1]]
    read.clear()
    content_hashes(paths, cache)
    assert read == []
    with pytest.raises(InputError, match="gone"):
        content_hashes([*paths, str(tmp_path / "gone")], cache)


def scene(height: int, width: int) -> np.ndarray:
    """A picture with edges and texture at all scales."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / s + 2 * k) * np.cos(y / (s * 1.3)) for k, s in enumerate((3, 11, 47))]
    values = 128 + 30 * np.sum(waves, axis=0) + 40 * ((x // 40 + y // 56) % 2)
    return (values[..., None] + rng.normal(0, 4, 3)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "factor"),
    [
        ((480, 640), 1),
        ((952, 1272), 1),  # not twice as large
        ((960, 1280), 2),
        ((961, 1280), 1),  # has a rest
        ((1920, 2560), 4),
        ((1924, 2564), 4),
        ((3840, 5120), 8),
        ((5120, 3840), 8),
        ((3000, 4000), 4),  # an eighth would be smaller than 480 x 640
    ],
)
def test_how_far_a_picture_can_be_reduced(size, factor):
    assert reduction(*size, 480, 640) == factor


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_smaller_and_fitted_to_nearly_the_same_pixels(
    tmp_path, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(scene(384, 512)).save(path, quality=92, exif=exif.tobytes())
    full = read_image(path)
    reduced, size = read_reduced(path, 96, 128)
    assert size == full.shape[:2] and size == ((384, 512) if orientation == 1 else (512, 384))
    assert reduced.shape == (size[0] // 4, size[1] // 4, 3)
    target = [fit(torch.from_numpy(x).permute(2, 0, 1), 90, 120).int() for x in (full, reduced)]
    difference = (target[0] - target[1]).abs().float()
    assert difference.mean() < 2 and target[0].float().std() > 20


def test_what_is_no_large_jpeg_is_read_in_full(tmp_path, picture):
    Image.fromarray(scene(384, 512)).save(tmp_path / "a.png")
    image, size = read_reduced(tmp_path / "a.png", 96, 128)
    np.testing.assert_array_equal(image, scene(384, 512))
    assert size == (384, 512)
    Image.fromarray(picture).save(tmp_path / "b.jpg")
    image, _ = read_reduced(tmp_path / "b.jpg", 96, 128)
    np.testing.assert_array_equal(image, read_image(tmp_path / "b.jpg"))
    data = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"truncated|broken"):
        read_reduced(tmp_path / "cut.jpg", 8, 8)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "progressive", "exif"])
def test_simplejpeg_gives_the_pixels_of_opencv(tmp_path, picture, monkeypatch, mode, subsampling):
    pytest.importorskip("simplejpeg")
    pixels = np.array(Image.fromarray(picture).resize((131, 97)))
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 6
    kind = mode if mode in ("L", "CMYK") else "RGB"
    Image.fromarray(pixels).convert(kind).save(
        path,
        subsampling=subsampling,
        progressive=mode == "progressive",
        exif=exif if mode == "exif" else b"",
    )
    data = path.read_bytes()
    room = np.zeros((97, 131, 3), np.uint8)
    fast = decoded(data, room)
    if mode != "CMYK":  # of which some are refused
        assert np.shares_memory(fast, room) == (mode != "exif")
    damaged = data[:-40] + data[-30:]  # of the pixels
    found = read_image(path, damaged)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    np.testing.assert_array_equal(fast, read_image(path))
    np.testing.assert_array_equal(found, read_image(path, damaged))
    assert fast.shape == ((131, 97, 3) if mode == "exif" else (97, 131, 3))
