"""A comparison's result for people: a table, Markdown, and one HTML page.

`found` is everywhere what report.json holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detmtl.report.page import (
    COLORS,
    Section,
    axes,
    curve,
    figure,
    note,
    numbers,
    page,
    short_name,
    table,
    verdict_dot,
)
from detmtl.report.told import (
    SEEDS_ALONE,
    bounds,
    markdown_table,
    short,
    told_mean,
    told_p,
    warnings,
)

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

Found = Mapping[str, Any]
NOTES = {"better": "good", "worse": "bad", "cannot tell": "plain"}

METHOD = (
    "Every arm was trained with the same seeds, the same first weights of a seed and the same number of "
    "optimizer steps, unless the settings say otherwise. A difference is paired: arm minus baseline, seed "
    "by seed. Two things are left to chance, and each has an interval of its own (95 %): the seed "
    "(Student's t over seeds) and the pictures that happen to be scored (percentiles of a "
    "bootstrap over pictures, the same resamples for all runs). An arm is called better or worse only if "
    "neither alone nor both together could have made the difference: its probability is the largest of "
    "the three, corrected for the number of arms that are compared with one baseline in one cell (Holm). "
    "Otherwise the verdict is that one cannot tell, which is not the same as equal. A share of the way "
    "has one interval, over seeds (Fieller's) and pictures together. Of some metrics nothing is "
    "kept picture by picture ('-' over pictures): the verdict on these, marked 'seeds alone', has only "
    "ruled out the seeds."
)


def summary(found: Found, differences: bool = True) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the table that says most, an arm a row.

    Args:
        differences: whether with the differences in the first metric, and the verdicts on them.
    """
    metrics, baselines = found["metrics"], found["baselines"] if differences else []
    many = len(found["cells"]) > 1
    columns = [*(["cell"] if many else []), "arm", *(short(m) for m in metrics)]
    columns += [f"{short(metrics[0])} - {b}" for b in baselines]
    columns += [f"verdict on {b}" for b in baselines] + ["models", "s/run"]
    rows = []
    for cell in found["cells"]:
        for arm, about in cell["arms"].items():
            row = [cell["name"], arm] if many else [arm]
            row += [_of(about, m) for m in metrics]
            against = [_comparison(cell, arm, b, metrics[0]) for b in baselines]
            row += ["" if c is None else _interval(c["seeds"]) for c in against]
            row += ["" if c is None else _verdict(c) for c in against]
            row += [str(about["models"]), _seconds(about["seconds"])]
            rows.append(row)
    return columns, rows


def markdown(found: Found) -> str:
    """Returns the report as Markdown."""
    lines = [f"# {found['title']}", "", *(f"- {v['text']}" for v in found["verdict"]), ""]
    lines += [found["scored"], ""]
    lines += [found["note"], ""] if found["note"] else []
    lines += [f"- caution: {c}" for c in warnings(found)]
    lines += ["", *markdown_table(*summary(found)), ""]
    lines += ["Mean over seeds ± half of its 95 % interval (Student's t); s/run: seconds.", ""]
    for title, columns, rows in _tables(found):
        lines += [f"## {title}", "", *markdown_table(columns, rows), ""]
    lines += ["## How it was measured", "", METHOD, ""]
    lines += [f"- {name}: {_code(name, value)}" for name, value in found["provenance"].items()]
    return "\n".join(lines) + "\n"


def html(found: Found) -> str:
    """Returns the report as one self-contained page.

    Raises:
        InputError: a package that pages need is not installed.
    """
    head: list[str | Markup] = [note(v["text"], NOTES[v["word"]]) for v in found["verdict"]]  # type: ignore[arg-type]
    if not (found["verdict"] or any(cell["same_runs"] for cell in found["cells"])):
        head.append(note("No two arms are finished in one seed: there is nothing to compare yet."))
    head += [text for text in (found["scored"], found["note"]) if text]
    head += [note(text, "warn") for text in warnings(found)]
    if len(found["cells"]) == 1:
        head.append(numbers(_large(found)))
    sections = [Section("", head), Section("At a glance", _glance(found))]
    if found["curve"]:
        sections.insert(1, Section("Curve", _curves(found)))
    sections.append(Section("Scores", _scores(found)))
    sections += [
        Section(title, [table(rows, columns, left=("arm", "baseline", "verdict", "why", "cell"))])
        for title, columns, rows in _tables(found)
    ]
    if calibration := _reliability(found):
        sections.append(Section("Calibration", calibration))
    about = [[name, value] for name, value in found["provenance"].items()]
    sections.append(
        Section("How it was measured", [METHOD, table(about, ["what", "value"], left=("value",))])
    )
    return page(found["title"], sections, "made by detmtl compare")


def _large(found: Found) -> list[tuple[str, str]]:
    metric = found["metrics"][0]
    told = []
    for arm, about in found["cells"][0]["arms"].items():
        mean = about["metrics"][metric]["estimate"]["mean"] if metric in about["metrics"] else None
        told.append(("-" if mean is None else f"{mean:.3f}", f"{short(metric)}, {arm}"))
    return told


def _glance(found: Found) -> "list[str | Markup]":
    blocks: list[str | Markup] = []
    if any(cell["comparisons"] for cell in found["cells"]):
        blocks.append(_forest(found))
    if len(found["cells"]) == 1 and found["cells"][0]["arms"]:
        blocks.append(_dots(found["cells"][0], found["metrics"]))
    return blocks


def _scores(found: Found) -> "list[str | Markup]":
    columns, rows = summary(found)
    left = ["arm", *(c for c in columns if c.startswith("verdict"))]
    told = "Mean over seeds ± half of its 95 % interval; differences with their interval."
    return [table(rows, columns, left=left), told]


def _forest(found: Found) -> "Markup":
    """Draws the differences in the first metric with both intervals, a line each; cells side by side."""
    metric = found["metrics"][0]
    lines = [
        (cell, c) for cell in found["cells"] for c in cell["comparisons"] if c["metric"] == metric
    ]
    pairs = list(dict.fromkeys((c["baseline"], c["arm"]) for _, c in lines))
    lines.sort(key=lambda line: pairs.index((line[1]["baseline"], line[1]["arm"])))
    fig, (ax,) = axes(8.5, 0.9 + (0.42 if len(found["cells"]) == 1 else 0.27) * len(lines))
    ax.axvline(0, color="#8a8f98", linewidth=1)
    colors = {"better": COLORS[2], "worse": COLORS[3], "cannot tell": COLORS[5]}
    for y, (_, c) in enumerate(lines):
        color = colors[c["word"]]
        for over, width, shift in (("seeds", 3.5, -0.11), ("pictures", 1.5, 0.15)):
            e = c[over]
            if e["low"] is not None:
                ax.plot([e["low"], e["high"]], [y + shift] * 2, color=color, linewidth=width)
        if c["seeds"]["mean"] is not None:
            verdict_dot(ax, c["seeds"]["mean"], y, color, c["word"] != "cannot tell")
    names = [
        f"{short_name(c['arm'], 24)} - {short_name(c['baseline'], 24)}"
        + (f": {short_name(cell['name'], 40)}" if cell["name"] else "")
        for cell, c in lines
    ]
    ax.set_yticks(range(len(lines)), names)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlabel(f"difference in {short(metric)}")
    return figure(
        fig,
        "Thick: 95 % interval over seeds. Thin: over pictures. Green: better, red: worse, gray and hollow: "
        "cannot tell (after correction for several arms).",
    )


def _dots(cell: Found, metrics: Sequence[str]) -> "Markup":
    """Draws each arm's seeds and mean, one panel a metric."""
    arms = list(cell["arms"])
    fig, panels = axes(8.5, 1.0 + 0.38 * len(arms), columns=len(metrics))
    for ax, metric in zip(panels, metrics, strict=True):
        for y, arm in enumerate(arms):
            about = cell["arms"][arm]["metrics"].get(metric)
            if about is None:
                continue
            color = COLORS[y % len(COLORS)]
            values = [v for v in about["values"].values() if v is not None]
            ax.plot(values, [y] * len(values), "o", color=color, alpha=0.45, markersize=5)
            _with_interval(ax, about["estimate"], y, color)
        ax.set_yticks(
            range(len(arms)), [short_name(arm) if ax is panels[0] else "" for arm in arms]
        )
        ax.set_ylim(len(arms) - 0.4, -0.6)
        ax.set_xlabel(short(metric))
    return figure(fig, "Dots: seeds. Bar: mean with its 95 % interval over seeds.")


def _with_interval(ax: "Axes", e: Found, y: float, color: str) -> None:
    if e["mean"] is None:
        return
    ax.plot(e["mean"], y, "|", color=color, markersize=16, markeredgewidth=2.5)
    if e["low"] is not None:
        ax.plot([e["low"], e["high"]], [y, y], color=color, linewidth=2)


def _curves(found: Found) -> "list[str | Markup]":
    """Draws each arm over the curve's axis, one panel for each combination of the grid."""
    metric, panels = found["metrics"][0], {}
    for cell in found["cells"]:
        panels.setdefault(", ".join(cell["axes"].values()), []).append(cell)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig, drawn = axes(8.5, 0.4 + 3.1 * rows, rows=rows, columns=columns)
    arms = list(dict.fromkeys(arm for cell in found["cells"] for arm in cell["arms"]))
    for ax in drawn[len(panels) :]:
        ax.set_visible(False)
    for ax, (name, cells) in zip(drawn, panels.items(), strict=False):
        for i, arm in enumerate(arms):
            points = [
                (cell["x"], cell["arms"][arm]["metrics"][metric]["estimate"])
                for cell in cells
                if arm in cell["arms"]
            ]
            points = [(x, e) for x, e in points if e["mean"] is not None]
            if not points:
                continue
            x, (form, color) = [p[0] for p in points], curve(i)
            ax.plot(
                x,
                [e["mean"] for _, e in points],
                form,
                color=color,
                label=short_name(arm),
                markersize=4,
            )
            known = [(p, e) for p, e in points if e["low"] is not None]
            if known:
                low, high = ([e[end] for _, e in known] for end in ("low", "high"))
                ax.fill_between(
                    [p for p, _ in known], low, high, color=color, alpha=0.15, linewidth=0
                )
        ax.set_title(short_name(name), fontsize=10)
        ax.set_xlabel(found["curve"])
        ax.set_xticks(sorted({cell["x"] for cell in cells}))
        ax.set_ylabel(short(metric))
    drawn[0].legend(frameon=False, fontsize=9)
    return [figure(fig, "Mean over seeds; bands: its 95 % interval.")]


def _reliability(found: Found) -> "list[str | Markup]":
    """Draws how often boxes of a score are right, of the first cell."""
    cell = found["cells"][0]
    arms = {arm: a["reliability"] for arm, a in cell["arms"].items() if a["reliability"]}
    if not arms:
        return []
    fig, (ax,) = axes(5.2, 3.8)
    ax.plot([0, 1], [0, 1], color="#8a8f98", linewidth=1, linestyle="--")
    for i, (arm, rows) in enumerate(arms.items()):
        form, color = curve(i)
        ax.plot(
            [r[0] for r in rows],
            [r[1] for r in rows],
            form,
            color=color,
            label=short_name(arm),
            markersize=4,
        )
    ax.set_xlabel("score")
    ax.set_ylabel("share that is right (IoU .5)")
    ax.legend(frameon=False, fontsize=9)
    where = f" ({cell['name']})" if cell["name"] else ""
    caption = (
        f"Boxes of all seeds by score{where}. On the dashed line a score is the chance to be right."
    )
    return [figure(fig, caption)]


def _tables(found: Found) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yields title, columns and rows of the tables behind the summary."""
    many = ["cell"] if len(found["cells"]) > 1 else []
    columns = [*many, "arm", "baseline", "metric", "difference", "over seeds", "over pictures"]
    rows = [
        [
            *([cell["name"]] if many else []),
            *_difference_row(c),
            told_p(c["corrected"]),
            _verdict(c),
            c["reason"],
        ]
        for cell in found["cells"]
        for c in cell["comparisons"]
    ]
    yield "Differences", [*columns, "p (Holm)", "verdict", "why"], rows
    gaps = [
        [*([cell["name"]] if many else []), g["arm"], g["baseline"], short(g["metric"]), _gap(g)]
        for cell in found["cells"]
        for g in cell["gap"]
    ]
    if gaps:
        title = f"Share of the way to {found['ceiling']}"
        yield title, [*many, "arm", "baseline", "metric", "share of the way"], gaps
    yield from _detail_tables(found, many, columns)
    yield (
        "Time",
        [*many, "arm", "steps", "ms/step", "s/run"],
        [
            [
                *([cell["name"]] if many else []),
                arm,
                str(a["steps"]),
                "-" if a["seconds_per_step"] is None else f"{1000 * a['seconds_per_step']:.0f}",
                _seconds(a["seconds"]),
            ]
            for cell in found["cells"]
            for arm, a in cell["arms"].items()
        ],
    )


def _detail_tables(
    found: Found, many: list[str], columns: list[str]
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    names = list(
        dict.fromkeys(
            name
            for cell in found["cells"]
            for a in cell["arms"].values()
            for name in a["metrics"]
            if name not in found["metrics"]
        )
    )
    if not names:
        return
    yield (
        "By class and size",
        [*many, "arm", *(short(n) for n in names)],
        [
            [
                *([cell["name"]] if many else []),
                arm,
                *(_of(a, n) for n in names),
            ]
            for cell in found["cells"]
            for arm, a in cell["arms"].items()
        ],
    )
    rows = [
        [*([cell["name"]] if many else []), *_difference_row(c)]
        for cell in found["cells"]
        for c in cell["details"]
    ]
    yield "Differences by class and size (no verdict: not corrected)", columns, rows


def _difference_row(c: Found) -> list[str]:
    mean = c["seeds"]["mean"]
    return [
        c["arm"],
        c["baseline"],
        short(c["metric"]),
        "-" if mean is None else f"{mean:+.3f}",
        bounds(c["seeds"]),
        bounds(c["pictures"]),
    ]


def _comparison(cell: Found, arm: str, baseline: str, metric: str) -> Found | None:
    for c in cell["comparisons"]:
        if (c["arm"], c["baseline"], c["metric"]) == (arm, baseline, metric):
            return c
    return None


def _verdict(c: Found) -> str:
    sure = c["word"] == "cannot tell" or c["pictures"]["low"] is not None
    return c["word"] if sure else c["word"] + SEEDS_ALONE


def _of(arm: Found, metric: str) -> str:
    return told_mean(arm["metrics"][metric]["estimate"]) if metric in arm["metrics"] else "-"


def _interval(e: Found) -> str:
    return "-" if e["mean"] is None else f"{e['mean']:+.3f} {bounds(e)}".removesuffix(" -")


def _gap(g: Found) -> str:
    if g["share"] is None:
        return "- (the ceiling is not surely above the baseline)"
    return f"{100 * g['share']:.0f} % [{100 * g['low']:.0f}, {100 * g['high']:.0f}]"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f}"


def _code(name: str, value: str) -> str:
    return f"`{value}`" if name == "command" else value
