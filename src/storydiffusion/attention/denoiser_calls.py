"""Let consistent self-attention see each call of a denoiser before it runs, compiled or offloaded as it may be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, Protocol

from torch import nn


class CallObserver(Protocol):
    """What is called before a denoiser, or in its place."""

    def before_call(self, denoiser: nn.Module, args: tuple, kwargs: dict) -> None:
        """Look at the arguments of a call; a forward pre-hook of the denoiser."""
        ...

    def run(self, call: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Run a call of the denoiser."""
        ...


@contextmanager
def before_calls(denoiser: nn.Module, state: CallObserver, divides: bool) -> Iterator[None]:
    """Let the state see each call of the denoiser, and run it where it `divides` calls, outside any compiled graph."""
    compiled = vars(denoiser).get("_compiled_call_impl")  # of denoiser.compile(), whose graph may lack new hooks
    if compiled is None:
        hook = denoiser.register_forward_pre_hook(state.before_call, with_kwargs=True)
        try:
            with _run_by(denoiser, state) if divides else nullcontext():
                yield
        finally:
            hook.remove()
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        state.before_call(denoiser, args, kwargs)
        return state.run(compiled, args, kwargs)

    denoiser._compiled_call_impl = call
    try:
        yield
    finally:
        denoiser._compiled_call_impl = compiled


@contextmanager
def _run_by(denoiser: nn.Module, state: CallObserver) -> Iterator[None]:
    """Let the state run the denoiser's `forward`, which offloading may have replaced before."""
    own = vars(denoiser).get("forward")
    forward = denoiser.forward

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return state.run(forward, args, kwargs)

    denoiser.forward = run
    try:
        yield
    finally:
        if own is None:
            del denoiser.forward
        else:
            denoiser.forward = own
