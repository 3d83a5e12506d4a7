"""Where a pre-training begins, or goes on after a stop."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dclip_kit.training.checkpoint import load_training_state


def begin_or_continue(
    state: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, recipe: Any
) -> dict[str, Any]:
    """The progress of a training, whose weights are loaded if it was begun before.

    Args:
        state: of the training, written by `save_training_state`.
        module: that trains.
        optimizer: of the module.
        recipe: a dataclass; but for its steps, the state must be of the same.

    Raises:
        SystemExit: the state is of another recipe, or of more steps.
    """
    # As JSON gives them back.
    described = json.loads(json.dumps({k: v for k, v in asdict(recipe).items() if k != "steps"}))
    progress: dict[str, Any] = {"recipe": described, "step": 0, "seconds": 0.0, "loss": []}
    if state.exists():
        progress = load_training_state(state, module, optimizer)
        if progress.get("recipe") != described or progress["step"] > recipe.steps:
            raise SystemExit(
                f"Expected {state} to be of {recipe}, got another recipe's; delete it to train "
                "again, or name other --runs."
            )
        print(f"Continuing at step {progress['step']} of {recipe.steps}.")
    return progress
