"""Write Core ML packages for the Neural Engine. Here: what can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from samx.exporters.base import ExportOptions, option
from samx.models.spec import DecoderSpec


@dataclass(frozen=True)
class CoreMLOptions(ExportOptions):
    """Declare the options of Core ML packages."""

    ios: int = option(18, "Oldest system, 16 to 18. Before 18 a package has one function.")
    contract: str = option("samx", "Whose names: samx, or apple (two packages, as SAM 2.1 apps load them).")
    weights: str | None = option(None, "Smaller weights: linear8 or palette8.")

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse what no package can be."""
        from samx.exporters.coreml.export import check_options

        check_options(self, precision, spec)

    def remedy(self, precision: str) -> str | None:
        """Say what to try when smaller weights differ."""
        tighter = "Store the weights less tightly, with --weights linear8 or without --weights."
        return tighter if self.weights is not None else None
