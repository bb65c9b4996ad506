"""Write Core ML packages for the Neural Engine. Here: what can be asked for, and which functions a package gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from samx.errors import UsageError
from samx.exporters.base import ExportOptions, option
from samx.formats.coreml.package import MULTIFUNCTION_IOS, SINGLE_FUNCTION
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    from samx.formats.coreml.contract import Contract

POINTS = ShapeRange(1, 2, 16)
ONE_PROMPT = ShapeRange(1, 1, 1)  # the Neural Engine is fed click by click
SINGLE_POINTS = ShapeRange(8, 8, 8)  # where a package has one function
USUAL_ROWS = (1, 2, 4, 8, 16, 32, 64)  # of which those inside --points become functions
IOS = (16, 17, 18)
INT8_IOS = 17  # the first whose programs have quantize and dequantize


@dataclass(frozen=True)
class CoreMLOptions(ExportOptions):
    """Declare the options of Core ML packages."""

    ios: int = option(18, "Oldest system, 16 to 18. Before 18 a package has one function.")
    contract: str = option("samx", "Whose names: samx, or apple (two packages, as SAM 2.1 apps load them).")
    weights: str | None = option(None, "Smaller weights: linear8 or palette8.")
    image_input: bool = option(False, "Let the encoder take an image of Core ML's (RGB), not an array of levels.")

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse what no package can be.

        Raises: UsageError; MissingExtraError.
        """
        contract = contract_named(self.contract)
        if self.ios not in IOS:
            raise UsageError("iOS version is not offered", found=self.ios, expected=" or ".join(map(str, IOS)))
        _check_precision(self, precision)
        if self.prompts not in (None, ONE_PROMPT):
            fix = "Call it in turn."
            raise UsageError("a function takes one prompt", found=f"--prompts {self.prompts}", fix=fix)
        chosen_functions(self)
        if spec is not None:
            _check_contract(contract, spec)

    def check_client_code(self) -> None:
        """Refuse another contract's names, and an image in the place of an array."""
        for flag, is_given in (
            (f"--contract {self.contract}", self.contract != "samx"),
            ("--image-input", self.image_input),
        ):
            if is_given:
                raise UsageError("client code does not fit", found=flag, fix="Leave it out, or --client.")

    def remedy(self, precision: str) -> str | None:
        """Say what to try when smaller weights differ."""
        tighter = "Store the weights less tightly, with --weights linear8 or without --weights."
        return tighter if self.weights is not None else None


def contract_named(name: str) -> Contract:
    """Look a contract up.

    Raises: UsageError.
    """
    from samx.formats.coreml.contract import CONTRACTS

    if name not in CONTRACTS:
        raise UsageError("unknown contract", found=repr(name), expected=" or ".join(CONTRACTS))
    return CONTRACTS[name]


def chosen_functions(options: CoreMLOptions) -> tuple[dict[str, int], str]:
    """Choose the functions with their rows, and the default one.

    Raises: UsageError for points that no package has room for.
    """
    contract, several = contract_named(options.contract), options.ios >= MULTIFUNCTION_IOS
    usual = POINTS if several else SINGLE_POINTS
    span = options.points or ShapeRange(*(rows + contract.padding for rows in usual.to_json()))
    rows = _rows(contract, span, options.ios)
    names = {n: contract.function_name(n) if several else SINGLE_FUNCTION for n in rows}
    return {name: n for n, name in names.items()}, names[max(span.opt, rows[0])]


def _check_precision(options: CoreMLOptions, precision: str) -> None:
    """Refuse smaller weights beside another precision than float16, and activations that a system does not know."""
    if options.weights is not None:
        from samx.exporters.coreml.convert import check_compression

        check_compression(options.weights)
        if precision != "fp16":
            fix = "With --int8 a search chooses the weights that get 8 bits." if precision == "int8" else None
            found = f"precision {precision}"
            raise UsageError("smaller weights go with float16", found=found, expected="--fp16", fix=fix)
    if precision == "int8" and options.ios < INT8_IOS:
        expected = f"--ios {INT8_IOS} or later"
        raise UsageError("8-bit activations came with iOS 17", found=f"--ios {options.ios}", expected=expected)


def _check_contract(contract: Contract, spec: DecoderSpec) -> None:
    """Refuse what Apple's packages have no place for."""
    if contract.name != "apple":
        return
    from samx.formats.coreml.contract import APPLE_FAMILY

    if spec.family != APPLE_FAMILY:
        raise UsageError("the apps of this contract know SAM 2.1 only", found=spec.family, expected="--contract samx")
    if spec.mask_input:
        raise UsageError("this contract has no mask prompts", found="--mask-input", expected="--contract samx")


def _rows(contract: Contract, span: ShapeRange, ios: int) -> list[int]:
    padding = contract.padding
    if span.max <= padding:
        raise UsageError("no room for a point beside the padding", found=f"--points {span}", expected="2 or more")
    usual = [n + padding for n in USUAL_ROWS if n + padding in span]
    rows = sorted({n for n in (*usual, span.min, span.opt, span.max) if n > padding})
    if ios < MULTIFUNCTION_IOS and len(rows) > 1:
        raise UsageError(
            f"a package for iOS {ios} has one function", found=f"--points {span}", expected="one number, such as 8",
            fix=f"Or choose --ios {MULTIFUNCTION_IOS}.",
        )  # fmt: skip
    return rows
