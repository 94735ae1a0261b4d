"""The classes that a model tells apart, and the names by which sources and teachers call them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from detmtl.structures.errors import InputError


@dataclass(frozen=True)
class LabelSpace:
    """Ordered class names, and which names of sources count as which class (many to one).

    Attributes:
        names: the C class names; a class is its index in this tuple everywhere in memory.
        members: for each class the source names that mean it. Its own name does so too, unless it is
            a member of another class.
        drop_unmapped: whether a source name that no class lists is dropped (its boxes are not
            labels) or refused with an error.
        setting: where the classes are set, for errors.
    """

    names: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    drop_unmapped: bool = False
    setting: str = "data"

    @classmethod
    def of(
        cls,
        classes: Sequence[str] | Mapping[str, Sequence[str]],
        drop_unmapped: bool = False,
        setting: str = "data",
    ) -> "LabelSpace":
        """Builds a label space from a list of names, or from class name -> list of source names.

        Raises:
            InputError: a name is listed twice, or there is none.
        """
        if isinstance(classes, Mapping):
            names, members = tuple(classes), tuple(tuple(m) for m in classes.values())
        else:
            names, members = tuple(classes), tuple((name,) for name in classes)
        problems = []
        if not names:
            problems.append("classes: none given; list at least one class name")
        for what, listed in (("class", names), ("source name", [m for ms in members for m in ms])):
            seen: set[str] = set()
            for name in listed:
                if name in seen:
                    problems.append(f"classes: the {what} '{name}' is listed twice; keep one")
                seen.add(name)
        if problems:
            raise InputError(problems)
        return cls(names, members, drop_unmapped, setting)

    def __len__(self) -> int:
        return len(self.names)

    def class_of(self, source_names: Iterable[str], where: str) -> list[int]:
        """Returns for each source name its class, or -1 where it is dropped.

        Args:
            source_names: names of a source's or a teacher's categories.
            where: file or teacher, for the error.

        Raises:
            InputError: a name belongs to no class and `drop_unmapped` is false, or no name belongs
                to any class.
        """
        index = self._index()
        source_names = list(source_names)
        found = [index.get(name, -1) for name in source_names]
        if not self.drop_unmapped:
            instead = (
                "unknown" if self.setting == "data.maps" else "drop"
            )  # a pixel has to be something
            problems = [
                f"{where}: the category '{name}' belongs to no class{_nearest(name, index)}; add it to "
                f"{self.setting}.classes or set {self.setting}.unmapped: {instead}"
                for name, c in zip(source_names, found, strict=True)
                if c < 0
            ]
            if problems:
                raise InputError(problems)
        if source_names and max(found) < 0:
            raise InputError(
                f"{where}: none of its categories ({', '.join(source_names[:8])}) belongs to a class of "
                f"{self.setting}.classes ({', '.join(self.names[:8])})"
            )
        return found

    def known(self, source_names: Iterable[str]) -> list[bool]:
        """Returns for each class whether one of its members is among `source_names`.

        Somebody who never heard of a class did not look for it: such a class has coverage 0.
        """
        index = self._index()
        found = {index[name] for name in source_names if name in index}
        return [i in found for i in range(len(self.names))]

    def partly(self, source_names: Iterable[str]) -> dict[str, tuple[list[str], list[str]]]:
        """Returns class -> those of its members that are among `source_names`, and those that are not.

        Only of classes that are known by some of them alone: synonyms, or a part of what the class is.
        A source that has the class's own name means the whole of it.
        """
        index, there = self._index(), set(source_names)
        out = {}
        for c, (name, members) in enumerate(zip(self.names, self.members, strict=True)):
            missing = [m for m in members if m not in there]
            whole = name in there and index[name] == c
            if missing and len(missing) < len(members) and not whole:
                out[name] = ([m for m in members if m in there], missing)
        return out

    def _index(self) -> dict[str, int]:
        own = {name: i for i, name in enumerate(self.names)}
        return own | {m: i for i, ms in enumerate(self.members) for m in ms}

    def digest(self) -> str:
        """Returns a hash of names, members and their order."""
        text = json.dumps([self.names, self.members, self.drop_unmapped])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _nearest(name: str, known: Mapping[str, int]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (nearest: '{close[0]}')" if close else ""
