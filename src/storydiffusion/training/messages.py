"""The messages of libraries that say nothing about a training of this package."""

import logging
import warnings

EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen networks
    ".* directory .* exists and is not empty",  # of a resumed run
    "The `srun` command is available",  # a training may run outside a job where Slurm is installed
    "The number of training batches .* is smaller than the logging interval",  # rows of the log span epochs
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of torch
)
ADVERTISEMENT = "💡 Tip:"


def hide_expected_messages() -> None:
    """Hide the warnings above and Lightning's advertisements of other products; everything else is shown."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ADVERTISEMENT)
