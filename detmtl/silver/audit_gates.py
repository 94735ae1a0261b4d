"""Reasons not to trust silver labels, each with a name.

A gate is for what makes labels useless or misleading at once, and asks for evidence: no detector that
is merely weak is stopped. What makes labels worse by degrees is the business of thresholds,
calibration and coverage.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from detmtl.silver.audit_estimates import wilson
from detmtl.silver.audit_measures import Measures
from detmtl.silver.audit_readings import AS_STORED
from detmtl.silver.comparison import Fault

if TYPE_CHECKING:
    from detmtl.silver.audit import Audit

LEAST = 10
"""Boxes, gold's and the teacher's, without which nothing can be judged: the interval of a share of ten is
still .6 wide."""
LEAST_PICTURES = 3
"""Boxes of one picture resemble each other; one or two pictures say little, however full."""


def problems(audit: "Audit", thresholds: float | Mapping[str, float]) -> list[str]:
    """Returns a sentence for each gate that does not let these labels pass; [] where all do."""
    # What a gate finds explains what the later ones would say.
    first = [*_sizes(audit), *(_little_gold(audit) or _few_boxes(audit))]
    found = first or _places_and_classes(audit) or list(_density(audit, thresholds))
    return [f"audit: {problem}" for problem in found]


def problems_alone(audit: "Audit") -> list[str]:
    """Returns a sentence for each gate that does not let one of several teachers pass; [] where all do.

    Only what its boxes are is judged here. How many become labels is decided for the fused boxes of all
    teachers, and gates of those judge it. A teacher whose classes gold hardly has passes: gold says
    nothing against it.
    """
    found = list(_sizes(audit))
    if not found and not _little_gold(audit):
        found = list(_few_boxes(audit)) or _places_and_classes(audit)
    return [f"audit: {problem}" for problem in found]


def tells_nothing(audit: "Audit") -> bool:
    """Returns whether gold cannot tell what a teacher's scores are worth, though nothing speaks against
    the teacher: it has hardly any box where gold looked, or none that is right where gold has hardly
    any object of its classes."""
    hits = np.concatenate(audit.hits)
    return len(hits) < LEAST or bool(not hits.any() and _little_gold(audit))


def _places_and_classes(audit: "Audit") -> list[str]:
    return list(_format(audit)) or list(_classes(audit))


def _little_gold(audit: "Audit") -> list[str]:
    gold, pictures = int(audit.gold_boxes[audit.known].sum()), audit.pictures
    if gold >= LEAST and pictures >= LEAST_PICTURES:
        return []
    return [
        f"too little gold: {gold} boxes of the teacher's classes in {pictures} pictures; at least "
        f"{LEAST} boxes in {LEAST_PICTURES} pictures are needed to judge, and some hundred boxes to "
        "calibrate well"
    ]


def _few_boxes(audit: "Audit") -> Iterator[str]:
    if len(audit.boxes) < LEAST:
        gold = int(audit.gold_boxes[audit.known].sum())
        yield (
            f"too few boxes: the teacher has {len(audit.boxes)} boxes of any score where gold has {gold}; "
            "are these its pictures, and does it work on them?"
        )


def _sizes(audit: "Audit") -> Iterator[str]:
    if audit.wrong_size:
        first = audit.wrong_size[0]
        stored, real = f"{first[2]} x {first[1]}", f"{first[4]} x {first[3]}"
        turned = " (EXIF rotation was not applied)" if first[1:3] == first[4:2:-1] else ""
        yield (
            f"wrong size: {len(audit.wrong_size)} of {audit.pictures} pictures are not as large as the "
            f"store says, such as gold's picture {first[0]}: {stored} for {real} (width x height)"
            f"{turned}; its boxes lie elsewhere"
        )


def _format(audit: "Audit") -> Iterator[str]:
    for where, counts in audit.readings.items():
        gold, stored = counts["gold"], counts.get(AS_STORED, 0)
        others = {n: k for n, k in counts.items() if n not in ("gold", AS_STORED)}
        best = max(others, key=lambda name: others[name], default=None)
        if best is None or others[best] <= max(2 * stored, 0.15 * gold, LEAST / 2):
            continue
        if others[best] - stored <= 3 * np.sqrt(others[best] + stored):
            continue
        among = "" if where == "all" else ", in the pictures that EXIF turns"
        yield (
            f"wrong format: the teacher's best boxes lie on {stored} of {gold} gold boxes{among}, and on "
            f"{others[best]} when they are read otherwise: {best}"
        )
        return
    gold = audit.gold[audit.known[audit.gold["class"]]]
    lie = int((gold["called"] >= 0).sum())
    if lie < 0.05 * len(gold):
        yield (
            f"wrong format: the teacher's boxes lie on {lie} of {len(gold)} gold boxes only, in whichever "
            "usual format they are read; are they of these pictures, and are its classes in this order?"
        )


def _classes(audit: "Audit") -> Iterator[str]:
    confusion, names = audit.confusion * audit.known[:, None], audit.classes
    total, own = confusion.sum(axis=1), confusion.diagonal()
    permuted = []
    for c in np.flatnonzero(total >= LEAST):
        other = int(confusion[c].argmax())
        sure = wilson(int(confusion[c, other]), int(total[c]))[0] > 0.5
        # A class that is merely taken for a similar one leaves that one right.
        if other != c and sure and own[other] <= 0.5 * total[other]:
            permuted.append(
                f"{confusion[c, other]} of {total[c]} '{names[c]}' are '{names[other]}'"
            )
    agree, everything = int(own.sum()), int(total.sum())
    if permuted:
        yield f"classes permuted: to the teacher {'; '.join(permuted[:5])}{_shift(audit)}"
    elif everything >= 2 * LEAST and wilson(agree, everything)[1] < 0.5:
        yield (
            f"classes permuted: the teacher has a box on {everything} gold boxes, and of their class on "
            f"{agree} of them only{_shift(audit)}"
        )


def _shift(audit: "Audit") -> str:
    """Returns what a list of classes that is shifted as a whole lets one guess."""
    size = len(audit.classes)
    if size > 4:
        at = np.arange(size)
        moved = [int(audit.confusion[at, (at + k) % size].sum()) for k in range(size)]
        k = int(np.argmax(moved))
        if k and moved[k] > 0.5 * audit.confusion.sum():
            steps = k if k <= size // 2 else k - size
            return (
                f"; its list of classes is {abs(steps)} {'ahead of' if steps > 0 else 'behind'} gold's (a "
                "background class, or COCO's unused ids?)"
            )
    return "; its list of classes may be in another order"


def _density(audit: "Audit", thresholds: float | Mapping[str, float]) -> Iterator[str]:
    measures = Measures(audit, thresholds)
    # A class searched in a picture or two may have any number of boxes there.
    judged = audit.known & (audit.searched >= LEAST_PICTURES)
    kept = measures.kept & judged[audit.boxes["class"]]
    if audit.gold_boxes[judged].sum() + kept.sum() < LEAST:
        return
    gold, boxes = measures.densities[:, judged].sum(axis=1)
    limits = np.unique(measures.limits[audit.known])
    at = f"score {limits[0]:.2f}" if len(limits) == 1 else "the classes' thresholds"
    have = (
        f"at {at} the teacher has {boxes:.2f} boxes a picture, gold {gold:.2f} of the same classes"
    )
    if boxes > 3 * gold:
        right = int((audit.boxes["fault"][kept] == Fault.NONE).sum())
        yield (
            f"too many boxes: {have}, and gold confirms {right} of {int(kept.sum())}; raise the threshold, "
            "or choose it by precision"
        )
    elif 10 * boxes < gold:
        yield f"too few boxes: {have}; lower the threshold, or choose it by precision"
