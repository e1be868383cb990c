"""Muon: momentum whose matrix updates are orthogonalised by a Newton–Schulz iteration; AdamW for all other parameters.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` takes
two-dimensional parameters only; here a convolution counts as the matrix (out, in · height · width).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move every matrix of (batch, rows, columns) near the closest semi-orthogonal one: singular values near 1.

    The iteration runs in `dtype`, also that of the result; bfloat16 is precise enough.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    rows, columns = x.shape[-2:]
    # on X Xᵀ there are 2 products with X instead of 10; squared singular values were not tried in bfloat16
    x = _iterate_on_gram(x) if dtype == torch.float32 and columns >= 4 * rows else _iterate(x)
    return x.mT if tall else x


def _iterate(x: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_on_gram(x: Tensor) -> Tensor:
    """Return `_iterate(x)`: each iteration multiplies X by a polynomial P of X Xᵀ, which becomes P X Xᵀ P."""
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT
    identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ x


class Muon(torch.optim.Optimizer):
    """Muon for `matrices`, AdamW for `others`, in one optimizer with one state.

    Args:
        matrices: parameters of two or more dimensions, hidden layers only.
        others: embeddings, first and last layers, norms, biases.
        lr: Muon's learning rate; the update of an (m, n) matrix is scaled by √max(1, m/n).
        adam_lr: the learning rate of `others`.
        momentum: of Muon, Nesterov's form.
        weight_decay: decoupled, for `matrices` only.
        dtype: of the Newton–Schulz iteration; bfloat16 is faster where the hardware has it.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float = 0.02,
        adam_lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "lr": lr, "kind": "muon"},
            {"params": list(others), "lr": adam_lr, "kind": "adam"},
        ]
        self.dtype = dtype
        super().__init__([g for g in groups if g["params"]], {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adam
            update(group, [p for p in group["params"] if p.grad is not None])
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        # matrices of one shape are updated in one batch: far fewer small products
        shapes: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in params:
            shapes[p.shape[0], p[0].numel()].append(p)
        for shape, same in shapes.items():
            for p in same:
                self.state[p].setdefault("momentum", torch.zeros_like(p))
            gradients = torch.stack([p.grad.reshape(shape) for p in same if p.grad is not None])
            momenta = torch.stack([self.state[p]["momentum"].reshape(shape) for p in same])
            momenta.lerp_(gradients, 1 - group["momentum"])
            updates = orthogonalise(gradients.lerp_(momenta, group["momentum"]), self.dtype).to(momenta)
            scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
            for p, momentum, update in zip(same, momenta, updates, strict=True):
                self.state[p]["momentum"].copy_(momentum.reshape(p.shape))
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.reshape(p.shape), alpha=-scale)

    def _adam(self, group: dict[str, Any], params: list[Tensor], betas: tuple[float, float] = (0.9, 0.98)) -> None:
        for p in params:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - betas[0])
            state["square"].mul_(betas[1]).addcmul_(p.grad, p.grad, value=1 - betas[1])
            mean = state["mean"] / (1 - betas[0] ** state["step"])
            square = state["square"] / (1 - betas[1] ** state["step"])
            p.addcdiv_(mean, square.sqrt().add_(1e-8), value=-group["lr"])


def split_parameters(module: nn.Module, edges: tuple[str, ...] = ()) -> tuple[list[Tensor], list[Tensor]]:
    """Return the trainable parameters of `module` as (matrices, others).

    Embeddings and parameters whose name contains one of `edges` (first and last layers) go to the others.
    """
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            edge = p.ndim < 2 or id(p) in embeddings or any(part in name for part in edges)
            (others if edge else matrices).append(p)
    return matrices, others
