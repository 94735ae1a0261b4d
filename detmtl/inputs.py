"""The files behind a run: with others, the same settings are another run."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from detmtl.config import RunSettings
from detmtl.data.folder import file_hashes
from detmtl.data.images import content_hashes, list_pictures
from detmtl.data.parsed import digest
from detmtl.models.backbone import is_of_timm
from detmtl.structures.outside import code_files, kinds_elsewhere
from detmtl.teachers.from_transformers import FILES
from detmtl.teachers.onnx_files import external_files

_HERE = " here"
"""Ends the name of a file that is another one below data.root."""


def input_hashes(
    settings: RunSettings,
    cache: Path,
    sources: Collection[str] | None = None,
    known: dict[str, str] | None = None,
) -> dict[str, str]:
    """Returns what a run reads -> a hash that changes with what is in its files: labels, maps and
    depths byte for byte, pictures that no COCO file lists by name and size. Unpacked anew they are the same.

    Args:
        settings: of the run.
        cache: folder that keeps the hashes of unchanged files.
        sources: those of `data.sources` that count, beside val and test; None: all.
        known: of sources that were looked at already, which grows: many runs share a source, whose files
            may be many.
    """
    known = {} if known is None else known
    data, found = settings.data, named_files(settings.resolved(), Path(settings.data.root), cache)
    root = Path(data.root).absolute()
    wanted = {n: s for n, s in data.sources.items() if sources is None or n in sources}
    for name, source in {**wanted, "val": data.val, "test": data.test}.items():
        if source is None:
            continue
        told = source.model_dump(mode="json", exclude={"subset", "weight"})
        key = json.dumps([str(root), told])
        if key not in known:
            facts = [source.contents(root, cache)]
            for more in (source.maps, source.depth):
                if more is not None:
                    names = list_pictures(root / more.folder)
                    facts.append(file_hashes(root / more.folder, names, cache))
            known[key] = digest(facts)
        found[f"data.{name}"] = known[key]
    return found


def named_files(tree: Any, root: Path, cache: Path) -> dict[str, str]:
    """Returns each text in plain settings that names a file, below data.root or here, with its hash: of a
    teacher, weights, class names, tags, coverage; and the other files that make a network of it, see
    `_files`. Where it names one in both places both count, unless they are the same: what reads it decides
    which it means, and a copy of the data is as good as they."""
    files: dict[str, dict[str, str]] = {}
    for text in sorted({*_texts(tree)} - {""}):
        places = dict.fromkeys(Path(os.path.abspath(p)) for p in (root / text, Path(text)))
        there = [(path, own) for path in places if (own := _files(path))]
        for name, (path, own) in zip((text, text + _HERE), there, strict=False):
            parts = ["" if f == path else f": {os.path.relpath(f, path.parent)}" for f in own]
            files[name] = dict(zip(parts, map(str, own), strict=True))
    every = [file for own in files.values() for file in own.values()]
    hashes = dict(zip(every, content_hashes(every, cache), strict=True))
    known = {name: {p: hashes[f] for p, f in own.items()} for name, own in files.items()}
    return {
        name + part: content_hash
        for name, own in known.items()
        if not (name.endswith(_HERE) and own == known.get(name.removesuffix(_HERE)))
        for part, content_hash in own.items()
    }


def own_code(tree: Mapping[str, Any], cache: Path) -> dict[str, str]:
    """Returns each name of code outside of detmtl and timm in a run's plain settings, or in a part of them,
    with the hash of the file that the name is in; not of what that file imports."""
    names = {kind for _, kind in kinds_elsewhere(tree, "")}
    backbone = (tree.get("model") or {}).get("backbone")
    if backbone and not is_of_timm(backbone["name"], backbone["args"]):
        names.add(backbone["name"])
    files = code_files(names)
    return dict(zip(files, content_hashes([*files.values()], cache), strict=True))


def _files(path: Path) -> list[Path]:
    """Returns the files behind a path: a file, of an ONNX network those of its weights too; of a folder that
    is a model of transformers all that is read of it; none of other folders."""
    if os.path.isfile(path):
        return [path, *(external_files(path) if path.suffix == ".onnx" else [])]
    if os.path.isfile(path / "config.json") and any(path.glob("*.safetensors")):
        return sorted({file for pattern in FILES for file in path.glob(pattern)})
    return []


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
