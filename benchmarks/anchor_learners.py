"""How many anchors learn a box, and how well they overlap it, in arms of the comparisons of additions.

    python benchmarks/anchor_learners.py --data FOLDER [--results benchmarks/results/NAME.md]

FOLDER holds bccd/, chess/ and coco128/. Nothing is trained: the boxes of up to 200 training pictures are
matched with the anchors, as `check` does it for a config.
"""

import argparse
from pathlib import Path

from provenance import provenance

from detmtl.comparing.plan import Planner, cells_of
from detmtl.comparing.settings import read_compare
from detmtl.config import find_config
from detmtl.tasks.anchor_learners import POOR, learners
from detmtl.tasks.detection import DetectionConfig

DATA = {
    "compare_additions": ("blood cells", "bccd"),
    "compare_additions_chess": ("chess pieces", "chess"),
    "compare_additions_coco128": ("photographs", "."),
}
"""Config -> what its pictures are, and where its data.root is below FOLDER."""
ARMS = {
    "plain": "IoU of .5, nine anchors a place",
    "atss": "ATSS, nine",
    "plus": "ATSS, one",
}


def main() -> None:
    """Prints the table, and writes it with what it was made by."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    lines = [
        f"| data | matching | anchors that learn a box | their IoU with it | of them below {POOR:g} | "
        "boxes that none learns |",
        "|---|---|---|---|---|---|",
    ]
    for config, (data, folder) in DATA.items():
        path = find_config(config)
        settings = read_compare(path)
        planner = Planner(settings, path, [f"data.root={args.data / folder}"])
        for arm, name in ARMS.items():
            run = planner.of_arm(cells_of(settings)[0], arm, 0)
            task = run.tasks["boxes"]
            assert isinstance(task, DetectionConfig)
            gold = run.data.sources[run.gold_sources()[0]]
            source = gold.load(
                "gold", run.data.root, run.data.label_space(), Path("runs/anchor_learners")
            )
            strides = [8 * 2**i for i in range(run.model.fpn.levels)]
            found = learners(source, run.input, task, strides)
            assert found is not None
            lines.append(
                f"| {data} | {name} | {found.anchors:.1f} | {found.overlap:.2f} | {found.poor:.0%} | "
                f"{found.unlearned} of {found.boxes} |"
            )
    table = "\n".join(lines)
    print(table)
    if args.results:
        args.results.write_text(f"# How many anchors learn a box\n\n{provenance()}\n\n{table}\n")


if __name__ == "__main__":
    main()
