import pytest

from balsa_ray.config import UserError
from balsa_ray.training.trackers import check_installed


def test_a_tracker_that_is_missing_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed([])
    monkeypatch.setattr("balsa_ray.training.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="trackers: wandb is not installed here: pip install wandb"):
        check_installed(["wandb"])
