"""The balsa model in vLLM: vLLM's own LLM of whatever family, fed with embeddings by the module that was trained."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from balsa_ray.checkpoints import resolve
from balsa_ray.model import lora
from balsa_ray.model.bases import base_paths
from balsa_ray.model.configuration import AUDIO_TOKEN, BalsaConfig
from balsa_ray.model.connector import AudioTower, load_encoder
from balsa_ray.vllm_plugin.processing import BalsaDummyInputs, BalsaMultiModalProcessor, BalsaProcessingInfo


@MULTIMODAL_REGISTRY.register_processor(
    BalsaMultiModalProcessor, info=BalsaProcessingInfo, dummy_inputs=BalsaDummyInputs
)
class BalsaForConditionalGeneration(nn.Module, SupportsMultiModal):
    """Serves a directory written by `balsa_ray.model.modeling.BalsaForConditionalGeneration.save_pretrained`."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Returns what stands for a clip in a prompt."""
        if modality != "audio":
            raise ValueError(f"{modality}: this model hears audio only")
        return AUDIO_TOKEN

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: BalsaConfig = vllm_config.model_config.hf_config
        self.config = config
        self.dtype = vllm_config.model_config.dtype
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.audio_token_id])

        self.directory = resolve(vllm_config.model_config.model)
        text_path, self.audio_path = base_paths(config, self.directory)
        # The model directory itself holds the connector only; the LLM's weights are read from where they are.
        self.secondary_weights = [DefaultModelLoader.Source(str(text_path), None, prefix="language_model.")]
        with self._mark_tower_model(vllm_config, "audio"):
            self.audio_tower = AudioTower(config).to(self.dtype)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )

    def get_mm_mapping(self) -> MultiModelKeys:
        """Returns which of the modules is which part."""
        return MultiModelKeys.from_string_field(
            language_model="language_model.",
            connector="audio_tower.connector.",
            tower_model="audio_tower.encoder.",
        )

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Returns each clip as embeddings, N of each of its windows `[w × N, H]`; vLLM keeps them by content hash."""
        features = kwargs.get("input_features")
        if features is None:
            return []
        windows = self.audio_tower(features)
        return [clip.flatten(0, 1) for clip in windows.split(kwargs["num_windows"].flatten().tolist())]

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Returns embeddings `[L, H]` of token ids, with the clips' at their placeholders.

        vLLM masks placeholders only where a clip is. One typed into a prompt without clips would index behind the
        LLM's table and end the engine for everybody; here it reads row 0.
        """
        known_ids = input_ids.masked_fill(input_ids >= self.config.text_config.vocab_size, 0)
        if multimodal_embeddings is None or is_multimodal is None:
            return super().embed_input_ids(known_ids)
        return super().embed_input_ids(
            known_ids, multimodal_embeddings=multimodal_embeddings, is_multimodal=is_multimodal
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Returns the LLM's hidden states. Families name their inner model differently, so its outer one is called."""
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Returns logits `[L, V]`, without the placeholder where the LLM's table has a row for it."""
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None and self.config.audio_token_id < logits.shape[-1]:
            logits[:, self.config.audio_token_id] = -torch.inf
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the connector and the LLM from what vLLM reads, and the encoder from its own checkpoint.

        LoRA is merged on the way: exact, as fast as no LoRA, and independent of vLLM's own limits on where it may be.
        """
        if (text_lora := self.directory / lora.TEXT).is_dir():
            weights = lora.merged(weights, text_lora, prefix="language_model.")
        loaded = AutoWeightsLoader(self).load_weights(weights)
        # Not an AudioTower where the engine was told to take no audio at all.
        if isinstance(self.audio_tower, AudioTower):
            encoder = load_encoder(self.audio_path, self.config, self.dtype)
            if (audio_lora := self.directory / lora.AUDIO).is_dir():
                lora.merge(encoder, audio_lora)
            state = encoder.state_dict()
            self.audio_tower.encoder.load_state_dict(state)
            loaded |= {f"audio_tower.encoder.{name}" for name in state}
        return loaded
