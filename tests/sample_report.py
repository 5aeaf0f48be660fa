"""A report as a real run of the digits recipe gives it, with round numbers; tests change what they are about."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from edgelean.exporter import EngineNote
from edgelean.reading import Provenance
from edgelean.report.axes import Evolution, LayerWidth, Look, Spectrum
from edgelean.report.history import from_events
from edgelean.report.model import (
    BundleFile,
    EnergyPart,
    EpochPoint,
    Report,
    Side,
    Verdict,
)
from edgelean.verifier import ArtifactCheck

STEPS_AN_EPOCH = 20
EPOCHS = 30
CUTS = (
    # step, demand, latency_ms after, energy_mj after, parameters after, axes
    (60, 0.14, 0.272, 0.101, 151_204, (("stem", 32, 24), ("blocks.0.inner", 64, 48))),
    (110, 0.17, 0.231, 0.083, 118_930, (("blocks.0.inner", 48, 40), ("blocks.1.inner", 64, 48), ("stage2", 64, 56))),
    (160, 0.15, 0.197, 0.068, 90_412, (("stem", 24, 16), ("blocks.1.inner", 48, 40), ("stage2", 56, 48))),
    (210, 0.12, 0.171, 0.057, 70_986, (("blocks.2.inner", 64, 40), ("stage2", 48, 40))),
    (240, 0.12, 0.150, 0.049, 55_310, (("stem", 16, 8), ("blocks.2.inner", 40, 24))),
    (290, 0.08, 0.148, 0.0478, 54_118, (("blocks.2.inner", 40, 32), ("stage2", 40, 32))),
)
ROLLED_BACK = 4
NO_ENGINE = (
    "Neither tensorrt nor tensorrt-rtx can be imported. With one of them, an FP16 engine would have been built from "
    "model.onnx: pip install 'edgelean[tensorrt-rtx]'."
)


def sample_events() -> list[dict[str, Any]]:
    """The events of the run, in their order."""
    events: list[dict[str, Any]] = [_start_event(), _reading(0, 0.31, 0.121, 186_442)]
    for step in range(10, EPOCHS * STEPS_AN_EPOCH + 1, 10):
        events.extend(_cut_events(step))
        if step % STEPS_AN_EPOCH == 0:
            events.append(_epoch(step, 0.981))
        if step == 300:
            events.append({"event": "wait", "step": step, "time_s": step / 8, "reason": "all budgets are met"})
    for quantity, value in (("latency", 0.148), ("energy", 0.0478)):
        verdict = {"event": "verdict", "step": 600, "time_s": 80.0} | sample_verdict(quantity, value).__dict__
        events.append(verdict | {"provenance": "modelled"})
    events.append({"event": "end", "step": 600, "time_s": 98.4, "exit_code": 0, "seconds": 98.4})
    return events


def sample_verdict(quantity: str = "latency", value: float = 0.148, **changes: Any) -> Verdict:
    """A verdict on the sample's budgets: 50 % of full-size latency, 0.05 mJ."""
    unit, limit, full, text = {
        "latency": ("ms", 0.15, 0.31, "0.15 ms"),
        "energy": ("mJ", 0.05, 0.121, "0.05 mJ"),
    }[quantity]
    fields = {
        "quantity": quantity,
        "unit": unit,
        "limit": limit,
        "limit_text": text,
        "value": value,
        "low": value,
        "high": value,
        "full_size": full,
        "outcome": "met" if value <= limit else "not met",
        "margin": 1 - value / limit,
        "provenance": Provenance.MODELLED,
        "method": "roofline of each fused operator on the exported graph, fp16, batch 1",
        "percentile": 50.0,
    }
    return Verdict(**(fields | changes))


def sample_check(name: str = "model.onnx", **changes: Any) -> ArtifactCheck:
    """A passed check of one exported file."""
    fields = {
        "file": name,
        "precision": "fp16" if "16" in name else "fp32",
        "runtime": "onnxruntime 1.22 (CPU)",
        "samples": 360,
        "metric_name": "accuracy",
        "metric_model": 0.9833,
        "metric_artifact": 0.9833,
        "agreement": 1.0 if "16" not in name else 0.9972,
        "rel_l2": 4.1e-7 if "16" not in name else 6.3e-4,
        "passed": True,
        "reason": "accuracy within 1.0 points of the trained model",
    }
    return ArtifactCheck(**(fields | changes))


def sample_report(**changes: Any) -> Report:
    """The report of the run, with some of its fields changed."""
    history = from_events(sample_events())
    fields: dict[str, Any] = {
        "edgelean_version": "0.1.0",
        "recipe": "digits",
        "profile": "jetson-orin",
        "board": "Jetson AGX Orin 64GB",
        "target": "modelled",
        "seed": 0,
        "epochs": EPOCHS,
        "steps": EPOCHS * STEPS_AN_EPOCH,
        "started": "2026-03-14T09:26:53Z",
        "seconds": 98.4,
        "exit_code": 0,
        "verdicts": (sample_verdict("latency", 0.148), sample_verdict("energy", 0.0478)),
        "checks": (sample_check("model.onnx"), sample_check("model.fp16.onnx")),
        "full_size": _side(0.9861, "after the same training", 0.31, 0.121, 186_442, 12_419_072),
        "lean": _side(0.9833, "", 0.148, 0.0478, 54_118, 3_902_208),
        "metric_name": "accuracy",
        "epochs_history": history.epochs,
        "full_size_history": tuple(
            EpochPoint(epoch, epoch * STEPS_AN_EPOCH, 2 * math.exp(-epoch / 3), _learned(epoch * STEPS_AN_EPOCH, 0.986))
            for epoch in range(1, EPOCHS + 1)
        ),
        "readings": history.readings,
        "cuts": history.cuts,
        "layers": _layers(),
        "spectra": _spectra(),
        "timing": {
            "training": 71.2, "evaluating": 6.1, "control": 4.3, "measuring": 3.2, "exporting": 7.9, "verifying": 3.4,
            "other": 2.3,
        },
        "engine": EngineNote(built=False, package="", version="", text=NO_ENGINE, seconds=0.0, layers=0),
        "bundle": tuple(
            BundleFile(name, size, hashlib.sha256(name.encode()).hexdigest())
            for name, size in (("model.onnx", 219_866), ("model.fp16.onnx", 112_204), ("run_onnx.py", 3_310),
                               ("manifest.json", 1_204), ("README.md", 1_866))
        ),
        "notes": ("The launch overhead of Jetson AGX Orin 64GB, 6 µs per operator, is a guess: "
                  "edgelean calibrate measures it on the board.",
                  "Idle power is included in the energy: 10 W over the latency of one call."),
        "environment": {"python": "3.11.7", "torch": "2.9.0", "onnxruntime": "1.22.0", "machine": "Linux, 2 CPU cores"},
        "refused": (("head.weight[0]", "its units are the classes of the recipe"),
                    ("pool", "reshape mixes channels with positions")),
        "references": ("K. J. Åström and B. Wittenmark, Adaptive Control, 2nd ed., 1995.",
                       "M. Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), NeurIPS 2022.",
                       "S. Lall, J. E. Marsden, S. Glavaški, A subspace approach to balanced truncation, 2002."),
        "training_energy_method": "codecarbon, offline, the whole machine: cpu estimated, gpu measured, ram estimated",
        "electricity": "475 g CO₂e per kWh, the mean of the world in 2018 (IEA), because the profile names neither a "
                       "country nor a number",
        "commands": ("cd bundle", "python run_onnx.py INPUT.npy --model model.fp16.onnx"),
    }  # fmt: skip
    return Report(**(fields | changes))


def _side(accuracy: float, note: str, latency_ms: float, energy_mj: float, parameters: int, macs: int) -> Side:
    lean = parameters < 100_000
    return Side(
        accuracy=accuracy,
        accuracy_note=note,
        latency_ms=latency_ms,
        energy_mj=energy_mj,
        provenance=Provenance.MODELLED,
        parameters=parameters,
        macs=macs,
        artifact_bytes=219_866 if lean else 748_902,
        training_s=71.2 if lean else 118.0,
        training_note="" if lean else "estimated from its step time",
        training_kwh=0.00081 if lean else 0.00134,
        training_co2_g=0.385 if lean else 0.637,
        training_parts=(
            EnergyPart("cpu", "estimated", 0.00025 if lean else 0.00041),
            EnergyPart("gpu", "measured", 0.00047 if lean else 0.00078),
            EnergyPart("ram", "estimated", 0.00009 if lean else 0.00015),
        ),
    )


def _start_event() -> dict[str, Any]:
    return {
        "event": "start",
        "step": 0,
        "time_s": 0.0,
        "recipe": "digits",
        "profile": "jetson-orin",
        "board": "Jetson AGX Orin 64GB",
        "target": "modelled",
        "seed": 0,
        "steps": EPOCHS * STEPS_AN_EPOCH,
        "epochs": EPOCHS,
        "budgets": [
            {"quantity": "latency", "limit": 0.15, "unit": "ms", "percentile": 50},
            {"quantity": "energy", "limit": 0.05, "unit": "mJ", "percentile": 50},
        ],
        "full_size": {
            "latency_ms": 0.31,
            "energy_mj": 0.121,
            "provenance": "modelled",
            "parameters": 186_442,
            "macs": 12_419_072,
        },
    }


def _reading(step: int, latency_ms: float, energy_mj: float, parameters: int) -> dict[str, Any]:
    return {
        "event": "reading",
        "step": step,
        "time_s": step / 8,
        "latency_ms": latency_ms,
        "latency_low_ms": latency_ms,
        "latency_high_ms": latency_ms,
        "energy_mj": energy_mj,
        "provenance": "modelled",
        "energy_provenance": "modelled",
        "parameters": parameters,
        "macs": 70 * parameters,
    }


def _cut_events(step: int) -> list[dict[str, Any]]:
    for index, (at, demand, latency_ms, energy_mj, parameters, axes) in enumerate(CUTS):
        before = CUTS[index - 1] if index not in (0, ROLLED_BACK + 1) else CUTS[max(index - 2, 0)]
        head = {"step": at, "time_s": at / 8}
        if at == step:
            metric = _learned(at, 0.981)
            cut = {
                "event": "cut",
                "demand": demand,
                "binding": "energy" if index in (1, 3) else "latency",
                "axes": [{"axis": axis, "before": wide, "after": lean} for axis, wide, lean in axes],
                "nats": 0.004 * 1.8**index,
                "metric_before": metric,
                "metric_after": metric - (0.2 if index == ROLLED_BACK else 0.01 * (index + 1)),
                "parameters": parameters,
                "predicted": {"latency_ms": latency_ms, "energy_mj": energy_mj},
                "law_error": 2.4e-7 * (index + 1),
            }
            reason = f"latency: {latency_ms} ms at the next event takes a cut of {100 * demand:.1f} %"
            demanded = {"event": "demand", "binding": cut["binding"], "fraction": demand, "reason": reason}
            demanded |= {"reference": latency_ms}
            return [head | demanded, head | cut, _reading(at, latency_ms, energy_mj, parameters)]
        if index == ROLLED_BACK and at + 30 == step:
            back = {"event": "rollback", "metric_before": 0.97, "metric_now": 0.921, "largest_cut": 0.175,
                    "reason": "the metric was 0.9700 before the cut and is 0.9210 after recovery"}  # fmt: skip
            head = {"step": step, "time_s": step / 8}
            return [head | back, _reading(step, *before[2:5])]
    return []


def _epoch(step: int, ceiling: float) -> dict[str, Any]:
    epoch = step // STEPS_AN_EPOCH
    return {
        "event": "epoch",
        "epoch": epoch,
        "step": step,
        "time_s": step / 8,
        "loss": 2.1 * math.exp(-epoch / 3.5) + 0.02,
        "metric": _learned(step, ceiling),
        "metric_name": "accuracy",
    }


def _learned(step: int, ceiling: float) -> float:
    """A learning curve that dips after each cut, most after the one that was rolled back."""
    curve = ceiling - 0.5 * math.exp(-step / 45) + 0.002 * math.sin(step / 17)
    if ceiling > 0.983:
        return curve
    for index, (at, *_) in enumerate(CUTS):
        depth, length = (0.05, 14.0) if index == ROLLED_BACK else (0.012, 18.0)
        curve -= depth * math.exp(-(step - at) / length) if step > at else 0.0
    return curve


def _layers() -> tuple[LayerWidth, ...]:
    return (
        LayerWidth("stem.conv", 32, 16),
        LayerWidth("blocks.0.conv1", 64, 40),
        LayerWidth("blocks.0.conv2", 32, 16),
        LayerWidth("blocks.1.conv1", 64, 40),
        LayerWidth("blocks.1.conv2", 64, 32),
        LayerWidth("blocks.2.conv1", 64, 32),
        LayerWidth("blocks.2.conv2", 64, 32),
        LayerWidth("head", 10, 10),
    )


def _spectra() -> tuple[Spectrum, ...]:
    unit = "predicted loss of removing the unit, nats"
    made = []
    for index, (axis, units, kept) in enumerate(
        (("stem", 24, 16), ("blocks.0.inner", 48, 40), ("blocks.1.inner", 48, 40), ("blocks.2.inner", 40, 32),
         ("stage2", 40, 32))
    ):  # fmt: skip
        ripple = [1 + 0.25 * math.sin(3.1 * rank + index) for rank in range(units)]
        scores = tuple(
            0.08 * ripple[rank] * math.exp(-rank / (5 + 2 * index)) / (1 + (rank / kept) ** 6) for rank in range(units)
        )
        made.append(Spectrum(axis, "channels", tuple(sorted(scores, reverse=True)), kept, unit))
    return tuple(made)


def sample_evolution(layer: str = "blocks.0.layer", states: int = 32) -> Evolution:
    """A spectrum that falls by a decade every 8 ranks, of which half is cut at step 100 of 600."""
    ranks = tuple(range(1, 2 * states + 1))

    def look(step: int, left: int) -> Look:
        return Look(step, left, tuple(10 ** (-rank / 8) * (1 + step / 600) for rank in ranks[: 2 * left]))

    return Evolution(layer, states, ranks, (look(20, states), look(100, states), look(300, states // 2), look(600, 16)))
