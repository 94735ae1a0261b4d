"""Several sources as one, each picture with the coverage that it has in its own."""

from collections.abc import Sequence

import numpy as np

from detmtl.data.flat import Annotations, FileNames
from detmtl.data.source import Source


def joined(name: str, sources: Sequence[Source]) -> Source:
    """Returns the pictures of labelled sources (at least one) one after the other, with ids of their
    own from 1 on, without details; grade SILVER if one of them has it."""
    parts = [source.annotations for source in sources if source.annotations is not None]
    assert len(parts) == len(sources) > 0, "only labelled sources can be joined"
    ends = np.cumsum([len(part) for part in parts])
    offsets = [part.offsets[1:] + end - len(part) for part, end in zip(parts, ends, strict=True)]
    per_box = {
        name: np.concatenate([part.arrays()[name] for part in parts])
        for name in parts[0].arrays()
        if name != "offsets"
    }
    return Source(
        name=name,
        classes=sources[0].classes,
        files=FileNames.of("/", [path for source in sources for path in source.files.paths()]),
        ids=np.arange(1, sum(map(len, sources)) + 1),
        sizes=np.concatenate([source.sizes for source in sources]),
        annotations=Annotations(offsets=np.concatenate([[0], *offsets]), **per_box),
        coverage=np.concatenate(
            [np.broadcast_to(s.coverage, (len(s), len(s.classes))) for s in sources]
        ),
        grade=max(source.grade for source in sources),
        cache=sources[0].cache,
    )
