import pytest
import torch
from torch import nn

from balsa_ray.training.state import TrainState, load_weights, trained_parameters

# Gathering and restoring across workers and ZeRO stages: tests/training/test_invariants.py.


def model() -> nn.Module:
    found = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    for parameter in found[0].parameters():
        parameter.requires_grad = False
    return found


def test_only_what_is_trained_is_loaded() -> None:
    one = model().bfloat16()
    frozen = one[0].weight.clone()
    weights = {"1.weight": torch.full((2, 2), 0.1), "1.bias": torch.ones(2)}
    load_weights(one, TrainState(3, weights, {}))
    assert trained_parameters(one).keys() == weights.keys()
    assert torch.equal(one[0].weight, frozen)
    assert torch.equal(one[1].weight, torch.full((2, 2), 0.1).bfloat16())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"1.weight": torch.ones(2, 2)}, "1.bias is missing in it and .2,. in the model"),
        ({"1.weight": torch.ones(2, 3), "1.bias": torch.ones(2)}, "1.weight is .2, 3. in it and .2, 2. in the model"),
        (
            {"1.weight": torch.ones(2, 2), "1.bias": torch.ones(2), "2.x": torch.ones(1)},
            "2.x is .* unknown in the model",
        ),
    ],
)
def test_weights_of_another_model_are_refused(weights: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_weights(model(), TrainState(3, weights, {}))
