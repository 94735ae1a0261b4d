"""What an audit of tags says at the thresholds of a selection.

Letters: K pictures, T tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table

from detmtl.silver.audit_estimates import Reliability
from detmtl.silver.audit_measures import Row, Share
from detmtl.silver.share_table import MOST, limit_words, share_table
from detmtl.silver.tag_audit import LEAST, TagAudit
from detmtl.silver.tag_policy import TagPolicy

ABSENT, DOUBTFUL, SHOWN = 0, 1, 2
"""What a teacher's score comes to."""


@dataclass(frozen=True)
class WrongTags:
    """A picture of which the teacher says what gold refutes.

    Attributes:
        picture: its position in gold.
        invented: (tag, the teacher's score) that it calls shown, the surest first.
        overlooked: (tag, the teacher's score) that it calls absent, the surest first.
    """

    picture: int
    invented: tuple[tuple[int, float], ...]
    overlooked: tuple[tuple[int, float], ...]


class TagMeasures:
    """An audit of tags at thresholds."""

    def __init__(self, audit: TagAudit, policy: TagPolicy):
        """Takes the audit and the thresholds."""
        self.audit, self.policy = audit, policy
        self.words = policy.words(audit.said, audit.whole)
        """(K, T): `ABSENT`, `DOUBTFUL` or `SHOWN`."""
        judged = audit.truth >= 0
        self.counts = np.zeros((len(audit.tags), 3, 2), np.int64)
        """(T, 3, 2): pictures by the teacher's word and by gold's (absent, shown)."""
        which = np.nonzero(judged)[1]
        np.add.at(self.counts, (which, self.words[judged], audit.truth[judged].astype(int)), 1)

    def confirmed(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (T,) the share of the teacher's `absent` and (T,) of its `shown` that gold confirms.

        Of tags with fewer than 10 such words that of all tags together.
        """
        return self._share(ABSENT, 0), self._share(SHOWN, 1)

    def _share(self, word: int, truth: int) -> np.ndarray:
        right, all_words = self.counts[:, word, truth], self.counts[:, word].sum(1)
        pooled = right.sum() / max(1, all_words.sum())
        return np.where(all_words >= LEAST, right / np.maximum(1, all_words), pooled)

    def classes(self) -> list[int]:
        """Returns the tags of which there is something to say, those that gold shows most first."""
        order = np.argsort(-self.counts[:, :, 1].sum(1), kind="stable").tolist()
        return [t for t in order if self.audit.known[t] and self.counts[t].sum()]

    def row(self, name: str, t: int | None = None) -> Row:
        """Returns precision and recall of tag `t`; None: of all that the teacher knows."""
        counts = self._counts(t)
        hits = int(counts[SHOWN, 1])
        precision = Share(hits, int(counts[SHOWN].sum()))
        return Row(name, precision, Share(hits, int(counts[:, 1].sum())))

    def absent(self, t: int | None = None) -> Share:
        """Returns the share of the teacher's `absent` that gold confirms."""
        counts = self._counts(t)
        return Share(int(counts[ABSENT, 0]), int(counts[ABSENT].sum()))

    def doubtful(self, t: int | None = None) -> float:
        """Returns the share of pictures in which the tag stays unknown; NaN of nothing."""
        counts = self._counts(t)
        total = counts.sum()
        return float(counts[DOUBTFUL].sum() / total) if total else float("nan")

    def reliability(
        self, t: int | None = None, probabilities: Sequence[np.ndarray] | None = None
    ) -> Reliability:
        """Returns how sure the teacher is of tags, against how often gold shows them.

        Args:
            t: the tag; None: all.
            probabilities: of the labels in `audit.evidence`, instead of their scores.
        """
        own = range(len(self.audit.tags)) if t is None else [t]
        evidence = self.audit.evidence
        sure = evidence.scores if probabilities is None else probabilities
        scores = np.concatenate([sure[k] for k in own]).astype(np.float64)
        return Reliability.of(scores, np.concatenate([evidence.hits[k] for k in own]))

    def worst(self, most: int) -> list[WrongTags]:
        """Returns the pictures of which the teacher is surest to say what gold refutes."""
        audit = self.audit
        invented = (self.words == SHOWN) & (audit.truth == 0)
        overlooked = (self.words == ABSENT) & (audit.truth == 1)
        sure = np.where(invented, audit.said, 0) + np.where(overlooked, 1 - audit.said, 0)
        order = np.argsort(-sure.sum(1), kind="stable")[:most].tolist()
        return [
            WrongTags(
                int(audit.places[k]),
                self._named(k, invented[k], -1),
                self._named(k, overlooked[k], 1),
            )
            for k in order
            if sure[k].sum() > 0
        ]

    def _named(self, k: int, which: np.ndarray, sign: int) -> tuple[tuple[int, float], ...]:
        tags = np.flatnonzero(which)
        order = tags[np.argsort(sign * self.audit.said[k, tags], kind="stable")].tolist()
        return tuple((t, float(self.audit.said[k, t])) for t in order)

    def _counts(self, t: int | None) -> np.ndarray:
        return self.counts[self.audit.known].sum(0) if t is None else self.counts[t]

    def table(self) -> Table:
        """Returns precision and recall of each tag, with 95 % intervals."""
        audit = self.audit
        left_out = f", {audit.missing} more are not labelled" if audit.missing else ""
        columns = ("tag", "absent\nbelow", "shown\nfrom", "precision", "recall")
        table = share_table(
            f"Silver tags against gold: {audit.pictures} pictures{left_out}",
            (*columns, "absent\nand right", "unknown"),
        )
        for t in sorted(self.classes()[:MOST]):
            row = self.row(audit.tags[t], t)
            table.add_row(
                escape(row.name),
                limit_words(self.policy.low[t]),
                limit_words(self.policy.high[t]),
                str(row.precision),
                str(row.recall),
                str(self.absent(t)),
                f"{self.doubtful(t):.0%}",
            )
        return table

    def problems(self) -> list[str]:
        """Returns reasons not to trust these tags, a sentence each; [] where there are none."""
        shown = self.audit.shown
        if shown < LEAST:
            return [
                f"audit: gold shows the teacher's tags {shown} times; at least {LEAST} are needed to judge"
            ]
        known = self.counts[self.audit.known]
        right, words = self.counts[:, SHOWN, 1].sum(), self.counts[:, SHOWN].sum()
        base = shown / max(1, known.sum())
        if words >= LEAST and right / words <= base:
            return [
                f"audit: of the tags that the teacher calls shown gold confirms {right / words:.0%}, no more "
                f"than chance ({base:.0%}); its tags may be in another order"
            ]
        return []

    def problems_alone(self) -> list[str]:
        """Returns reasons not to trust one of several teachers; [] where there are none, also where gold
        hardly shows its tags: it says nothing against the teacher then."""
        return [] if self.audit.shown < LEAST else self.problems()
