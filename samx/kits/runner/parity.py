"""Parity, by the rules of "samx validate": whatever was not shown to be right is wrong."""
# ruff: noqa: T201 - part of a program

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from samx.kits.runner.decoder import Decoder
from samx.kits.runner.kit import STOPPED, Arrays, Json, Kit, message, utc_now
from samx.kits.runner.machine import environment


def check_parity(kit: Kit, place: Json, decoder: Decoder) -> Json:
    """Ask every stored case and compare. Gives a report as "samx validate" writes it."""
    rules, stored = kit.says["parity"], kit.arrays("parity.npz")
    failures: list[str] = []
    cases: list[Json] = []
    measured: list[Json] = []
    try:
        for index, case in enumerate(rules["cases"]):
            cases.append(judge(kit, decoder, stored, index, measured))
            print(f"  {case['name']}: {'; '.join(cases[-1]['failures']) or 'agrees'}", flush=True)
    except KeyboardInterrupt:
        failures.append(f"{STOPPED} after {len(cases)} of {len(rules['cases'])} cases")
    totals = suite_values(rules, measured) if measured else {}
    placement, misplaced = placed(place, decoder)
    failures += [*misplaced, *violations(rules, totals)]
    passed = 0 < len(cases) == len(rules["cases"]) and not failures and not any(case["failures"] for case in cases)
    return {
        "format": "samx-parity-report", "schema_version": 1, "passed": passed, "subject": f"kit of {kit.says['name']}",
        "level": place["level"], "nonce": secrets.token_hex(16), "created": utc_now(), "bounds": rules["bounds"],
        "suite": rules["suite"], "placement": placement, "environment": environment(kit, place), "metrics": totals,
        "failures": failures, "cases": cases,
    }  # fmt: skip


def judge(kit: Kit, decoder: Decoder, stored: Arrays, index: int, measured: list[Json]) -> Json:
    """Ask one case. A library that fails is a finding, and no end."""
    rules, case = kit.says["parity"], kit.says["parity"]["cases"][index]
    prompts = part_of(stored, f"case{index}.in.")
    n, points = prompts["point_labels"].shape
    found: Json = {"values": {}, "mask_iou": [], "undecided": 0}
    try:
        decoder.set_image(part_of(stored, f"image{case['image']}."))
        outputs = decoder.decode(prompts)
        failures = output_problems(kit.says["tensors"]["outputs"], outputs, n)
    except Exception as error:  # whatever a driver raises
        failures = [message(error)]
    if not failures:
        found = compare(rules, part_of(stored, f"case{index}.out."), stored["pixels"], outputs)
        measured.append(found)
        failures = violations(rules, found["values"])
    return {"name": case["name"], "image": case["image"], "prompts": n, "points": points, "failures": failures,
            "metrics": found["values"], "mask_iou": found["mask_iou"],
            "undecided_pixels": found["undecided"]}  # fmt: skip


def part_of(stored: Arrays, prefix: str) -> Arrays:
    """Take the arrays whose names begin alike; what is kept as float16 is computed with as float32."""
    found = {name[len(prefix) :]: value for name, value in stored.items() if name.startswith(prefix)}
    return {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in found.items()}


def output_problems(shapes: Json, outputs: Arrays, prompts: int) -> list[str]:
    """Say what keeps outputs from being compared: names, types, shapes, values that are not finite."""
    if set(outputs) != set(shapes):
        return [f"outputs are {', '.join(sorted(outputs))}, must be {', '.join(sorted(shapes))}"]
    wanted = {name: tuple(prompts if isinstance(d, str) else d for d in shape) for name, shape in shapes.items()}
    pairs = {name: (f"{x.dtype} {x.shape}", f"float32 {wanted[name]}") for name, x in outputs.items()}
    wrong = [f"{name} is {found}, must be {must}" for name, (found, must) in pairs.items() if found != must]
    if wrong:
        return wrong
    bad = {name: int(value.size - np.isfinite(value).sum()) for name, value in outputs.items()}
    return [f"{name} has {count} values that are not finite" for name, count in bad.items() if count]


def compare(rules: Json, expected: Arrays, pixels: Any, outputs: Arrays) -> Json:
    """Measure how far outputs are from PyTorch's: masks, best mask and scores beside the raw errors."""
    limits, logits = rules["bounds"], outputs["low_res_masks"].reshape(*outputs["low_res_masks"].shape[:2], -1)
    above, undecided = (np.unpackbits(expected[name], axis=-1, count=logits.shape[-1]).astype(bool)
                        for name in ("above", "undecided"))  # fmt: skip
    mine, theirs = (logits > rules["mask_threshold"]) & ~undecided, above & ~undecided
    error = _error(expected["logits"], logits[..., pixels])
    scores = expected["iou_predictions"], outputs["iou_predictions"]
    values = {
        "mask_iou_min": float(mask_iou(mine, theirs, limits["forgiven_pixels"]).min()),
        "mask_iou_case": float(mask_iou(mine.ravel(), theirs.ravel())),
        "logit_error": error,
        "logit_error_relative": error / float(np.abs(expected["logits"]).max()),
        "iou_prediction_error": _error(*scores),
        "best_mask_changes": float(best_mask_changes(*scores, limits["iou_prediction_error"])),
    }
    if "object_score_logits" in expected:
        a, b = expected["object_score_logits"], outputs["object_score_logits"]
        flips = (np.abs(a) > limits["object_score_error"]) & ((a > 0) != (b > 0))
        values |= {"object_score_error": _error(a, b), "object_score_flips": float(flips.sum())}
    return {"values": values, "mask_iou": [float(iou) for iou in mask_iou(mine, theirs).ravel()], "pixels": mine.size,
            "flipped": int((mine != theirs).sum()), "undecided": int(undecided.sum())}  # fmt: skip


def mask_iou(a: Any, b: Any, forgiven: int = 0) -> Any:
    """Divide common area by joint area; two empty masks agree, and so many differing pixels count as common."""
    common, joint = (a & b).sum(-1), (a | b).sum(-1)
    common = common + np.minimum(joint - common, forgiven)
    return np.where(joint == 0, 1.0, common / np.maximum(joint, 1))


def best_mask_changes(reference: Any, candidate: Any, allowed: float) -> int:
    """Count prompts whose best mask changed although PyTorch's choice was clear."""
    if reference.shape[1] == 1:
        return 0
    ranked = np.sort(reference, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > allowed
    return int((clear & (reference.argmax(axis=1) != candidate.argmax(axis=1))).sum())


def suite_values(rules: Json, cases: Sequence[Json]) -> Json:
    """Give what is judged over all cases together."""
    ious = np.array([iou for case in cases for iou in case["mask_iou"]])
    low = float(np.percentile(ious, rules["low_percentile"]))
    flipped, pixels = (sum(case[name] for case in cases) for name in ("flipped", "pixels"))
    return {"mask_iou_mean": float(ious.mean()), "mask_iou_p05": low, "flipped_share": flipped / pixels}


def violations(rules: Json, values: Json) -> list[str]:
    """Say which values are not on the good side of their bound. NaN is on no side."""
    found = []
    for name, value in values.items():
        limit, least = rules["bounds"][name], name in rules["at_least"]
        if limit is not None and not (value >= limit if least else value <= limit):
            found.append(f"{name} is {value:.6g}, must be {'at least' if least else 'at most'} {limit:g}")
    return found


def placed(place: Json, decoder: Decoder) -> tuple[Json, list[str]]:
    """Say where the calls ran, and what is wrong with that."""
    try:
        (operations, details), wrong = decoder.runs.placement(), []
    except Exception as error:
        operations, details, wrong = {}, {}, [f"the library cannot say where it ran: {message(error)}"]
    if not wrong and (set(operations) != {place["device"]} or not all(operations.values())):
        ran = ", ".join(f"{count} operations on {name}" for name, count in operations.items())
        wrong = [f"asked for {place['device']}, ran {ran or 'nothing that was counted'}"]
    placement = {"runtime": place["library"], "requested": place["device"]}
    return {**placement, "operations": operations, "details": details}, wrong


def parity_record(rules: Json, report: Json) -> Json:
    """Take from a passed report what stands beside every latency: the worst of each metric."""
    worst, cases, placement = dict(report["metrics"]), report["cases"], report["placement"]
    for name in cases[0]["metrics"]:
        worst[name] = (min if name in rules["at_least"] else max)(case["metrics"][name] for case in cases)
    return {"verdict": "passed", "level": report["level"], "device": placement["requested"],
            "runtime": placement["runtime"], "created": report["created"], "source": "fresh", "cases": len(cases),
            "metrics": worst}  # fmt: skip


def _error(a: Any, b: Any) -> float:
    return float(np.abs(b.astype(np.float64) - a).max())
