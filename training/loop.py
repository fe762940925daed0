"""The training loop: one step after the other, an average of the weights beside them, checkpoints a kill cannot tear.

A step's randomness is a function of (seed, step), a checkpoint holds everything else, so a run killed at any point and
started again ends with the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save

from invfast.files import write_atomically

console = Console(stderr=True)


@dataclass(frozen=True)
class Recipe:
    """What a run is: changing any of it needs a new folder."""

    steps: int
    batch: int
    rate: float
    seed: int = 0
    warm_up: int = 200
    decay: float = 0.999  # of the averaged weights
    checkpoint_every: int = 50

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 1 % of the rate."""
        rise = min(1.0, (step + 1) / self.warm_up)
        fall = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.rate * rise * fall


def train(
    module: torch.nn.Module,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    recipe: Recipe,
    folder: Path,
    *,
    sheet: Callable[[torch.nn.Module, int], None] | None = None,
    sitting: Path | None = None,
) -> torch.nn.Module:
    """Trains `module` in place, or goes on where `folder` left off; returns the averaged copy of it.

    Where the folder is empty but `sitting` names weights that an earlier sitting left (`keep_sitting`), the run goes on
    from those, its optimiser's moments cold.

    Args:
        module: with its initial weights.
        loss_of: step -> (loss, figures for the log); the only randomness it may use is a function of the step.
        recipe: how long and how fast.
        folder: takes checkpoint.pt, log.jsonl, early.pt (the average at a tenth of the steps).
        sheet: called with the averaged module ten times in a run.
        sitting: file of an earlier sitting's weights; used only where the folder has no checkpoint.

    Raises:
        ValueError: the folder holds a run of another recipe.
        FloatingPointError: the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = torch.optim.swa_utils.AveragedModel(module, avg_fn=_ema(recipe.decay))
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01)
    first, seconds = _resume(folder, recipe, module, average, optimizer, sitting)
    log = _Log(folder / "log.jsonl", first)
    started = time.perf_counter() - seconds
    if first == recipe.steps and not (folder / "checkpoint.pt").exists():  # an earlier sitting finished it
        _checkpoint(folder, recipe, module, average, optimizer, first, seconds)
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        loss, figures = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step} of {folder.name}; lower the rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(module)
        log.add(step, {"loss": loss.item(), **figures})
        done, seconds = step + 1, time.perf_counter() - started
        if done == recipe.steps // 10:
            _save(folder / "early.pt", {"average": average.module.state_dict(), "step": done, "seconds": seconds})
        if sheet is not None and done % max(1, recipe.steps // 10) == 0:
            sheet(average.module, done)
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            _checkpoint(folder, recipe, module, average, optimizer, done, seconds)
            log.flush(done, recipe.steps, seconds)
    return average.module


def averaged(folder: Path, module: torch.nn.Module, name: str = "checkpoint.pt") -> dict[str, float]:
    """Loads a run's averaged weights into `module`; returns how far the run was: steps, seconds."""
    saved = torch.load(folder / name, weights_only=True)
    module.load_state_dict(saved["average"])
    return {"steps": saved["step"], "seconds": saved["seconds"]}


def _ema(decay: float) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    def mix(average: torch.Tensor, new: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        keep = min(decay, (1 + float(count)) / (10 + float(count)))
        return torch.lerp(new, average, keep)

    return mix


def _checkpoint(folder: Path, recipe: Recipe, module, average, optimizer, step: int, seconds: float) -> None:
    state = {
        "module": module.state_dict(),
        "average": average.module.state_dict(),
        "averages": average.n_averaged,
        "optimizer": optimizer.state_dict(),
    }
    _save(folder / "checkpoint.pt", {**state, "step": step, "seconds": seconds, "recipe": asdict(recipe)})


def keep_sitting(folder: Path, path: Path, early: bool = True) -> dict[str, float]:
    """Writes what a later sitting on another machine needs of a run: its averaged weights in float16.

    With `early`, those of a tenth of the steps, where the run has passed it, go into a second file beside it.

    Returns:
        How far the run was: steps, seconds.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for saved_as, kept_as in (("early.pt", _early(path)), ("checkpoint.pt", path)):
        if saved_as == "early.pt" and not (early and (folder / saved_as).exists()):
            continue
        saved = torch.load(folder / saved_as, weights_only=True)
        half = {n: x.half().contiguous() if x.is_floating_point() else x for n, x in saved["average"].items()}
        facts = {"step": saved["step"], "seconds": saved["seconds"], "recipe": saved.get("recipe")}
        write_atomically(kept_as, save(half, {"json": json.dumps(facts)}))
    return {"steps": saved["step"], "seconds": saved["seconds"]}


def _early(path: Path) -> Path:
    return path.with_name(f"{path.stem}-early{path.suffix}")


def _take_up(path: Path, folder: Path, recipe: Recipe, module, average) -> tuple[int, float]:
    """Goes on from a sitting's average; both the weights and their average start from it."""
    facts, tensors = _read(path)
    # More steps than planned at first are no other run: the rate rises again and falls later.
    if {**facts["recipe"], "steps": recipe.steps} != asdict(recipe) or facts["step"] > recipe.steps:
        raise ValueError(f"{path} is of another recipe, {facts['recipe']}; this one is {asdict(recipe)}: remove it")
    module.load_state_dict(tensors)
    average.module.load_state_dict(tensors)
    average.n_averaged.fill_(facts["step"])
    if _early(path).exists():
        early, weights = _read(_early(path))
        _save(folder / "early.pt", {"average": weights, "step": early["step"], "seconds": early["seconds"]})
    console.print(f"{path.stem}: taken up from an earlier sitting at step {facts['step']} of {recipe.steps}")
    return facts["step"], facts["seconds"]


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return json.loads(file.metadata()["json"]), {
            n: x.float() if x.is_floating_point() else x for n, x in tensors.items()
        }


def _resume(folder: Path, recipe: Recipe, module, average, optimizer, sitting: Path | None) -> tuple[int, float]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return _take_up(sitting, folder, recipe, module, average) if sitting and sitting.exists() else (0, 0.0)
    saved = torch.load(path, weights_only=True)
    if saved["recipe"] != asdict(recipe):
        raise ValueError(
            f"{path} is of another recipe, {saved['recipe']}; this one is {asdict(recipe)}: take a new folder"
        )
    module.load_state_dict(saved["module"])
    average.module.load_state_dict(saved["average"])
    average.n_averaged.copy_(saved["averages"])
    optimizer.load_state_dict(saved["optimizer"])
    console.print(f"{folder.name}: going on at step {saved['step']} of {recipe.steps}")
    return saved["step"], saved["seconds"]


def _save(path: Path, content: dict) -> None:
    buffer = BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


class _Log:
    """JSON lines up to the last checkpoint: a resumed run drops what it is about to repeat."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines = [line for line in lines if json.loads(line)["step"] < first]

    def add(self, step: int, figures: dict[str, float]) -> None:
        self.lines.append(json.dumps({"step": step, **{name: round(value, 6) for name, value in figures.items()}}))

    def flush(self, done: int, steps: int, seconds: float) -> None:
        write_atomically(self.path, ("\n".join(self.lines) + "\n").encode())
        recent = [json.loads(line) for line in self.lines[-50:]]
        means = {name: sum(row[name] for row in recent) / len(recent) for name in recent[-1] if name != "step"}
        figures = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        console.print(f"{self.path.parent.name} {done}/{steps}, {seconds / 60:.0f} min: {figures}", highlight=False)
