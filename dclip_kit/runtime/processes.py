"""Several processes: which part of the work is whose, and all parts put together in order.

`accelerate launch` starts them, each running the same program. What gathers here must be called by
all of them, or those that call it wait for the others. One process has the whole as its part.
"""

import os
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes, parse_flag_from_env
from jaxtyping import Float, Int
from open_clip.loss import gather_features
from torch import Tensor


def _several() -> PartialState | None:
    """The processes; None where this is the only one.

    Asking accelerate would make a state that the processes which `notebook_launcher` forks would
    inherit, each taking itself for the only one: so accelerate is asked only once launched.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not torch.distributed.is_initialized():
        return None
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def training_device(wanted: torch.device | str) -> torch.device:
    """Where this process trains: as wanted, or of several processes, each where accelerate says."""
    state = _several()
    return torch.device(wanted) if state is None else state.device


def is_main_process() -> bool:
    """Whether this process shows progress and writes files for all."""
    state = _several()
    return state is None or state.is_main_process


def own_share(count: int) -> Int[Tensor, "own"]:
    """This process's share of `count` things, by index.

    Shares follow each other and are equally long, as collective calls want it: where they do not
    divide, the last thing is repeated, to be cut off once all shares are together.

    Args:
        count: at least 1.
    """
    state = _several()
    if state is None:
        return torch.arange(count)
    each = -(-count // state.num_processes)
    start = each * state.process_index
    return torch.arange(start, start + each).clamp(max=count - 1)


def own_turns(files: list[Path]) -> list[Path]:
    """This process's of files that need not be equally many for all: it takes turns with others.

    Args:
        files: the same in all processes.
    """
    state = _several()
    return files if state is None else files[state.process_index :: state.num_processes]


def wait_for_all() -> None:
    """Goes on once all processes have come here."""
    state = _several()
    if state is not None:
        state.wait_for_everyone()


def gather_rows(own: Tensor) -> Tensor:
    """The rows of all processes, in their order; each may have another number of them, but some.

    Args:
        own: of any shape, of which only the first axis may differ between processes.

    Returns:
        The rows, on the CPU.
    """
    state = _several()
    if state is None:
        return own.cpu()
    own = own.to(state.device)
    counts = gather(torch.tensor([len(own)], device=state.device)).tolist()
    parts = gather(pad_across_processes(own)).chunk(state.num_processes)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).cpu()


def exists_for_all(path: Path) -> bool:
    """Whether there is a file, on which the processes must agree: it decides what they do next.

    Raises:
        ValueError: some processes see it and others do not, and would wait for each other for ever.
    """
    seen = gather_rows(torch.tensor([int(path.exists())])).bool()
    if seen.any() and not seen.all():
        raise ValueError(
            f"Expected all processes to see {path}, but {int(seen.sum())} of {len(seen)} do; put "
            "it where every machine reads the same."
        )
    return bool(seen.all())


def gather_batch(
    own_image: Float[Tensor, "own embed"],
    own_text: Float[Tensor, "_own _embed"],
    images: int,
    texts: int,
) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "text _embed"]]:
    """A batch's features from all processes, through which gradients flow back to each part.

    Every process then computes the loss of the whole batch. The gradients that a part gets from all
    of them add up, and DistributedDataParallel takes their mean: what one process would find.

    Args:
        own_image: of this process's `own_share(images)`.
        own_text: of its `own_share(texts)`.
        images: how many the batch has.
        texts: how many the batch has.
    """
    state = _several()
    if state is None:
        return own_image, own_text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has renamed what open_clip calls
        image, text = gather_features(
            own_image,
            own_text,
            gather_with_grad=True,
            rank=state.process_index,
            world_size=state.num_processes,
        )
    return image[:images], text[:texts]
