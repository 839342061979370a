"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`): makes it know the balsa model.

Everything is named as a string or imported in here, so that a process which only looks at its plugins stays light.
"""

ARCHITECTURE = "BalsaForConditionalGeneration"
# Value of VLLM_MEDIA_CONNECTOR under which this package decides where audio in chat messages may come from.
MEDIA_CONNECTOR = "balsa"
# Environment variable: seconds beyond which audio in a chat message is not even decoded (default: a new model's limit).
MAX_SECONDS = "BALSA_MAX_AUDIO_SECONDS"
# Environment variable: hosts from which audio may be fetched by http(s) URL, with commas between (default: none).
AUDIO_HOSTS = "BALSA_AUDIO_HOSTS"


def register() -> None:
    """Registers configuration, processor, model and media connector. vLLM calls it more than once a process."""
    from vllm import ModelRegistry
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    from balsa_ray.model import register as register_with_transformers
    from balsa_ray.vllm_plugin.media import AudioConnector

    register_with_transformers()
    MEDIA_CONNECTOR_REGISTRY.register(MEDIA_CONNECTOR)(AudioConnector)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"balsa_ray.vllm_plugin.model:{ARCHITECTURE}")


def check_registered() -> None:
    """Makes sure that vLLM in this process knows the balsa model; call it before an engine starts.

    Raises:
        RuntimeError: If it doesn't, with what to do. vLLM itself would fail later, and name only the architecture.
    """
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        raise RuntimeError(
            f"vLLM in this process doesn't know {ARCHITECTURE}: its plugin `balsa` was not loaded. Install this "
            "package in the environment of every node (its entry point is what vLLM finds), and name `balsa` in "
            "VLLM_PLUGINS if that variable is set."
        )
