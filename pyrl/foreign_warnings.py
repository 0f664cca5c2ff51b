"""What the libraries say to developers of their own, kept off the terminal of `pyrl`: by name, each with its reason.

A warning that is not named here is shown, whoever raises it. What vLLM's servers say is in `server*.log` all the same.
"""

from __future__ import annotations

import os
import warnings
from typing import NamedTuple


class ForeignWarning(NamedTuple):
    """The arguments of `warnings.filterwarnings`: two regular expressions, matched from the start, and a category."""

    message: str
    category: type[Warning]
    module: str
    """That raises it, or that torch names as the caller."""


FOREIGN_WARNINGS = (
    # On import, once a module. pyrl's ops and torch's Adam take their place by design: there is nothing to install.
    ForeignWarning(r"(Transformer Engine and )?Apex (is|are) not installed", UserWarning, r"megatron\.core\."),
    # Megatron-Core's optimizer clears the gradients of its shards, which are views of the parameters.
    ForeignWarning(r"The \.grad attribute of a Tensor that is not a leaf", UserWarning, r"megatron\.core\.optimizer\."),
    # torch 2.13 renames these two; Megatron-Core 0.16.1 reduces gradients and gathers parameters with them.
    ForeignWarning(
        r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
        FutureWarning,
        r"torch\.distributed\.c10d_logger",
    ),
    # Megatron-Core 0.16.1 loads a checkpoint by this function of torch, and hands it tensors of this class.
    ForeignWarning(
        r"`load_state_dict` is deprecated", FutureWarning, r"megatron\.core\.dist_checkpointing\.strategies\.torch"
    ),
    ForeignWarning(
        r"Please use DTensor instead and we are deprecating ShardedTensor", FutureWarning, r"torch\.distributed\."
    ),
    # reasoning-gym's cellpylib, where Python first compiles it; it names the file, not the module.
    ForeignWarning(r'"is" with a literal', SyntaxWarning, r".*cellpylib"),
)


def silence_foreign_output() -> None:
    """For the rest of the process. Call it before the libraries are imported: that is when some speak, and when tqdm
    reads its variable."""
    for warning in FOREIGN_WARNINGS:
        warnings.filterwarnings("ignore", *warning)
    # transformers draws bars while it reads and writes weights, amid our lines. A user's own setting is kept.
    os.environ.setdefault("TQDM_DISABLE", "1")
