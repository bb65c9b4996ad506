"""Looks all over a picture: crop by crop, masks side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from samx.devices.cpu import usable_cpus
from samx.errors import UsageError
from samx.models.session import Session
from samx.models.spec import DecoderSpec
from samx.predictor_inputs import check_export
from samx.processing.automatic import Crop, Kept, calls, masks_of, plan, settled
from samx.processing.settings import Settings
from samx.progress import Progress


def check_settings(spec: DecoderSpec, settings: Settings) -> None:
    """Refuse what an export has not.

    Raises: UsageError.
    """
    check_export(spec, settings.multimask_output, has_mask=False)
    if settings.use_m2m:
        check_export(spec, multimask=False, has_mask=True)


def look_over(
    session: Session, size: tuple[int, int], settings: Settings, bring: Callable[[Crop], None] | None,
    progress: Progress, threads: int | None,
) -> Kept:  # fmt: skip
    """Find the masks of a picture of (W, H) px; `bring` hands a crop's features to the session.

    Without `bring` the session has the whole picture's.
    Raises: UsageError for what the export has not, and for crops where nothing brings them; ParityError on outputs that
    are not finite.
    """
    check_settings(session.spec, settings)
    if (settings.crop_n_layers or settings.tile_px) and bring is None:
        what = "crops and tiles are cut from the picture, and none is given"
        raise UsageError(what, fix="Give it: everything(image, ...).")
    crops = plan(settings, session.spec, *size)
    turns, total = count(), calls(crops, settings)
    found = []
    with ThreadPoolExecutor(threads or usable_cpus(), "samx-masks") as pool:
        for crop in crops:
            if bring is not None:
                bring(crop)
            tick = lambda: progress("Looking for masks", next(turns), total)  # noqa: E731
            found.append(masks_of(session, crop, size, settings, tick, pool.map))
    return settled(found, settings, session.spec)
