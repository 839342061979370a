import pytest

from balsa_ray.vllm_plugin.register import ARCHITECTURE, check_registered, register


def test_registering_again_changes_nothing() -> None:
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from balsa_ray.model.configuration import BalsaConfig

    register()
    register()
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()
    assert isinstance(AutoConfig.for_model("balsa"), BalsaConfig)
    check_registered()


def test_a_process_without_the_plugin_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import ModelRegistry

    register()
    monkeypatch.delitem(ModelRegistry.models, ARCHITECTURE)
    monkeypatch.setattr("vllm.plugins.load_general_plugins", lambda: None)
    with pytest.raises(RuntimeError, match=r"its plugin `balsa` was not loaded. Install this package"):
        check_registered()
