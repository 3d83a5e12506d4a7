"""Training states on disk: continued exactly, refused when damaged or of something else."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dclip_kit.runtime.files import save_tensors
from dclip_kit.training.checkpoint import load_training_state, save_training_state


def start() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.LayerNorm(3))
    return module, torch.optim.AdamW(module.parameters(), lr=0.1)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        (module(torch.randn(8, 3)) ** 3).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_training_state_continues_exactly(tmp_path) -> None:
    """Weights, Adam's moments and the random numbers that draw data and dropout."""
    path = tmp_path / "state.safetensors"
    module, optimizer = start()
    train(module, optimizer, 3)
    progress = {"step": 3, "history": [{"loss": 0.1 + 0.2}], "name": "ä"}
    save_training_state(path, module, optimizer, progress)
    train(module, optimizer, 4)

    resumed, its_optimizer = start()
    torch.manual_seed(99)
    assert load_training_state(path, resumed, its_optimizer) == progress
    train(resumed, its_optimizer, 4)
    for ours, theirs in zip(resumed.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert load_file(path).keys() > {"module.0.weight", "optimizer.0.exp_avg", "optimizer.3.step"}


@pytest.mark.parametrize("how", ["cut", "garbage", "other tensors", "architecture"])
def test_a_state_that_does_not_fit_is_refused(how, tmp_path) -> None:
    path = tmp_path / "state.safetensors"
    module, optimizer = start()
    save_training_state(path, module, optimizer, {})
    if how == "other tensors":
        save_tensors(module.state_dict(), path)
    elif how == "architecture":
        module = nn.Linear(3, 3)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-1], "garbage": b"\x80" * 99}[how])
    with pytest.raises(ValueError, match=r"state\.safetensors"):
        load_training_state(path, module, optimizer)
