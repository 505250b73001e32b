"""The device that a policy runs on: the one that a command names, else the best there is."""

from __future__ import annotations

from la4vla.types import UserError


def usable_device(name: str) -> str:
    """The device of `--device name`; of an empty name, `cuda` where there is a GPU, else `cpu`.

    Raises UserError where torch has no such device here.
    """
    import torch  # only here: commands that need no model start without it

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"--device {device}: torch has no such device here; choose cpu or one that it has.") from error
    return device
