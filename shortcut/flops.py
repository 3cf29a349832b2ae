"""FLOPs of a run and memory of its tensors, counted on torch's meta device: without values, at any size.

The networks are rebuilt there and every step of the plan goes through the same `Denoiser` as in a run, so the real
weights are neither touched nor needed. Counted are matrix products, convolutions and attention, two operations for each
multiply-add. All else, such as norms, softmax and the choice of tokens, is counted apart: one for each element written.

Source: torch.utils.flop_counter. It does not see the CPU's fused attention; on the meta device attention falls apart
into matrix products, which it counts.
Differs from a GPU: the memory that a kernel takes for itself is not seen.

    B  images    L  image tokens    N  tokens still masked    K  tokens revealed
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .accelerators.choice import HEAD, named
from .denoiser import (
    Conditions,
    Denoiser,
    Features,
    Kept,
    MaskedImageModel,
    Tokens,
    full_pass,
)
from .models.architecture import HeadNetwork, ModelNetwork, Network
from .models.layers import Bare
from .noise import Noise
from .sampler import choice, decide, least_probable
from .schedule import SamplerRules, Settings, Step, plan

AnyNetwork = TypeVar("AnyNetwork", bound=Network)


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating point operations of a run, by part."""

    full: int  # all full passes of the model, every guidance branch
    head: int  # all passes of the shortcut head, every guidance branch
    logits: int  # features to logits in all steps
    rest: int  # elements written by all that is no multiply-add
    partial: int = 0  # all partial passes of the model, every guidance branch

    @property
    def total(self) -> int:
        """Multiply-adds of the whole run, two operations each."""
        return self.full + self.partial + self.head + self.logits


@torch.no_grad()
def count_flops(
    network: ModelNetwork,
    head: HeadNetwork | None,
    settings: Settings,
    conditions: Sequence[Conditions],
    grid: tuple[int, int],
    *,
    rules: SamplerRules,
    num_to_make: int | None = None,
    denoise: float = 1.0,
    accelerator: str | None = None,
) -> Flops:
    """Count the operations of a run.

    Args:
        network: a model; only its type and `config` are looked at.
        head: its shortcut head, likewise, or None.
        conditions: of the run, one for each guidance branch; only their shapes matter. Rows = images.
        grid: rows and columns of the images' codes.
        num_to_make: tokens to make in each image; None = all.
        denoise: share that they are of those that may be made.
        accelerator: name of what answers the other steps; None = the head, or full passes where there is none.

    Raises:
        ValueError: a setting is out of range, or the model does not make images of that size.
    """
    model = _on_meta(network).on_grid(*grid)
    conditions = [condition.to("meta") for condition in conditions]
    num_images, num_tokens = len(conditions[0]), grid[0] * grid[1]
    count = num_tokens if num_to_make is None else num_to_make
    steps = plan(settings, count, num_tokens, rules, denoise)
    if not steps:
        return Flops(0, 0, 0, 0)
    codes_BL = _ids(num_images, num_tokens)
    name = accelerator or (HEAD if head is not None else None)
    make = None if name is None else named(name, head and _on_meta(head))
    made = None if make is None else make(model, conditions)
    given = codes_BL, codes_BL.bool(), conditions, steps[0]
    with _Elements() as written_by_full, FlopCounterMode(display=False) as counter:
        features, kept = full_pass(model, made, *given)
    per_full, passes = counter.get_total_flops(), _FullPasses(model, features, kept)
    denoiser = Denoiser(passes, conditions, made)
    noise = Noise(
        *torch.zeros(2, steps[-1].index + 1, num_images, num_tokens, device="meta").unbind()
    )
    with _Elements() as written, FlopCounterMode(display=False) as counter:
        for step in steps:
            index_BN = _ids(num_images, step.num_masked)
            choose = partial(choice, step=step, index_BN=index_BN, noise=noise)
            denoised = denoiser(step, Tokens(codes_BL, codes_BL.bool(), index_BN, choose))
            decide(denoised, step, index_BN, noise)
            num_known = count - step.num_masked
            least_probable(denoised.logits, codes_BL, codes_BL.bool(), num_known, step)
    in_head, in_model = (
        sum(counter.get_flop_counts().get(type(net).__name__, {}).values())
        for net in (head, network)
    )
    return Flops(
        full=passes.count * per_full,
        partial=in_model,
        head=in_head,
        logits=counter.get_total_flops() - in_head - in_model,
        rest=passes.count * written_by_full.count + written.count,
    )


class _FullPasses:
    """A model that counts its full passes instead of making them: they are all alike."""

    def __init__(self, model: MaskedImageModel, features: Features, kept: Kept):
        self.logits, self.image_positions = model.logits, model.image_positions
        self.grid = model.grid
        self.known, self.kept, self.count = features, kept, 0

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
    ) -> Features:
        self.count += 1
        return self.known

    def kept_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        *how: Any,
    ) -> tuple[Features, Kept]:
        self.count += 1
        return self.known, self.kept


class _Elements(TorchDispatchMode):
    """Adds up the elements that operations write, but for multiply-adds and views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if func.overloadpacket not in flop_registry and not is_view:
            self.count += sum(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


def _on_meta(network: AnyNetwork) -> AnyNetwork:
    """Return a network of the same type and configuration that has shapes but no values."""
    return cast(Any, type(network))(network.config, device="meta", operations=Bare)


def _ids(num_images: int, count: int) -> Tensor:
    return torch.zeros(num_images, count, dtype=torch.long, device="meta")


class LiveTensors(TorchDispatchMode):
    """Adds up the bytes of live tensors made under it, without the weights of `networks`.

    `peak` is the most at a time; `peaks` the same for each part, see `during`.
    """

    def __init__(self, *networks: Network):
        super().__init__()
        self.weights = [p.untyped_storage() for net in networks for p in net.parameters()]
        self.live: dict[int, Any] = {id(storage): None for storage in self.weights}
        self.now = self.peak = 0
        self.peaks: dict[str, int] = {}
        self.part: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self.live:
                self._add(tensor.untyped_storage())
        return out

    def during(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` so that calling it begins `part`, which ends where another begins."""

        def watched(*args: Any) -> Any:
            self.part, self.peaks[part] = part, max(self.now, self.peaks.get(part, 0))
            return function(*args)

        return watched

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            del self.live[key]
            self.now -= size

        self.live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self.part is not None:
            self.peaks[self.part] = max(self.peaks[self.part], self.now)


def fused(q_BSD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int) -> Tensor:
    """Stand in for attention that keeps no scores, as GPU kernels do, without values."""
    return torch.empty_like(q_BSD)
