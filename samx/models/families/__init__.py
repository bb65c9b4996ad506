"""The model families: one file each, found in this folder by the FAMILY that it defines. No torch."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module

from samx.errors import UsageError
from samx.models.families.base import Family


@cache
def known() -> Mapping[str, Family]:
    """Return the families by name; also where the package lies in a zip file."""
    modules = (import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__))
    found: list[Family] = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def find(name: str) -> Family:
    """Look a family up.

    Raises: UsageError for a name that no family has.
    """
    if name not in known():
        raise UsageError("unknown model family", found=repr(name), expected=" or ".join(known()))
    return known()[name]


def recognise(keys: Iterable[str]) -> Family:
    """Return the family that a checkpoint's keys belong to: of those whose marks are all there, the one with most."""
    keys = list(keys)
    return max((family for family in known().values() if family.has(keys)), key=lambda family: len(family.marks))
