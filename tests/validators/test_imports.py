"""A device with only NumPy can validate: the heavy libraries are never imported from here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "tensorrt", "coremltools")
REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import samx.artifacts, samx.validators
for package in (samx.artifacts, samx.validators):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(sorted(set(sys.argv[2].split(",")) & set(sys.modules)))
"""


def test_no_heavy_library_is_imported() -> None:
    command = [sys.executable, "-c", PROGRAM, str(REPOSITORY), ",".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
