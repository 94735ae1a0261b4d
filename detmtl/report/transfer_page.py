"""A transfer report for people: sentences, tables, Markdown, and one HTML page.

`found` is everywhere what report.json holds; a variant is one of its `variants`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detmtl.report.page import (
    COLORS,
    Section,
    axes,
    figure,
    note,
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

Found = Mapping[str, Any]
NOTES = {"helps": "good", "hurts": "bad", "trunk too narrow": "bad", "duplicate": "warn"}
GREEN, RED, GRAY = COLORS[2], COLORS[3], "#8a8f98"

METHOD = (
    "Every run has the same seeds, the same first weights of the trunk in a seed, and the same number of "
    "optimizer steps of the same number of pictures; each is scored after its last step. A run has the "
    "sources that label one of its tasks, so that a task alone spends none of its steps on pictures that "
    "say nothing to it. Differences are paired by seed and positive where they are better, whatever the "
    "metric. Intervals are 95 %: Student's t over seeds; over pictures a bootstrap, the same resamples "
    "for all runs; that of an overlap is over both together, Fieller's over seeds. A word other than "
    "'cannot tell' needs that neither seeds nor pictures, nor both together, explain the difference, after "
    "Holm's correction for all questions of its kind in one variant; of some metrics nothing is kept "
    "picture by picture, and words on these, marked 'seeds alone', have only ruled out the seeds. delta-m "
    "is the mean over tasks of the gain as a share of the task's own baseline here (Maninis et al. 2019), "
    "never of a number from elsewhere. 'Duplicate': a head on the frozen trunk of the task alone reaches "
    "that share of the way from a head on a trunk that never learned to the other task's own training. "
    "'Trunk too narrow': the harm is surely less on the wide trunk (the difference of the two differences is "
    "tested, not their words)."
)


def sentence(effect: Found, pictures: int) -> str:
    """Returns what an effect says, in words and numbers."""
    task, others = effect["task"], " and ".join(effect["others"])
    said = {
        "helps": f"{others} helps {task}",
        "hurts": f"{others} hurts {task}",
        "trunk too narrow": f"The trunk is too narrow for {task} beside {others}",
        "duplicate": f"{others} is a duplicate of {task}",
        "cannot tell": f"Whether {others} helps {task} cannot be told",
    }[effect["name"]]
    because = f" {_capital(effect['because'])}." if effect["because"] else ""
    return f"{said}: {_numbers(effect, pictures)}.{because} {effect['advice']}"


def _numbers(effect: Found, pictures: int) -> str:
    seeds, over = effect["seeds"], effect["pictures"]
    if seeds["mean"] is None:
        return f"{short(effect['metric'])} not known"
    share = effect["relative"]["mean"]
    told = f"{short(effect['metric'])} {seeds['mean']:+.3f}"
    told += "" if share is None else f" ({100 * share:+.0f} %)"
    if seeds["low"] is not None:
        told += f", {bounds(seeds)} over {seeds['count']} seeds"
    if over["low"] is not None:
        told += f", {bounds(over)} over {pictures} pictures"
    elif seeds["low"] is not None:
        told += ", pictures not resampled"
    return told


def sentences(found: Found) -> list[tuple[str, str]]:
    """Returns (word, sentence) of every effect, variant by variant."""
    told = []
    for variant in found["variants"]:
        where = f"{variant['name']}: " if variant["name"] else ""
        for effect in variant["effects"]:
            told.append((effect["name"], where + sentence(effect, variant["pictures"])))
        for arm, e in variant["delta_m"].items():
            if e["mean"] is not None:
                told.append(
                    ("", f"{where}delta-m of {arm}: {_percent(e)} over {e['count']} seeds.")
                )
    return told


def summary(found: Found) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the table that says most: a question a row."""
    many = ["variant"] if len(found["variants"]) > 1 else []
    columns = [
        *many,
        "task",
        "with",
        "metric",
        "alone",
        "together",
        "gain",
        "over seeds",
        "p (Holm)",
    ]
    rows = []
    for variant in found["variants"]:
        for e in variant["effects"]:
            arm = _together(found, e)
            rows.append(
                [
                    *([variant["name"]] if many else []),
                    e["task"],
                    " + ".join(e["others"]),
                    short(e["metric"]),
                    _of(variant, f"{e['task']} alone", e["metric"]),
                    _of(variant, arm, e["metric"]),
                    _signed(e["seeds"]["mean"]),
                    bounds(e["seeds"]),
                    told_p(e["corrected"]),
                    _marked(e["name"], e),
                    e["advice"],
                ]
            )
    return [*columns, "verdict", "what to do"], rows


def markdown(found: Found) -> str:
    """Returns the report as Markdown."""
    lines = [f"# {found['title']}", "", *(f"- {text}" for _, text in sentences(found)), ""]
    lines += [found["scored"], ""]
    lines += [found["note"], ""] if found["note"] else []
    lines += [f"- caution: {c}" for c in warnings(found)]
    columns, rows = summary(found)
    lines += [
        "",
        *(markdown_table(columns, rows) if rows else ["Nothing can be compared yet."]),
        "",
    ]
    for variant in found["variants"]:
        where = f" ({variant['name']})" if variant["name"] else ""
        for title, columns, rows in _tables(found, variant):
            lines += [f"## {title}{where}", "", *markdown_table(columns, rows), ""]
    lines += ["## How it was measured", "", METHOD, ""]
    for name, value in found["provenance"].items():
        lines.append(f"- {name}: " + (f"`{value}`" if name == "command" else value))
    return "\n".join(lines) + "\n"


def html(found: Found) -> str:
    """Returns the report as one self-contained page.

    Raises:
        InputError: a package that pages need is not installed.
    """
    said = sentences(found)
    head: list[str | Markup] = [note(text, NOTES.get(word, "plain")) for word, text in said]  # type: ignore[arg-type]
    if not said:
        head.append(
            note("No task is finished both alone and together in one seed: nothing to say yet.")
        )
    head += [text for text in (found["scored"], found["note"]) if text]
    head += [note(text, "warn") for text in warnings(found)]
    columns, rows = summary(found)
    left = ("task", "with", "variant", "verdict", "what to do", "metric")
    sections = [Section("", head)]
    if any(v["effects"] for v in found["variants"]):
        sections.append(Section("Verdicts", [_forest(found), table(rows, columns, left=left)]))
    for variant in found["variants"]:
        where = f" ({variant['name']})" if variant["name"] else ""
        if plots := _plots(found, variant):
            sections.append(Section(f"Affinity and gradients{where}", plots))
        sections += [
            Section(f"{title}{where}", [table(rows, columns, left=_words(columns))])
            for title, columns, rows in _tables(found, variant)
        ]
    facts = [[name, value] for name, value in found["provenance"].items()]
    sections.append(
        Section("How it was measured", [METHOD, table(facts, ["what", "value"], left=("value",))])
    )
    return page(found["title"], sections, "made by detmtl transfer")


def _tables(found: Found, variant: Found) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yields title, columns and rows of the tables behind the summary, those that there are."""
    metrics = [t["metric"] for t in found["tasks"].values()]
    yield (
        "Scores",
        ["run", *(_named(m) for m in metrics), "sources"],
        [
            [name, *(_of(variant, name, m) for m in metrics), ", ".join(arm["sources"])]
            for name, arm in variant["arms"].items()
        ],
    )
    tasks = list(found["tasks"])
    rows = [[other, *(_affinity(variant, task, other) for task in tasks)] for other in tasks]
    if any(cell for row in rows for cell in row[1:]):
        yield "Affinity: what each task (column) gains with another (row)", ["with", *tasks], rows
    for title, kind, others in (
        ("Control: the task beside random labels, against alone", "noise", False),
        ("True labels against random ones", "beyond_noise", False),
        ("On the wide trunk: together against alone", "wide", True),
        ("How much better the effect is on the wide trunk", "widened", True),
        ("What the wide trunk gives: together on it against together", "width", True),
    ):
        judged = [
            [e["task"], " + ".join(e["others"]), short(e["metric"]), *_judged(e[kind])]
            for e in variant["effects"]
            if e[kind] is not None and (others or len(e["others"]) == 1)
        ]
        if judged:
            columns = ["task", "with", "metric", "difference", "over seeds", "p (Holm)", "word"]
            yield title, columns, judged
    solved = [
        [o["other"], o["task"], _percent(o["overlap"]), "yes" if o["solved"] else "no"]
        for o in variant["overlaps"]
    ]
    if solved:
        title = "Overlap: does a head on the frozen trunk of one task solve the other?"
        yield title, ["head", "trunk of", "share of its own training", "solved"], solved
    yield from _gradient_tables(variant)
    yield "Cost", ["run", "steps", "ms/step", "peak memory (MB)"], _costs(variant)


def _gradient_tables(variant: Found) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    for arm, of in variant["gradients"].items():
        stages = list(of["cosine"])
        for kind, title in (("cosine", "cosine"), ("norm", "norm, as weighted")):
            names = list(dict.fromkeys(n for stage in stages for n in of[kind][stage]))
            rows = [[n, *(told_mean(of[kind][s].get(n)) for s in stages)] for n in names]
            if rows:
                yield f"Gradients of {arm}: {title}", [kind, *stages], rows


def _costs(variant: Found) -> list[list[str]]:
    """Returns steps, time and memory of each run; side by side with others, a rough guide."""
    return [
        [
            name,
            str(arm["steps"]),
            "-" if arm["seconds_per_step"] is None else f"{1000 * arm['seconds_per_step']:.0f}",
            "-" if arm["peak_bytes"] is None else f"{arm['peak_bytes'] / 2**20:.0f}",
        ]
        for name, arm in variant["arms"].items()
    ]


def _plots(found: Found, variant: Found) -> "list[str | Markup]":
    tasks, plots = list(found["tasks"]), []
    effects = {(e["others"][0], e["task"]): e for e in variant["effects"] if len(e["others"]) == 1}
    gains = [
        [None if (e := effects.get((o, t))) is None else e["relative"]["mean"] for t in tasks]
        for o in tasks
    ]
    if any(g is not None for row in gains for g in row):
        told = "Gain of the column's task beside the row's task, as a share of what it has alone."
        percent = [[None if g is None else 100 * g for g in row] for row in gains]
        plots.append(heat_map(percent, tasks, tasks, "{:+.1f} %", told))
    for arm, of in variant["gradients"].items():
        stages = list(of["cosine"])
        pairs = list(dict.fromkeys(p for s in stages for p in of["cosine"][s]))
        if pairs:
            values = [[(of["cosine"][s].get(p) or {}).get("mean") for s in stages] for p in pairs]
            told = f"Mean cosine of the gradients of {arm}, stage by stage, over {of['runs']} runs."
            plots.append(heat_map(values, pairs, stages, "{:+.2f}", told))
    return plots


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    form: str,
    caption: str,
) -> "Markup":
    """Returns a table as a figure, green above 0 and red below; None: an empty cell."""
    known = [abs(v) for row in values for v in row if v is not None]
    limit = max([1e-9, *known])
    fig, (ax,) = axes(min(8.5, 1.8 + 0.95 * len(columns)), 0.9 + 0.42 * len(rows))
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    for i, row in enumerate(values):
        for j, v in enumerate(row):
            if v is None:
                continue
            ax.fill(
                [j - 0.48, j + 0.48, j + 0.48, j - 0.48],
                [i - 0.46, i - 0.46, i + 0.46, i + 0.46],
                color=GREEN if v > 0 else RED,
                alpha=0.08 + 0.6 * abs(v) / limit,
                linewidth=0,
            )
            ax.text(j, i, form.format(v), ha="center", va="center", fontsize=9)
    ax.set_xticks(range(len(columns)), columns)
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    return figure(fig, caption)


def _forest(found: Found) -> "Markup":
    """Draws every effect as a share of what the task has alone, with its interval over seeds."""
    lines = [(v, e) for v in found["variants"] for e in v["effects"]]
    fig, (ax,) = axes(8.5, 0.9 + 0.36 * len(lines))
    ax.axvline(0, color=GRAY, linewidth=1)
    colors = {"helps": GREEN, "hurts": RED, "trunk too narrow": RED, "duplicate": COLORS[1]}
    names = []
    for y, (variant, e) in enumerate(lines):
        color, r = colors.get(e["name"], GRAY), e["relative"]
        if r["low"] is not None:
            ax.plot([100 * r["low"], 100 * r["high"]], [y, y], color=color, linewidth=3)
        if r["mean"] is not None:
            verdict_dot(ax, 100 * r["mean"], y, color, e["name"] in colors)
        where = f" ({variant['name']})" if variant["name"] else ""
        names.append(short_name(f"{e['task']} with {' + '.join(e['others'])}{where}", 60))
    ax.set_yticks(range(len(lines)), names)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlabel("gain, % of what the task has alone")
    return figure(
        fig,
        "Mean and 95 % interval over seeds. Green: helps; red: hurts, or the trunk is too narrow; orange: "
        "duplicate; gray and hollow: cannot tell.",
    )


def _affinity(variant: Found, task: str, other: str) -> str:
    for e in variant["effects"]:
        if e["task"] == task and e["others"] == [other]:
            return "-" if e["relative"]["mean"] is None else f"{100 * e['relative']['mean']:+.1f} %"
    return ""


def _together(found: Found, effect: Found) -> str:
    tasks = {effect["task"], *effect["others"]}
    return " + ".join(t for t in found["tasks"] if t in tasks)


def _judged(of: Found) -> list[str]:
    mean, word = of["seeds"]["mean"], _marked(of["word"], of)
    return [_signed(mean), bounds(of["seeds"]), told_p(of["corrected"]), word]


def _marked(word: str, of: Found) -> str:
    """Returns the word on a difference, marked where pictures may explain it."""
    sure = word in ("cannot tell", "duplicate") or of["pictures"]["low"] is not None
    return word if sure else word + SEEDS_ALONE


def _words(columns: Sequence[str]) -> list[str]:
    return [c for c in columns if c in ("with", "metric", "word", "sources", "trunk of", "solved")]


def _of(variant: Found, arm: str, metric: str) -> str:
    about = variant["arms"].get(arm, {"metrics": {}})["metrics"].get(metric)
    return "-" if about is None else told_mean(about["estimate"])


def _named(metric: str) -> str:
    return metric.replace("/", " ", 1)


def _percent(e: Found) -> str:
    if e["mean"] is None:
        return "- (its own training does not surely beat a trunk that never learned)"
    interval = "" if e["low"] is None else f" [{100 * e['low']:.0f}, {100 * e['high']:.0f}]"
    return f"{100 * e['mean']:.0f} %{interval}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
