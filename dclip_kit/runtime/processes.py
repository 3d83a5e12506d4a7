"""Several processes: divides the work among them, and gathers the results in order.

`accelerate launch` starts them, each running the same program. All of them must call a function
that gathers, or those that do wait for the others for ever. A single process does all the work.
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
    """accelerate's state; None if this is the only process.

    A state made before `notebook_launcher` forks would be inherited, and each process would take
    itself for the only one: so it is made only after that.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not torch.distributed.is_initialized():
        return None
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def training_device(wanted: torch.device | str) -> torch.device:
    """The device to train on: as wanted, or, of several processes, as accelerate assigns it."""
    state = _several()
    return torch.device(wanted) if state is None else state.device


def is_main_process() -> bool:
    """Whether this is the process that shows progress and writes files for all."""
    state = _several()
    return state is None or state.is_main_process


def own_share(count: int) -> Int[Tensor, "own"]:
    """This process's share of `count` items, by index.

    Shares are consecutive and equally long, as collective calls need it: where the items do not
    divide evenly, the last one is repeated, to be cut off after gathering.

    Args:
        count: at least 1.
    """
    state = _several()
    if state is None:
        return torch.arange(count)
    share = -(-count // state.num_processes)
    start = share * state.process_index
    return torch.arange(start, start + share).clamp(max=count - 1)


def own_turns(files: list[Path]) -> list[Path]:
    """This process's share of files, taken in turns; shares may differ in length.

    Args:
        files: the same in all processes.
    """
    state = _several()
    return files if state is None else files[state.process_index :: state.num_processes]


def wait_for_all() -> None:
    """Waits until all processes have called it."""
    state = _several()
    if state is not None:
        state.wait_for_everyone()


def gather_rows(own: Tensor) -> Tensor:
    """The rows of all processes, in their order; each has at least one, and numbers may differ.

    Args:
        own: this process's rows, of any shape; only the first axis may differ between processes.

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
    """Whether a file exists; processes must agree, as it decides what they do next.

    Raises:
        ValueError: only some processes see it; they would wait for each other for ever.
    """
    exists = gather_rows(torch.tensor([int(path.exists())])).bool()
    if exists.any() and not exists.all():
        raise ValueError(
            f"Expected all processes to see {path}, but {int(exists.sum())} of {len(exists)} do; "
            "put it where every machine reads the same."
        )
    return bool(exists.all())


def gather_batch(
    own_image: Float[Tensor, "own embed"],
    own_text: Float[Tensor, "_own _embed"],
    images: int,
    texts: int,
) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "text _embed"]]:
    """Gathers a batch's features from all processes, with gradients back to each part.

    Every process then computes the loss of the whole batch. The gradients that a part gets from all
    of them add up, and DistributedDataParallel averages them: the same as in a single process.

    Args:
        own_image: features of this process's `own_share(images)`.
        own_text: features of its `own_share(texts)`.
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
