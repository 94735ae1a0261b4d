"""What a reader found in the files of a source, and its copy in the cache."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.data.details import FlatDetails
from detmtl.data.flat import Annotations, FileNames, load_arrays, save_arrays
from detmtl.data.images import file_stamp

_OF_DETAILS = "details_"
"""What the names of the arrays of details begin with."""


@dataclass(frozen=True, eq=False)
class Parsed:
    """What a reader found in the files of a source, checked.

    Attributes:
        files, ids, sizes, annotations, coverage: as in `Source`.
        silver: whether the files say that a model wrote labels in them.
        dropped: sentence on what was left out because of faults, and on rows of `covers_file` for other
            pictures; "" if there is nothing to tell.
        lost: (P, 2) int64, picture and class of labels that were left out because of faults and of
            which not even the place is known; -1: of an unknown class.
        notes: sentences on what the files leave open.
        looked_into: names of the pictures that had to be looked into; if one of them changes, this is
            out of date.
        unused: names of the pictures that were left out because of faults, as far as they may lack a file
            too; forgotten once the labels are whole.
    """

    files: FileNames
    ids: np.ndarray
    sizes: np.ndarray
    annotations: Annotations | None
    coverage: np.ndarray
    silver: bool = False
    dropped: str = ""
    lost: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    looked_into: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def take(self, indices: np.ndarray) -> "Parsed":
        """Returns what was found of the pictures at `indices`; nothing may be `lost` any more."""
        assert self.lost is None
        return replace(
            self,
            files=self.files.take(indices),
            ids=self.ids[indices],
            sizes=self.sizes[indices],
            annotations=None if self.annotations is None else self.annotations.take(indices),
            coverage=self.coverage if len(self.coverage) == 1 else self.coverage[indices],
        )


def left_out(where: str, problems: Sequence[str]) -> str:
    """Returns a sentence on faults that were left out, "" if there are none."""
    if not problems:
        return ""
    return (
        f"{where}: {len(problems)} fault{'s' if len(problems) > 1 else ''} left out: "
        + "; ".join(problems[:3])
        + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    )


def kept_before(folder: Path, key: str) -> tuple[Parsed, str] | None:
    """Returns what `keep_for_later` kept under a key, its arrays mapped, and their own key; None if nothing
    is there, or one of the pictures that were looked into has changed."""
    stored = load_arrays(folder / f"{key}-looked")
    if stored is None:
        return None
    arrays, facts = stored
    own = _own_key(key, FileNames(facts["folder"], arrays["text"], arrays["starts"]))
    parsed = load_parsed(folder / own)
    return None if parsed is None else (parsed, own)


def keep_for_later(folder: Path, key: str, parsed: Parsed) -> tuple[Parsed, str]:
    """Keeps what a reader found, and returns it with its arrays mapped, and their own key.

    Args:
        folder: of the cache.
        key: of everything that decides it but the pictures that were looked into.
        parsed: with these.
    """
    looked = FileNames.of(parsed.files.folder, parsed.looked_into)
    arrays = {"text": looked.text, "starts": looked.offsets}
    save_arrays(folder / f"{key}-looked", arrays, {"folder": looked.folder})
    own = _own_key(key, looked)
    save_parsed(folder / own, parsed)
    kept = load_parsed(folder / own)
    assert kept is not None
    return kept, own


def _own_key(key: str, looked: FileNames) -> str:
    return digest([key, [file_stamp(path) for path in looked.paths()]])


def digest(facts: Any) -> str:
    """Returns a name for JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def save_parsed(folder: Path, parsed: Parsed) -> None:
    """Writes what a reader found as a folder of arrays."""
    arrays = {
        "text": parsed.files.text,
        "starts": parsed.files.offsets,
        "ids": np.asarray(parsed.ids, np.int64),
        "sizes": np.asarray(parsed.sizes, np.int32).reshape(-1, 2),
        "coverage": np.asarray(parsed.coverage, np.float32),
    }
    facts: dict[str, Any] = {
        "folder": parsed.files.folder,
        **{name: getattr(parsed, name) for name in ("silver", "dropped", "notes")},
    }
    if parsed.annotations is not None:
        arrays |= parsed.annotations.arrays()
        if parsed.annotations.details is not None:
            details = parsed.annotations.details
            arrays |= {_OF_DETAILS + name: x for name, x in details.arrays().items()}
            names = {n: getattr(details, n) for n in ("attribute_names", "keypoint_names")}
            facts["details"] = names
    save_arrays(folder, arrays, facts)


def load_parsed(folder: Path) -> Parsed | None:
    """Returns what `save_parsed` wrote, its arrays mapped; None if it is not there."""
    stored = load_arrays(folder)
    if stored is None:
        return None
    arrays, facts = stored
    annotations = None
    if "boxes" in arrays:
        names = [f.name for f in fields(Annotations) if f.name != "details"]
        annotations = Annotations(**{n: arrays[n] for n in names}, details=_details(arrays, facts))
    return Parsed(
        files=FileNames(facts["folder"], arrays["text"], arrays["starts"]),
        ids=arrays["ids"],
        sizes=arrays["sizes"],
        annotations=annotations,
        coverage=arrays["coverage"],
        silver=facts["silver"],
        dropped=facts["dropped"],
        notes=tuple(facts["notes"]),
    )


def _details(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> FlatDetails | None:
    if "details" not in facts:
        return None
    names = {n: tuple(of) for n, of in facts["details"].items()}
    own: dict[str, Any] = {
        n.removeprefix(_OF_DETAILS): x for n, x in arrays.items() if n.startswith(_OF_DETAILS)
    }
    return replace(FlatDetails(**own), **names)


def nothing_covered(num_classes: int) -> np.ndarray:
    """Returns the (1, C) coverage of pictures in which nobody looked for anything."""
    return np.zeros((1, num_classes), dtype=np.float32)


def missing_files(files: FileNames) -> list[int]:
    """Returns the positions of files that are not there, listing each folder once."""
    text, offsets = files.text.tobytes(), files.offsets.tolist()
    if os.sep != "/":
        text = text.replace(os.fsencode(os.sep), b"/")
    listed: dict[bytes, set[bytes]] = {}
    missing = []
    # bytes, and no calls of os.path: a million names are looked up at every start
    for i, (start, end) in enumerate(pairwise(offsets)):
        folder, _, name = text[start:end].rpartition(b"/")
        names = listed.get(folder)
        if names is None:
            absolute = text[start : end - len(name)]  # keeps the slash of the root
            where = os.path.join(os.fsencode(files.folder), absolute)
            names = listed[folder] = set(os.listdir(where)) if os.path.isdir(where) else set()
        if name not in names:
            missing.append(i)
    return missing


def missing_problems(files: FileNames, where: str) -> list[str]:
    """Returns a sentence for each picture that is not there, or one if none is."""
    missing = missing_files(files)
    if missing and len(missing) == len(files):
        return [
            f"{where}: none of its {len(files)} pictures is there, the first would be {files[0]}; set "
            "`images` to the folder that the file names start from"
        ]
    return [f"{where}: {files[i]}: no such picture" for i in missing]
