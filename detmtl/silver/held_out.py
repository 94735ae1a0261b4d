"""No picture that measures the result may be among those that train."""

from collections.abc import Sequence

from detmtl.data.source import Source
from detmtl.structures.errors import InputError


def overlap(a: Sequence[Source], b: Sequence[Source]) -> list[tuple[str, str]]:
    """Returns pairs of files, one of `a` and one of `b`, that are the same picture byte by byte."""
    first: dict[str, str] = {}
    for source in a:
        for i, content_hash in enumerate(source.hashes()):
            first.setdefault(content_hash, source.path(i))
    return [
        (first[content_hash], source.path(i))
        for source in b
        for i, content_hash in enumerate(source.hashes())
        if content_hash in first
    ]


def refuse_overlap(training: Sequence[Source], held_out: Sequence[Source]) -> None:
    """Refuses training pictures that are also among those that measure the result.

    Raises:
        InputError: names the pairs.
    """
    pairs = overlap(training, held_out)
    if pairs:
        raise InputError(
            [
                f"{a}: a training picture that is also held out as {b}; take it out of one of them"
                for a, b in pairs
            ]
        )


def refuse_seen(learned_from: Sequence[Source], gold: Source) -> None:
    """Refuses to audit a teacher on pictures that it learned from: it is better there than elsewhere.

    Raises:
        InputError: names the pairs.
    """
    pairs = overlap(learned_from, [gold])
    if pairs:
        raise InputError(
            [
                f"{a}: the teacher learned from it, and is audited on it in '{gold.name}' ({b}); audit on "
                "pictures that it has not seen"
                for a, b in pairs
            ]
        )
