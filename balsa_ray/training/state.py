"""The state of a run in one form, however it is spread over workers: trained weights and Adam's moments by name.

DeepSpeed cuts them over the workers, each ZeRO stage in its own way, and its checkpoints load only into the same number
of workers and the same stage. Here they are gathered to one float32 tensor each, named after the parameter, so that a
run goes on with any number of workers, any stage and either precision, and follows the same loss path.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainState:
    """Where training stands.

    Attributes:
        step: Optimisation steps done.
        weights: Trained parameters by name, float32 on the CPU.
        moments: `exp_avg/NAME` and `exp_avg_sq/NAME`, as `weights`; empty before the first step.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def gather(engine: Any, step: int, keep: bool) -> TrainState | None:
    """Puts the state together. All ranks call it.

    Args:
        engine: The DeepSpeed engine.
        step: Optimisation steps done, at least one.
        keep: Whether this rank wants the state; the others get None.
    """
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, parameter in trained_parameters(engine.module).items():
        for key in (None, *MOMENTS):
            full = _full(engine, parameter, key)
            if not keep:
                continue
            full = full.float().cpu().clone().view(_shape(parameter))
            if key is None:
                weights[name] = full
            else:
                moments[f"{key}/{name}"] = full
    return TrainState(step, weights, moments) if keep else None


@torch.no_grad()
def load_weights(model: nn.Module, state: TrainState) -> None:
    """Puts the weights into a model that is not yet in an engine.

    Raises:
        ValueError: They are not those of this model; names what differs.
    """
    parameters = trained_parameters(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(weight.shape) for name, weight in state.weights.items()}
    if shapes != found:
        name = min(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise ValueError(f"{name} is {found.get(name, 'missing')} in it and {shapes.get(name, 'unknown')} in the model")
    for name, parameter in parameters.items():
        parameter.copy_(state.weights[name])


@torch.no_grad()
def restore(engine: Any, state: TrainState | None) -> None:
    """Sets master weights and moments of a new engine, around a model that has the weights already.

    Without a state the moments are 0 and no step is done: for some stages DeepSpeed makes a step of its own at the
    start, which would count in Adam's correction of its bias.

    Args:
        engine: The DeepSpeed engine, before its first step.
        state: What `gather` returned.
    """
    optimiser = _base(engine)
    # ZeRO 3 hands the optimiser its parameters one after the other, and only while it makes a step.
    cut = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    for parameter in cut or [parameter for group in optimiser.param_groups for parameter in group["params"]]:
        optimiser.state[parameter] = {
            "step": torch.tensor(float(state.step if state else 0)),
            **{key: torch.zeros_like(parameter) for key in MOMENTS},
        }
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    if state is None:
        return
    for name, parameter in trained_parameters(engine.module).items():
        _set(engine, parameter, None, state.weights[name])
        for key in MOMENTS:
            _set(engine, parameter, key, state.moments[f"{key}/{name}"])


def _base(engine: Any) -> torch.optim.Optimizer:
    """The optimiser itself, which every ZeRO stage but 0 wraps."""
    found: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return found


def _full(engine: Any, parameter: nn.Parameter, key: str | None) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if _is_cut(parameter):
        full: Tensor = (
            safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        )
        return full
    return _whole(engine, parameter, key)


def _set(engine: Any, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if hasattr(parameter, "ds_id"):  # ZeRO 3: this rank's part of it, the last one filled up
        size, rank = parameter.ds_tensor.ds_numel, engine.optimizer._get_param_partition_rank(parameter)
        part = torch.zeros(size)
        own = value.flatten()[rank * size : (rank + 1) * size]
        part[: len(own)] = own
        if key is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)
    elif not _is_cut(parameter):
        _whole(engine, parameter, key).copy_(value)
    elif key is None:
        safe_set_full_fp32_param(parameter, value.to(parameter.device))
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _is_cut(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _whole(engine: Any, parameter: nn.Parameter, key: str | None) -> Tensor:
    """ZeRO 0 cuts nothing."""
    found: Tensor = parameter if key is None else _base(engine).state[parameter][key]
    return found


def _shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
