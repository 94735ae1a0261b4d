"""Steps of augmentation, as YAML names them: transforms of albumentations with their arguments, checked."""

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks the network for a newer version

import albumentations
from albumentations.core.composition import BaseCompose, TransformType
from albumentations.core.transforms_interface import (
    BasicTransform,
    DualTransform,
    ImageOnlyTransform,
    Transform3D,
)
from pydantic import ValidationError

__all__ = ["Step", "albumentations", "copying", "flat", "transforms"]

Step = dict[str, dict[str, Any] | None]
"""One entry of YAML: the name of a transform and its arguments."""

COMPOSITIONS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")

REFUSED = {
    "Normalize": "the network normalizes by itself",
    "ToFloat": "the network takes uint8",
    "FromFloat": "the picture is uint8 already",
    "ToTensorV2": "the loader makes the tensor",
    "Lambda": "a function cannot be named in a file",
}


def flat(steps: Sequence[TransformType]) -> list[TransformType]:
    """Returns the transforms, those inside of others too."""
    return [
        x
        for step in steps
        for x in (step, *(flat(step.transforms) if isinstance(step, BaseCompose) else ()))
    ]


_MOVING = (
    albumentations.Affine,
    albumentations.CenterCrop,
    albumentations.Crop,
    albumentations.Pad,
    albumentations.RandomCrop,
    albumentations.Rotate,
)
"""Transforms that copy boxes and points where they mirror the picture into its margin; the others that know
margins, as those that distort, give back each box and point once."""

_MIRRORING = (2, 4)
"""OpenCV's border modes, REFLECT and REFLECT_101."""


def copying(steps: Sequence[TransformType]) -> list[str]:
    """Returns the names of those transforms, inside of others too, that may give a box or a point back
    several times."""
    return [
        type(step).__name__
        for step in flat(steps)
        if isinstance(step, _MOVING)
        and getattr(step, "border_mode", None) in _MIRRORING
        and getattr(step, "pad_if_needed", True)
    ]


def transforms(steps: Any, where: str, problems: list[str]) -> list[TransformType]:
    """Returns the transforms that `steps` name; what is wrong with them is added to `problems`."""
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        problems.append(f"{where}: found {steps!r}; a list of steps is needed")
        return []
    made = []
    for i, step in enumerate(steps):
        at = f"{where}[{i}]"
        if isinstance(step, Mapping) and len(step) == 1:
            ((name, arguments),) = step.items()
            made.append(_transform(str(name), arguments, at, problems))
        else:
            problems.append(
                f"{at}: found {step!r}; a step is one name and its arguments, as HorizontalFlip: {{p: 0.5}}"
            )
    return [x for x in made if x is not None]


def _transform(name: str, arguments: Any, where: str, problems: list[str]) -> TransformType | None:
    kind = _kind(name, where, problems)
    if arguments is not None and not isinstance(arguments, Mapping):
        problems.append(f"{where}: {name}: found {arguments!r}; arguments are names with values")
    if kind is None or not isinstance(arguments, Mapping | None):
        return None
    values = {str(k): v for k, v in (arguments or {}).items()}
    allowed = [p for p in inspect.signature(kind.__init__).parameters if p != "self"]
    for wrong in [k for k in values if k not in allowed]:
        close = get_close_matches(wrong, allowed, n=1)
        hint = f" (nearest: '{close[0]}')" if close else ""
        problems.append(
            f"{where}: {name} has no argument '{wrong}'{hint}; it has {', '.join(allowed)}"
        )
        del values[wrong]
    if name in COMPOSITIONS:
        inner = len(problems)
        values["transforms"] = transforms(
            values.get("transforms"), f"{where}.{name}.transforms", problems
        )
        if len(problems) > inner:
            return None
        if not values["transforms"]:
            problems.append(f"{where}: {name} has no transforms; list at least one")
            return None
    return _construct(kind, values, f"{where}: {name}", problems)


def _construct(
    kind: type, values: dict[str, Any], where: str, problems: list[str]
) -> TransformType | None:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = kind(**values)
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):
            for wrong in cause.errors():
                argument = ".".join(str(x) for x in wrong["loc"][:1]) or "arguments"
                found = "" if wrong["type"] == "missing" else f" (found {wrong['input']!r})"
                problems.append(f"{where}: {argument}: {wrong['msg']}{found}")
        else:
            problems.append(f"{where}: {error}")
        return None
    problems.extend(
        f"{where}: {w.message}" for w in caught if not issubclass(w.category, DeprecationWarning)
    )
    needs = set(getattr(made, "targets_as_params", ())) - {"image", "bboxes"}
    if needs:
        problems.append(
            f"{where}: it needs {', '.join(sorted(needs))}, which a picture does not have"
        )
        return None
    return made


def _kind(name: str, where: str, problems: list[str]) -> type | None:
    """Returns the class of albumentations called `name`, if it can be a step."""
    if name in REFUSED:
        problems.append(f"{where}: {name} cannot be a step: {REFUSED[name]}; remove it")
        return None
    kind = getattr(albumentations, name, None)
    if inspect.isclass(kind) and _usable(kind):
        return kind
    names = [n for n, k in vars(albumentations).items() if inspect.isclass(k) and _usable(k)]
    close = get_close_matches(name, [n for n in names if n not in REFUSED], n=1, cutoff=0.4)
    hint = f" (nearest: '{close[0]}')" if close else ""
    why = "does not exist" if kind is None else "does not work on a picture and its boxes"
    problems.append(f"{where}: {name} {why} in albumentations{hint}")
    return None


def _usable(kind: type) -> bool:
    if kind.__name__ in COMPOSITIONS:
        return True
    if not issubclass(kind, BasicTransform) or issubclass(kind, Transform3D):
        return False
    if kind in (BasicTransform, DualTransform, ImageOnlyTransform):
        return False
    targets = getattr(kind, "_targets", ())
    targets = targets if isinstance(targets, tuple) else (targets,)
    return issubclass(kind, ImageOnlyTransform) or any(t.value == "BBoxes" for t in targets)
