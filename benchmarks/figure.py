"""Draws what silver and its kin brought in every comparison: `docs/electrum.svg`, from the files of results.

    python benchmarks/figure.py

Nothing is measured here. A row is a line of a file's table of differences, found by cell, arm and
baseline; a point is the mean over seeds, the thick line its interval over seeds, the thin one below that over
pictures, both 95 %; the color is the verdict, and a hollow point that one cannot tell.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provenance import REPOSITORY

from detmtl.report.page import COLORS
from detmtl.report.told import SEEDS_ALONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = REPOSITORY / "benchmarks" / "results"
PICTURE = REPOSITORY / "docs" / "electrum.svg"
VERDICTS = {"better": COLORS[2], "cannot tell": COLORS[5], "worse": COLORS[3]}


@dataclass(frozen=True)
class Wanted:
    """A line to draw.

    Attributes:
        label: what it says.
        file: name of the results, without date and machine.
        arm, baseline: of the line.
        cell: "" where the file has none.
        metric: of the line.
    """

    label: str
    file: str
    arm: str = "electrum"
    baseline: str = "gold"
    cell: str = ""
    metric: str = "AP"


@dataclass(frozen=True)
class Found:
    """A line of a table of differences.

    Attributes:
        difference: mean over seeds.
        seeds, pictures: the intervals; the latter None where nothing is kept picture by picture.
        verdict: one of `VERDICTS`, marked where it is over seeds alone.
    """

    difference: float
    seeds: tuple[float, float]
    pictures: tuple[float, float] | None
    verdict: str

    @property
    def color(self) -> str:
        """Returns the color of the verdict."""
        return VERDICTS[self.verdict.removesuffix(SEEDS_ALONE)]

    def __str__(self) -> str:
        mark = SEEDS_ALONE * self.verdict.endswith(SEEDS_ALONE)
        return f"{self.difference:+.3f} [{self.seeds[0]:+.3f}, {self.seeds[1]:+.3f}]{mark}"


NAMES = {"yolox": "YOLOX-Nano", "fastestdet": "FastestDet"}


def _grid(file: str, count: int, teachers: Iterable[str] = NAMES) -> list[Wanted]:
    return [
        Wanted(f"{classes}, {NAMES[teacher]}", file, cell=f"{classes}, {teacher}, gold {count}")
        for classes in ("person", "three classes")
        for teacher in teachers
    ]


PARTIAL, AS = "bccd_partial", "as it comes"
CLASS_ALONE = "silver's boxes teach the class alone"
GROUPS: dict[str, list[Wanted]] = {
    "photographs, 8 gold pictures: electrum - gold alone, AP": _grid("coco128_grid", 8),
    "photographs, 16 gold pictures: electrum - gold alone, AP": [
        *_grid("coco128_grid16", 16),
        Wanted("three classes, FastestDet, 1200 steps", "coco128_noisy", cell="three classes, gold 16"),
    ],
    "photographs, 32 gold pictures: electrum - gold alone, AP": [
        *_grid("coco128_grid", 32, ("yolox",)),
        Wanted("person, FastestDet (10 seeds)", "coco128_close", cell="person, fastestdet"),
        Wanted("three classes, FastestDet (10 seeds)", "coco128_close", cell="three classes, fastestdet"),
        Wanted("three classes, YOLOX-Nano, 1200 steps", "coco128"),
        Wanted("three classes, FastestDet, 1200 steps", "coco128_fastestdet"),
        Wanted("person, FastestDet, 1200 steps", "coco128_noisy", cell="person, gold 32"),
        Wanted("three classes, a simulated poor teacher", "coco128_simulated"),
    ],
    "no teacher but the model itself: with its labels - gold alone, AP": [
        Wanted("scenes, 24 gold pictures, self-training", "scenes"),
        *(
            Wanted(f"cells, {n} gold pictures, {arm}", "bccd_few", arm, cell=f"gold {n}")
            for n in (5, 10)
            for arm in ("self-training", "online")
        ),
    ],
    "partial labels of cells, AP": [
        Wanted("absence masked - absence negative", PARTIAL, "masked", "naive", AS),
        Wanted("electrum - absence masked", PARTIAL, "electrum", "masked", AS),
        Wanted("balanced: absence masked - absence negative", PARTIAL, "masked", "naive", "balanced"),
        Wanted("balanced: electrum - absence masked", PARTIAL, "electrum", "masked", "balanced"),
        Wanted("... silver also for what gold has", "bccd_partial_boxes", "electrum", "masked"),
        Wanted("... of that, boxes teach the class alone", "bccd_partial_boxes", CLASS_ALONE, "masked"),
    ],
    "semantic maps of photographs: with silver - gold alone, mean IoU": [
        Wanted("20 gold maps, DeepLab's silver", "coco128_semantic", metric="mIoU"),
        Wanted("20 gold maps, online", "coco128_semantic_online", "online", metric="mIoU"),
    ],
}  # fmt: skip


def found(wanted: Wanted, results: Path = RESULTS) -> Found:
    """Returns what the file says.

    Raises:
        SystemExit: there is no such file, or no such line in it.
    """
    files = sorted(results.glob(f"{wanted.file}_epyc_*.md"))
    if not files:
        raise SystemExit(f"{results}/{wanted.file}_epyc_*.md: no such file")
    where = f"{files[-1]}: {wanted.arm} - {wanted.baseline} in '{wanted.cell}'"
    lines = files[-1].read_text().partition("\n## Differences\n")[2].splitlines()
    rows = [[x.strip() for x in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    if not rows:
        raise SystemExit(f"{where}: no table of differences")
    for row in rows[2:]:
        said = dict(zip(rows[0], row, strict=False))
        key = (said.get("cell", ""), said.get("arm"), said.get("baseline"), said.get("metric"))
        if key == (wanted.cell, wanted.arm, wanted.baseline, wanted.metric):
            seeds, pictures = _interval(said["over seeds"]), _interval(said["over pictures"])
            assert seeds is not None, where
            return Found(float(said["difference"]), seeds, pictures, said["verdict"])
    raise SystemExit(f"{where}: no such line")


def _interval(text: str) -> tuple[float, float] | None:
    numbers = [float(x) for x in re.findall(r"[+-]\d*\.\d+", text)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def draw(axes: "Axes", results: Path = RESULTS) -> None:
    """Draws all rows, the first on top."""
    y = 0.0
    places, labels = [], []
    for group, rows in GROUPS.items():
        y -= 1.2
        axes.text(-0.105, y, group, fontweight="bold", va="center", backgroundcolor="white")
        for wanted in rows:
            y -= 1
            line = found(wanted, results)
            color = line.color
            axes.plot(line.seeds, (y, y), color=color, linewidth=3.2, solid_capstyle="butt")
            if line.pictures is not None:  # below, where a shorter one would be hidden
                axes.plot(line.pictures, (y - 0.28, y - 0.28), color=color, linewidth=1)
            inside = "white" if color == VERDICTS["cannot tell"] else color
            axes.plot(
                [line.difference], [y], "o", color=color, markerfacecolor=inside, markersize=6
            )
            axes.text(0.108, y, str(line), va="center", fontsize=8, color=color)
            places.append(y)
            labels.append(wanted.label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, labels)
    axes.set_ylim(y - 1, 0)
    axes.set_xlim(-0.105, 0.105)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for place, (verdict, color) in zip((0.0, 0.2, 0.48), VERDICTS.items(), strict=True):
        axes.text(place, -0.09, verdict, color=color, transform=axes.transAxes, fontweight="bold")


def save(path: Path) -> None:
    """Writes the picture, by its suffix SVG or PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # the same file each time; text stays text, which is smaller and can be searched
    style = {"svg.hashsalt": "detmtl", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(style):
        rows = sum(map(len, GROUPS.values()))
        figure, axes = pyplot.subplots(figsize=(9.5, 0.29 * (rows + 1.2 * len(GROUPS)) + 0.6))
        draw(axes)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, bbox_inches="tight", metadata=metadata, facecolor="white")
        pyplot.close(figure)


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
