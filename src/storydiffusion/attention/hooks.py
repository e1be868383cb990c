"""Refuse diffusers' hooks that let layers skip or reuse attention, however they were applied to a denoiser.

Caches (first-block cache, pyramid attention broadcast and so on) return what a layer computed in another step, for
other tokens. `enable_cache` notes its settings; `apply_…` functions of diffusers.hooks leave hooks on single modules.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from storydiffusion.errors import UserError

HARMLESS = ("diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting")
"""modules of hooks that move or cast weights and leave what layers compute"""


def check_hooks(denoiser: nn.Module) -> None:
    """Check that no diffusers hook changes what the layers of a denoiser compute.

    Raises:
        UserError: for a hook of a kind that is not known to be harmless.
    """
    for name, module in denoiser.named_modules():
        for hook_name, hook in _get_hooks(module):
            if type(hook).__module__ not in HARMLESS:
                raise UserError(
                    f"the hook {hook_name} ({type(hook).__name__}) on {name or type(denoiser).__name__} may skip or "
                    "reuse attention of other steps, in which sharing is not supported: load the model without it."
                )


def _get_hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and hook of diffusers' registry on a module, if it has one."""
    registry: Any = vars(module).get("_diffusers_hook")
    if registry is not None:
        yield from registry.hooks.items()
