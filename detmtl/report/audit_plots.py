"""The plots of an audit."""

from typing import TYPE_CHECKING

import numpy as np

from detmtl.report.page import COLORS, axes, figure, short_name
from detmtl.silver.audit_estimates import Reliability, wilson
from detmtl.silver.audit_measures import SIZES, Measures, Row

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes


def shares_plot(rows: list[Row]) -> "Markup":
    """Returns precision and recall of each row with their intervals, the first row on top."""
    drawn, (left, right) = axes(7.6, 0.7 + 0.24 * len(rows), columns=2)
    for ax, name, color in ((left, "precision", COLORS[0]), (right, "recall", COLORS[1])):
        _intervals(ax, rows, name, color)
        ax.set_xlabel(f"{name}, with 95 % interval")
    right.set_yticklabels([])
    return figure(drawn)


def _intervals(ax: "Axes", rows: list[Row], name: str, color: str) -> None:
    shares = [getattr(row, name) for row in rows]
    at = [i for i, share in enumerate(shares) if share.count]
    ends = np.array([shares[i].interval for i in at]).reshape(-1, 2)
    ax.hlines(at, ends[:, 0], ends[:, 1], color=color, alpha=0.45, linewidth=3)
    ax.plot([shares[i].value for i in at], at, "o", color=color, markersize=4)
    ax.set_yticks(range(len(rows)), [short_name(row.name) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-0.02, 1.02)
    ax.grid(False, axis="y")


def size_plot(measures: Measures) -> "Markup":
    """Returns precision and recall by size."""
    rows = [measures.row(name, size=i) for i, (name, _, _) in enumerate(SIZES)]
    return shares_plot(rows)


def reliability_plot(
    before: Reliability, after: Reliability | None, what: str = "boxes"
) -> "Markup":
    """Returns how often labels are right against how sure the teacher is, and how many there are."""
    drawn, (left, right) = axes(7.6, 3.3, columns=2)
    left.plot([0, 1], [0, 1], "--", color=COLORS[5], linewidth=1, label="perfectly calibrated")
    curves = [("scores", before, COLORS[0])]
    if after is not None:
        curves.append(("calibrated", after, COLORS[1]))
    width = 0.8 / len(curves)
    for i, (name, curve, color) in enumerate(curves):
        some = np.flatnonzero(curve.counts)
        number = curve.observations[some]
        hits = curve.share[some] * number
        ends = np.array([wilson(k, n) for k, n in zip(hits, number, strict=True)]).reshape(-1, 2)
        left.vlines(curve.score[some], ends[:, 0], ends[:, 1], color=color, alpha=0.4, linewidth=3)
        left.plot(curve.score[some], curve.share[some], "o-", color=color, markersize=4, label=name)
        bins = np.arange(len(curve.counts))
        shift = (i - (len(curves) - 1) / 2) * width
        right.bar(bins + 0.5 + shift, curve.counts, width, color=color, label=name)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share that gold confirms")
    left.legend(fontsize=8)
    right.set_xticks(range(0, 11, 2), [f"{k / 10:.1f}" for k in range(0, 11, 2)])
    right.set(xlabel="score", ylabel=what, yscale="log" if _steep(before.counts) else "linear")
    return figure(drawn)


def _steep(counts: np.ndarray) -> bool:
    """Returns whether the smaller of counts would not be seen beside the largest."""
    some = counts[counts > 0]
    return bool(len(some)) and some.max() > 30 * some.min()


def threshold_plot(measures: Measures) -> "Markup":
    """Returns precision and recall over all classes that the teacher knows against the score from which
    boxes count."""
    audit, objects = measures.audit, measures.row("all").recall.count
    scores = np.sort(audit.boxes["score"])[::-1]
    at = np.unique(np.concatenate([scores[:: max(1, len(scores) // 300)], scores[-1:]]))
    hits = np.sort(np.concatenate([-s[h] for s, h in zip(audit.scores, audit.hits, strict=True)]))
    counts = np.searchsorted(-scores, -at, side="right")
    confirmed = np.searchsorted(hits, -at, side="right")
    drawn, (ax,) = axes(7.6, 3.0)
    ax.plot(at, confirmed / np.maximum(1, counts), color=COLORS[0], label="precision")
    ax.plot(at, confirmed / max(1, objects), color=COLORS[1], label="recall")
    limits = measures.limits[np.isfinite(measures.limits)]
    if len(limits):
        low, high = limits.min(), limits.max()
        words = "threshold" if low == high else "thresholds"
        ax.axvspan(low, max(high, low + 0.002), color=COLORS[5], alpha=0.5, label=words, lw=0)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="boxes from this score on")
    ax.legend(fontsize=8)
    return figure(drawn)


def density_plot(gold: np.ndarray, silver: np.ndarray) -> "Markup":
    """Returns how many pictures have how many boxes."""
    most = int(max(gold.max(initial=0), silver.max(initial=0)))
    step = max(1, -(-most // 30))
    edges = np.arange(0, most + step + 1, step) - 0.5
    drawn, (ax,) = axes(7.6, 2.6)
    names = (("gold", gold, COLORS[1]), ("silver", silver, COLORS[0]))
    for i, (name, counts, color) in enumerate(names):
        height, _ = np.histogram(counts, edges)
        middle = (edges[1:] + edges[:-1]) / 2
        ax.bar(middle + (i - 0.5) * 0.4 * step, height, 0.4 * step, color=color, label=name)
    ax.set(xlabel="boxes in a picture", ylabel="pictures")
    ax.legend(fontsize=8)
    return figure(drawn)


def band_plot(measures: Measures, ignore_from: np.ndarray | None) -> "Markup":
    """Returns what an ignore band rescues and costs, against the score that it begins at; `ignore_from`
    (C,), where it begins in the selection, is marked."""
    limits = measures.limits[np.isfinite(measures.limits)]
    scores = measures.audit.boxes["score"]
    top = float(limits.max()) if len(limits) else 1.0
    at = np.linspace(min(float(scores.min(initial=top)), top), top, 40)
    bands = [measures.band(float(score)) for score in at]
    drawn, (left, right) = axes(7.6, 2.8, columns=2)
    rescued = [band.rescued / max(1, band.missed) for band in bands]
    left.plot(at, rescued, color=COLORS[2])
    left.set(ylim=(0, 1), ylabel="share of missed objects rescued")
    pictures = max(1, measures.audit.pictures)
    right.plot(at, [b.background / pictures for b in bands], color=COLORS[3])
    right.set(ylim=(0, None), ylabel="background boxes per picture")
    for ax in (left, right):
        ax.set_xlabel("band from this score on")
        if ignore_from is not None:
            low, high = float(ignore_from.min()), min(top, float(ignore_from.max()))
            ax.axvspan(low, max(high, low + 0.002), color=COLORS[5], alpha=0.5, lw=0)
    return figure(drawn)
