"""LAMB over all tensors with the same settings at once."""

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmgnv3.registry import OPTIMIZERS
from mmgnv3.utils.arguments import is_real

# What the update of a parameter depends on besides betas.
_SETTINGS = (
    'step',
    'lr',
    'bias_correction',
    'eps',
    'weight_decay',
    'grad_averaging',
    'trust_clip',
    'always_adapt',
)


@OPTIMIZERS.register_module()
class Lamb(Optimizer):
    """LAMB (arXiv 1904.00962) with the update, arguments and state of mmpretrain's.

    A re-parameterizable network has many small parameters: 978 in GhostNetV3 1.0x. mmpretrain's
    Lamb makes about fifteen calls for each, this one a few for all that have the same settings
    (``torch._foreach_*``), however they are grouped: mmengine makes a group of every parameter as
    soon as there is a ``paramwise_cfg``. On a GPU it never waits, on a CPU the last of the calls is
    one a parameter. A checkpoint of the one Lamb is a checkpoint of the other. timm's
    Lamb, the only maintained one with such calls, makes them on GPUs alone by default, still ends
    in one call a parameter there, and would make timm a requirement of training.

    The update of a parameter p with the gradient g, after all gradients were divided by
    ``max(1, |all gradients| / max_grad_norm)``, in place::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p
        p = p - lr * |p| / |u| * u

    Args:
        params: Parameters, or dicts of them with settings of their own.
        lr: Learning rate.
        bias_correction: Whether m and v are divided by one minus their beta to the power t.
        betas: Decay rates of m and v.
        eps: Added to the square root of v.
        weight_decay: Share of the parameter that is added to its update.
        grad_averaging: Whether g enters m with the weight 1 - beta1, otherwise with 1.
        max_grad_norm: Norm of all gradients of all groups together from which they are scaled
            down. None turns that off.
        trust_clip: Whether |p| / |u| is at most 1 (LAMBC).
        always_adapt: Whether parameters without weight decay get the factor |p| / |u| too. It is
            1 where one of the norms is 0.

    Raises:
        ValueError: If a number, of the arguments or of a group, is none or outside its range.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> optimizer = Lamb(layer.parameters(), lr=5e-3, weight_decay=0.05)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            bias_correction=bias_correction,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            grad_averaging=grad_averaging,
            max_grad_norm=max_grad_norm,
            trust_clip=trust_clip,
            always_adapt=always_adapt,
        )
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters with settings of their own.

        Args:
            param_group: Parameters as ``params``, and those settings that are not the common ones.

        Raises:
            ValueError: If a setting is no number or outside its range.
        """
        super().add_param_group(param_group)
        _check(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters that have a gradient.

        Args:
            closure: Computes the loss and the gradients anew.

        Returns:
            The loss of the closure, if there is one.

        Raises:
            RuntimeError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._clip_gradients()
        updates: dict[tuple, tuple[dict, list[Tensor]]] = {}
        for group in self.param_groups:
            group['step'] = group.get('step', 0) + 1
            settings = (*group['betas'], *(group[name] for name in _SETTINGS))
            _, params = updates.setdefault(settings, (group, []))
            params.extend(p for p in group['params'] if p.grad is not None)
        for group, params in updates.values():
            if params:
                self._update(group, params)
        return loss

    def _clip_gradients(self) -> None:
        grads = [p.grad for g in self.param_groups for p in g['params'] if p.grad is not None]
        if any(grad.is_sparse for grad in grads):
            raise RuntimeError('Lamb does not support sparse gradients. Use SparseAdam for them.')
        max_norm = self.defaults['max_grad_norm']
        if not grads or max_norm is None:
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_div_(grads, (norm / max_norm).clamp_min_(1.0))

    def _update(self, group: dict, params: list[Tensor]) -> None:
        grads = [p.grad for p in params]
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state['exp_avg'] = torch.zeros_like(p)
                state['exp_avg_sq'] = torch.zeros_like(p)
        exp_avgs = [state['exp_avg'] for state in states]
        exp_avg_sqs = [state['exp_avg_sq'] for state in states]
        beta1, beta2 = group['betas']
        if group['grad_averaging']:
            torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        else:
            torch._foreach_mul_(exp_avgs, beta1)
            torch._foreach_add_(exp_avgs, grads)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)

        # The corrections are numbers: taken out of the fraction and multiplied into what follows,
        # they cost no pass over the tensors.
        root, scale = 1.0, 1.0
        if group['bias_correction']:
            root = (1 - beta2 ** group['step']) ** 0.5
            scale = root / (1 - beta1 ** group['step'])
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, group['eps'] * root)
        updates = torch._foreach_div(exp_avgs, denominators)
        del denominators
        step_size = group['lr'] * scale
        if group['weight_decay'] != 0:
            torch._foreach_add_(updates, params, alpha=group['weight_decay'] / scale)
        elif not group['always_adapt']:
            torch._foreach_sub_(params, updates, alpha=step_size)
            return
        norms = torch.stack(torch._foreach_norm(params))
        update_norms = torch.stack(torch._foreach_norm(updates)) * scale
        ratios = torch.where((norms > 0) & (update_norms > 0), norms / update_norms, 1.0)
        if group['trust_clip']:
            ratios = ratios.clamp_max(1.0)
        _subtract_scaled(params, updates, step_size * ratios)


def _check(settings: dict) -> None:
    for name in ('lr', 'eps', 'weight_decay'):
        value = settings[name]
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not is_real(value) or value < 0:
            raise ValueError(f'{name} of Lamb must be a number of at least 0, got {value!r}.')
    betas = settings['betas']
    if (
        not isinstance(betas, tuple | list)
        or len(betas) != 2
        or not all(is_real(beta) and 0 <= beta < 1 for beta in betas)
    ):
        raise ValueError(
            f'betas of Lamb must be two numbers of at least 0 and less than 1, got {betas!r}.'
        )
    norm = settings['max_grad_norm']
    if norm is not None and (not is_real(norm) or norm <= 0):
        raise ValueError(
            'max_grad_norm of Lamb must be a number greater than 0, or None to leave gradients as '
            f'they are, got {norm!r}.'
        )


def _subtract_scaled(params: list[Tensor], updates: list[Tensor], factors: Tensor) -> None:
    """Subtract ``factors[i] * updates[i]`` from ``params[i]``.

    Args:
        params: n tensors.
        updates: n dense tensors of the same shapes.
        factors: Tensor of shape (n,) on their device.
    """
    if not factors.is_cpu:
        _subtract_scaled_flat(params, updates, factors)
        return
    for param, update, factor in zip(params, updates, factors.tolist(), strict=True):
        param.sub_(update, alpha=factor)


def _subtract_scaled_flat(params: list[Tensor], updates: list[Tensor], factors: Tensor) -> None:
    """The same in a few calls for all tensors, and without reading the factors.

    No call of torch scales n tensors by n numbers that are on a GPU.
    """
    sizes = tuple(update.numel() for update in updates)
    # In the order of memory, whatever the memory format is.
    flat = torch.cat([u.as_strided((n,), (1,)) for u, n in zip(updates, sizes, strict=True)])
    repeats = _repeats(sizes, flat.device)
    flat *= torch.repeat_interleave(factors, repeats, output_size=sum(sizes))
    pieces = zip(flat.split(sizes), updates, strict=True)
    torch._foreach_sub_(params, [piece.as_strided(u.shape, u.stride()) for piece, u in pieces])


@lru_cache(maxsize=16)
def _repeats(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    # Once for all steps: a copy to a GPU makes the process wait.
    return torch.tensor(sizes, device=device)
