"""What an audit of maps says at the thresholds of a selection.

Letters: C classes, K pictures, R rows of the audit's table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table

from detmtl.silver.audit_estimates import Reliability
from detmtl.silver.audit_measures import Row, Share
from detmtl.silver.map_audit import LEAST_MAPS, MapAudit, observations, shares
from detmtl.silver.share_table import MOST, limit_words, share_table


@dataclass(frozen=True)
class Disagreement:
    """A picture on which gold and the teacher disagree.

    Attributes:
        picture: its position in gold.
        share: of its judged pixels that gold refutes.
        pairs: (gold's class, the teacher's class, share of its judged pixels), the largest first; C for
            none of the classes.
    """

    picture: int
    share: float
    pairs: tuple[tuple[int, int, float], ...]


class MapMeasures:
    """An audit of maps at thresholds."""

    def __init__(self, audit: MapAudit, limits: np.ndarray):
        """Takes the audit and (C + 1,) confidences from which pixels are labels, the last of them of
        pixels that are none of the classes."""
        self.audit, self.limits = audit, limits
        given = audit.index("given")
        self.kept = audit.rows["level"] >= levels_of(limits)[given]
        """(R,) bool: the rows that are labels."""
        self._true, self._given, self._hits = audit.counts(self.kept)
        size = len(audit.classes) + 1
        code = audit.index("true") * size + given
        flat = np.bincount(code, weights=audit.rows["pixels"] * self.kept, minlength=size * size)
        self.pixels = flat.astype(np.int64).reshape(size, size)
        """(C + 1, C + 1), true class (rows) by the teacher's; the last are none of the classes."""
        self.shown = (self._true[:, :-1] > 0).sum(0)
        """(C,) gold pictures that show the class."""
        self.given = (self._given[:, :-1] > 0).sum(0)
        """(C,) pictures to which the teacher gives the class."""
        self.confirmed = (self._hits[:, :-1] > 0).sum(0)
        """(C,) pictures in which gold confirms pixels to which the teacher gives the class."""

    def precision(self) -> np.ndarray:
        """Returns (C,): the share of the teacher's pixels of a class that gold confirms.

        Of a class given to fewer than 5 pictures that of all classes together; 0 of one it cannot
        give.
        """
        confirmed, given = np.diag(self.pixels)[:-1], self.pixels.sum(0)[:-1]
        return shares(confirmed, given, self.given, self.audit.gives)

    def found(self) -> np.ndarray:
        """Returns (C,): the share of gold's pixels of a class that the teacher gives to any class, and
        does not take for background.

        Of a class shown in fewer than 5 pictures that of all known classes together; 0 of one it does
        not know.
        """
        true = self.pixels.sum(1)[:-1]
        return shares(true - self.pixels[:-1, -1], true, self.shown, self.audit.known)

    def iou(self) -> np.ndarray:
        """Returns (C,): intersection over union; NaN of what gold does not show."""
        both, true, given = np.diag(self.pixels), self.pixels.sum(1), self.pixels.sum(0)
        union = np.maximum(1, true + given - both)
        return np.where(true > 0, both / union, np.nan)[:-1]

    def mean_iou(self) -> float:
        """Returns the mean over the classes that the teacher knows and gold shows; NaN of none."""
        iou = self.iou()[self.audit.known]
        return float(np.nanmean(iou)) if (iou == iou).any() else float("nan")

    def classes(self) -> list[int]:
        """Returns the classes of which there is something to say, those that gold shows most first."""
        true, given = self.pixels.sum(1)[:-1], self.pixels.sum(0)[:-1]
        order = np.argsort(-true, kind="stable")
        return [int(c) for c in order if true[c] or given[c]]

    def row(self, name: str, c: int | None = None) -> Row:
        """Returns precision and recall over the pixels of class `c`; None: precision over all classes that
        the teacher can give, recall over those that it knows, since of others it misses nothing."""
        gives, known = self.audit.gives, self.audit.known
        if c is not None:
            gives = known = np.arange(len(known)) == c

        def of(pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
            return pixels[:, :-1][:, classes].sum(1)[:, None]

        precision = _share(of(self._hits, gives), of(self._given, gives))
        return Row(name, precision, _share(of(self._hits, known), of(self._true, known)))

    def reliability(
        self, c: int | None = None, probabilities: Sequence[np.ndarray] | None = None
    ) -> Reliability:
        """Returns how sure the teacher is of pixels, against how often it is right, over all that it
        gives a class.

        Args:
            c: the class; None: all.
            probabilities: of the labels in `audit.evidence`, instead of their scores.
        """
        own = range(len(self.audit.classes)) if c is None else [c]
        evidence, pixels = self.audit.evidence, self.audit.evidence_pixels
        sure = evidence.scores if probabilities is None else probabilities
        parts = (sure, evidence.hits, pixels, evidence.weights)
        scores, hits, counts, worth = (np.concatenate([part[k] for k in own]) for part in parts)
        return Reliability.of(scores.astype(np.float64), hits, counts=counts, observations=worth)

    def worst(self, most: int) -> list[Disagreement]:
        """Returns the pictures with the most refuted pixels, each weighed by how sure the teacher is of
        it. Of shares a picture of which gold knows little would come first."""
        names, at = self.audit.places
        true, given, rows = self.audit.index("true"), self.audit.index("given"), self.audit.rows
        wrong = self.kept & (true != given)
        judged = np.bincount(at, weights=rows["pixels"] * self.kept, minlength=len(names))
        sure = np.bincount(at, rows["pixels"] * wrong * (rows["level"] / 255), len(names))
        order = np.argsort(-sure, kind="stable")
        found = []
        for k in order[:most].tolist():
            if sure[k] > 0:
                own = wrong & (at == k)
                pairs = _pairs(true[own], given[own], rows["pixels"][own] / judged[k])
                share = float(rows["pixels"][own].sum() / judged[k])
                found.append(Disagreement(int(names[k]), share, pairs))
        return found

    def table(self) -> Table:
        """Returns precision and recall of each class that either shows, with 95 % intervals."""
        audit = self.audit
        left_out = f", {audit.missing} more are not labelled" if audit.missing else ""
        columns = ("class", "known", "from", "precision", "recall", "not\nbackground")
        table = share_table(
            f"Silver maps against gold: {audit.pictures} pictures{left_out}",
            (*columns, "gold\npx", "silver\npx"),
        )
        true, given = self.pixels.sum(1), self.pixels.sum(0)
        all_pixels, found = max(1, self.pixels.sum()), self.found()
        for c in sorted(self.classes()[:MOST]):
            row = self.row(audit.classes[c], c)
            table.add_row(
                escape(row.name),
                "yes" if audit.known[c] else "no",
                limit_words(self.limits[c]),
                str(row.precision),
                str(row.recall),
                f"{found[c]:.2f}" if audit.known[c] else "-",
                f"{true[c] / all_pixels:.2%}",
                f"{given[c] / all_pixels:.2%}",
            )
        return table

    def problems(self) -> list[str]:
        """Returns reasons not to trust these maps, a sentence each; [] where there are none."""
        audit, true = self.audit, self.pixels[:-1].sum(1)
        if not true[audit.known].sum():
            return [
                "audit: gold shows none of the classes that the teacher knows; it cannot be judged"
            ]
        problems = []
        given = self.pixels[:-1, :-1][audit.known].sum()
        if given < 0.05 * true[audit.known].sum():
            problems.append(
                f"audit: the teacher gives a class to {given / true[audit.known].sum():.1%} of the pixels "
                "that are of its classes; its maps may be of resized or other pictures, or all background"
            )
        for c in np.flatnonzero(audit.known & (self.shown >= LEAST_MAPS)).tolist():
            row = self.pixels[c, :-1]
            other = int(row.argmax())
            if other != c and row[other] > 0.5 * row.sum() and row.sum() > 0.1 * true[c]:
                problems.append(
                    f"audit: {row[other] / row.sum():.0%} of the pixels of '{audit.classes[c]}' are called "
                    f"'{audit.classes[other]}' by the teacher; its classes may be in another order"
                )
        return problems

    def remarks(self) -> list[str]:
        """Returns what to know of classes that the teacher does not look for and yet gives a name, a sentence
        each: its classes may mean more than ours, as Pascal VOC's dining tables hold the food on them.

        Told where gold has it in several pictures, of at least a third of the class's pixels and a tenth of
        those that the teacher gives the name.
        """
        audit, names, told = self.audit, self.audit.classes, []
        true, given = self.pixels.sum(1), self.pixels.sum(0)
        for c in np.flatnonzero(~audit.gives & (self.shown > 1)).tolist():
            k = int(self.pixels[c, :-1].argmax())
            pixels = int(self.pixels[c, k])
            if 3 * pixels >= true[c] > 0 and 10 * pixels >= given[k]:
                told.append(
                    f"The teacher, which does not look for '{names[c]}', calls {pixels / true[c]:.0%} "
                    f"of its pixels '{names[k]}', and these are {pixels / given[k]:.0%} of what it calls so; "
                    "silver teaches that. If one of its classes means more than yours, list it in "
                    "select_maps.background; least_precision leaves out all that it calls so"
                )
        return told

    def problems_alone(self) -> list[str]:
        """Returns reasons not to trust one of several teachers; [] where there are none, also where gold
        hardly shows its classes: it says nothing against the teacher then."""
        return [] if self.audit.little_gold else self.problems()


def levels_of(limits: np.ndarray) -> np.ndarray:
    """Returns confidences (C,) as numbers of 0 to 255; a limit that is a level stays it."""
    return np.round(limits.astype(np.float64) * 255, 3)


def _share(parts: np.ndarray, wholes: np.ndarray) -> Share:
    number, total = float(observations(parts, wholes)[0]), wholes.sum()
    return Share(number * float(parts.sum() / total), number) if total else Share(0, 0)


def _pairs(
    true: np.ndarray, given: np.ndarray, share: np.ndarray
) -> tuple[tuple[int, int, float], ...]:
    codes, at = np.unique(true * 256 + given, return_inverse=True)
    sums = np.bincount(at, weights=share)
    order = np.argsort(-sums, kind="stable").tolist()
    return tuple((int(codes[k] // 256), int(codes[k] % 256), float(sums[k])) for k in order)
