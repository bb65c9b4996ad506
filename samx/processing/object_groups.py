"""What the command line says about objects, as prompts."""

from __future__ import annotations

from collections.abc import Sequence

from samx.errors import PromptError, UsageError
from samx.processing.prompts import Prompt, parse_box, parse_point

FORM = "box=x0,y0,x1,y1, point=x,y, background=x,y, with spaces between"
PARTS = ("box", "point", "background")


def parse_prompts(
    points: Sequence[str], background: Sequence[str], boxes: Sequence[str], objects: Sequence[str]
) -> list[Prompt]:
    """Make prompts: points and one box are of one object; every further box, and every group, is one of its own.

    Raises: PromptError for what cannot be read; UsageError for points of which nobody knows whose they are.
    """
    if (points or background) and (len(boxes) > 1 or objects):
        raise UsageError(
            "points beside several objects belong to none", found=f"{len(boxes)} boxes, {len(objects)} objects",
            fix="Say whose they are: --object 'box=40,60,300,380 point=90,80'.",
        )  # fmt: skip
    alone = [Prompt(box=parse_box(box)) for box in boxes] if not (points or background) else []
    if points or background:
        box = parse_box(boxes[0]) if boxes else None
        alone = [Prompt.of_clicks([*map(parse_point, points)], [*map(parse_point, background)], box)]
    return [*alone, *map(parse_object, objects)]


def parse_object(text: str) -> Prompt:
    """Read one object's box and points.

    Raises: PromptError.
    """
    found: dict[str, list[str]] = {name: [] for name in PARTS}
    for part in text.split():
        name, separator, value = part.partition("=")
        if name not in found or not separator:
            raise PromptError("object cannot be read", found=repr(part), expected=FORM)
        found[name].append(value)
    if len(found["box"]) > 1:
        raise PromptError("object has several boxes", found=repr(text), expected="one box for each object")
    box = parse_box(found["box"][0]) if found["box"] else None
    return Prompt.of_clicks([*map(parse_point, found["point"])], [*map(parse_point, found["background"])], box)
