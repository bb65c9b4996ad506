"""README.txt of a kit: the exact commands for each device."""

from __future__ import annotations

from collections.abc import Mapping

from samx.artifacts.manifest import Manifest
from samx.kits.places import Place
from samx.validators.metrics import bounds_for

TEXT = """\
On-device kit of '{name}'

A Segment Anything mask decoder ({family}, target {target}, {precision}) with the questions that it was checked with,
PyTorch's answers to them, and a program that asks them here, measures, and writes a report.
It needs Python 3.10 or newer and NumPy, and not samx.

{commands}

What happens, in this order:
  1. The hash of every file is compared with kit.json. A changed file ends it.
  2. {cases} parity cases are decoded and compared with PyTorch's answers, by samx's bounds for {bounds}.
     If one fails, nothing is timed: the report holds the comparison, and the exit code is 3.
  3. Calls with one click and with 8 clicks are timed, each for 3 s after a warm-up; --seconds changes that, --quick
     makes it 1 s.
  4. report.json is written, in the format of 'samx bench'. Bring it home: 'samx report report.json' reads it.
     Ctrl-C keeps what was measured until then; the report is marked as partial, and the exit code is 4.

Exit codes: 0 done; 2 option not offered; 3 parity not shown; 4 stopped early; 5 library or device not here;
6 file damaged; 7 report not written (one that exists is never replaced; choose another name with -o).

Files: run.py is the program, to be read before it is run. artifact/ is the exported artifact as it was. parity.npz has
the cases and answers, prompts.npz the prompts that are timed, kit.json everything else. All arrays open with
numpy.load(FILE, allow_pickle=False).
"""
ENGINE = """
The engine is built on this machine at the first run, from artifact/decoder.onnx and artifact/build.json, and kept in
engine/. If artifact/ holds an engine, it is not loaded: engines are executable code, and that one was built elsewhere.
On a Jetson, JetPack brings TensorRT and its Python module: use the system's python3, or a virtual environment that was
made with --system-site-packages. No CUDA package for Python is needed.
"""
PHONE = """
On a connected iPhone or iPad, in Xcode: open artifact/{package}, choose Performance, +, and the device. The report
shows times for loading and prediction, and the processor of each operation.

The same from Python on a Mac, with coremltools 9, Xcode and your signing team:

    import asyncio
    import coremltools as ct
    import numpy as np
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials, Device, DeviceType

    async def on_phone(package, inputs, team):
        units = ct.ComputeUnit.CPU_AND_NE
        model = ct.models.MLModel(package, compute_units=units, function_name={function!r})
        phone = Device.get_connected_devices(DeviceType.IPHONE)[0]
        ready = await phone.prepare_for_model_debugging(AppSigningCredentials(development_team=team))
        feed = dict(np.load(inputs, allow_pickle=False))
        return await MLModelBenchmarker(model, ready).benchmark_predict(feed, iterations=100, warmup=True)

{calls}

That measures and compares nothing: parity is shown by run.py, on the Mac. What one package computes for the next is
drawn at random in inputs/, which changes no time. With a number from a phone, say how long it had run before, and
whether it was charging: a warm phone is slower.
"""
CALL = """\
    took = asyncio.run(on_phone("artifact/{package}", "inputs/{stem}.npz", "TEAM"))
    print("{stem}", took.statistics.median, "ms")"""


def readme(name: str, manifest: Manifest, cases: int, places: Mapping[str, Place], function: str | None) -> str:
    """Write the text; `function` names the one of a Core ML package that decodes a click."""
    first = next(iter(places.values()))
    text = TEXT.format(
        name=name, family=manifest.spec.family, target=manifest.target, precision=manifest.precision, cases=cases,
        bounds=bounds_for(manifest.precision, manifest.options).precision, commands="\n".join(_commands(places)),
    )  # fmt: skip
    notes = {"tensorrt": ENGINE, "coreml": _phone(first, function)}
    return text + notes.get(first["runtime"], "")


def _commands(places: Mapping[str, Place]) -> list[str]:
    own = next(iter(places))
    lines = []
    for device, place in places.items():
        option = "" if device == own else f" --device {device}"
        lines += [f"On '{device}' ({place['library']} {place['versions']}):", "    python3 -m pip install numpy"]
        lines += [f"    {_comment(place['install'])}", f"    python3 run.py{option}", ""]
    return lines[:-1]


def _comment(install: str) -> str:
    """Leave a command as it is, and mark advice as such."""
    return install if install.startswith(("python3 ", "pip ")) else f"# {install}"


def _phone(place: Place, function: str | None) -> str:
    if "steps" not in place:
        return ""
    packages = [step["package"].partition("/")[2] for step in place["steps"]]
    calls = [CALL.format(package=package, stem=package.removesuffix(".mlpackage")) for package in packages]
    named = None if function == "main" else function  # before macOS 15 no name may be given
    return PHONE.format(package=packages[-1], function=named, calls="\n".join(calls))
