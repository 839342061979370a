"""vLLM inside Ray Data: one chain from rows to replies, the same on a laptop's CPU and on a cluster of GPUs.

Only the engine stage of `ray.data.llm` is used. Its chat-template and tokenizer stages are actors of their own, which
on a small machine take the CPUs that reading and mapping need (the pipeline then waits for ever) and import the whole
of vLLM once more each; a cached tokenizer in the mapping tasks does the same work in 50 microseconds a row.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from balsa_ray.cluster import is_local, last_error
from balsa_ray.compile_cache import with_own_cache
from balsa_ray.config import Config, UserError

if TYPE_CHECKING:
    from ray.data import Dataset

Row = dict[str, Any]

LIGHT_STAGES = 8
"""Tasks that read, map and write beside the engine when a cluster has a single CPU left for them."""
MACHINES_SECONDS = 900.0
"""So long a job waits for an autoscaler's machines: clouds need some minutes for one."""
LOOK_EVERY_SECONDS = 2.0
_BLOCKS = 256
"""Blocks of requests in a run that is neither small nor very large."""
BATCHES_IN_FLIGHT = 4
"""Batches of `max_num_seqs` rows in an engine's actor: it stays full while one of them waits for its slowest row."""
ENGINE_RESTARTS = 3
"""Times that one engine may die in a run."""
# Replies are wanted whole: handing on every token costs the actor more than a small model's decoding.
_FOR_BATCHES = {"disable_log_stats": True, "stream_interval": 1 << 20}


class SamplingConfig(Config):
    """How replies are decoded; the defaults are greedy."""

    temperature: float = Field(0.0, ge=0, description="0: greedy; above: sampled")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the most likely tokens of this total probability")
    top_k: int = Field(0, ge=0, description="sample from this many most likely tokens; 0: from all")
    max_tokens: int = Field(256, ge=1, description="longest reply in tokens")

    def request_fields(self) -> dict[str, float | int]:
        """Returns the fields of an OpenAI-style request. `top_k`, which only vLLM has, stands in it if it is set."""
        return {name: value for name, value in self.model_dump().items() if name != "top_k" or value}


class EngineConfig(Config):
    """One vLLM engine (a replica) and the share of the machine that it gets."""

    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: GPUs where the cluster has any")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and activations; auto: the checkpoint's (float32 becomes bfloat16)"
    )
    max_model_len: int | None = Field(None, ge=16, description="longest prompt and reply in tokens; null: the model's")
    max_num_seqs: int = Field(256, ge=1, description="rows that are decoded at once")
    cpus: int = Field(1, ge=1, description="CPUs of a replica; on a CPU also its threads")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share each layer")
    pipeline_parallel_size: int = Field(1, ge=1, description="groups of GPUs that share the layers")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that a replica takes")
    kv_cache_gb: int = Field(1, ge=1, description="memory for keys and values on a CPU; a GPU has what is left over")
    enforce_eager: bool | None = Field(None, description="no compilation; null: none on a CPU, compiled on a GPU")


@dataclass(frozen=True)
class Share:
    """What each part of the chain books in Ray.

    Attributes:
        gpu: Whether replicas run on GPUs.
        bundle: Resources of one engine worker.
        replicas: Least and most number of engines.
        light_cpus: CPUs of a task that reads, maps or writes.
        light_tasks: Most such tasks of one stage at once, with the most engines.
    """

    gpu: bool
    bundle: dict[str, float]
    replicas: tuple[int, int]
    light_cpus: float
    light_tasks: int


def share_cluster(nodes: Sequence[Mapping[str, float]], engine: EngineConfig, replicas: int | tuple[int, int]) -> Share:
    """Divides a cluster between engines and the light stages around them.

    Engines hold their CPUs for the whole run, so one CPU is left for tasks. CPUs are what Ray counts, not cores.

    Args:
        nodes: Resources of each node as Ray names them (`CPU`, `GPU`).
        engine: Settings of a replica.
        replicas: How many, or the least and most.

    Raises:
        UserError: The cluster can't hold the least number of replicas and a light task beside them: Ray would wait
            for resources that never come.
    """
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    cpus = sum(node.get("CPU", 0) for node in nodes)
    gpus = sum(node.get("GPU", 0) for node in nodes if node.get("CPU", 0) >= engine.cpus)
    workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
    gpu = engine.device == "gpu" or (engine.device == "auto" and gpus > 0)
    if gpu and gpus < least * workers:
        raise UserError(
            f"engine: {least} replicas of {workers} GPUs need {least * workers}, and Ray has {gpus:g}: "
            "lower concurrency (replicas in serving) or engine.tensor_parallel_size, or add nodes"
        )
    if not gpu and workers > 1:
        raise UserError("engine: tensor_parallel_size and pipeline_parallel_size need GPUs, and Ray has none")
    booked = least * workers * engine.cpus
    if booked > cpus - 1:
        raise UserError(
            f"engine: {least * workers} x {engine.cpus} CPUs for engines and 1 for reading and writing are "
            f"{booked + 1}, and Ray has {cpus:g}: lower concurrency (replicas in serving) or engine.cpus, "
            "or start Ray with more (`ray start --num-cpus`: a count for scheduling, not cores)"
        )
    if all(node.get("CPU", 0) < engine.cpus for node in nodes):
        raise UserError(f"engine.cpus: {engine.cpus}, and no node has more than {max(n.get('CPU', 0) for n in nodes)}")
    bundle = {"CPU": float(engine.cpus)} | ({"GPU": 1.0} if gpu else {})
    light_cpus = min(1.0, (cpus - booked) / LIGHT_STAGES)
    # Of a cluster that is to grow these are the CPUs of its beginning.
    return Share(gpu, bundle, (least, most), light_cpus, max(1, int(cpus) // 8) * most // least)


def find_room(engine: EngineConfig, replicas: int | tuple[int, int]) -> Share:
    """Divides the cluster as `share_cluster` does, once it has room: its autoscaler is asked for the machines.

    Args:
        engine: Settings of a replica.
        replicas: How many, or the least and most. The least have to find room.

    Raises:
        UserError: The cluster can't hold them: on a Ray of the job's own, which doesn't grow, at once; else if no
            machines have come in `MACHINES_SECONDS`.
    """
    try:
        return share_cluster(cluster_nodes(), engine, replicas)
    except UserError as error:
        if is_local():
            raise
        missing = error
    from ray.autoscaler.sdk import request_resources

    print(f"{missing}. Waiting for machines, {MACHINES_SECONDS / 60:.0f} minutes at most", flush=True)
    least = replicas if isinstance(replicas, int) else replicas[0]
    gpus = {"GPU": 1} if engine.device == "gpu" else {}
    worker = {"CPU": engine.cpus, **gpus}
    workers = least * engine.tensor_parallel_size * engine.pipeline_parallel_size
    deadline = time.monotonic() + MACHINES_SECONDS
    try:
        while time.monotonic() < deadline:
            # Again and again: there is one request a cluster, and Ray Data puts an empty one in its place.
            request_resources(bundles=[worker] * workers + [{"CPU": 1}])
            time.sleep(LOOK_EVERY_SECONDS)
            with suppress(UserError):
                return share_cluster(cluster_nodes(), engine, replicas)
    finally:
        request_resources(bundles=[])  # what works keeps its machine
    raise missing


def room_for_tasks() -> Share:
    """Returns the share of a job without engines."""
    cpus = sum(node.get("CPU", 0) for node in cluster_nodes())
    return Share(False, {}, (0, 0), 1.0, max(1, int(cpus) // 8))


def cluster_nodes() -> list[dict[str, float]]:
    """Returns the resources of every node of the Ray that this process is connected to."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def light_task(share: Share, at_most: int | None = None) -> dict[str, Any]:
    """Returns the arguments of `Dataset.map` for a task that reads, maps or writes.

    Args:
        share: What `share_cluster` found.
        at_most: No more of them at once, for example as many as there are rows.
    """
    from ray.data import TaskPoolStrategy

    return {
        "num_cpus": share.light_cpus,
        "compute": TaskPoolStrategy(size=min(share.light_tasks, at_most or share.light_tasks)),
    }


def quiet_ray_data() -> None:
    """Silences Ray Data's own bars and log lines in this process: the stages print one line of their own."""
    import logging

    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def failure(error: Exception) -> str:
    """Returns in a line why Ray gave up: the exception that began it, which stands last in Ray's report."""
    from ray.exceptions import ActorDiedError

    if isinstance(error, ActorDiedError) and "creation task" not in str(error):
        return (
            f"an engine died {ENGINE_RESTARTS + 1} times, of too little memory or of a row that it can't stand; "
            "the newest files of /tmp/ray/session_latest/logs on its node say more"
        )
    return last_error(str(error)) or str(error).strip().rpartition("\n")[2]


@contextmanager
def _contained() -> Iterator[None]:
    """Undoes what Ray does to the process when a processor is built, and hushes what libraries say when imported.

    It calls `ray.init` again, which installs a handler that exits at SIGTERM, past every `finally` of the job.
    """
    import logging

    on_sigterm = signal.getsignal(signal.SIGTERM)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def vllm_chain(
    model: Path,
    engine: EngineConfig,
    share: Share,
    *,
    rows: int,
    request: Callable[[Row], Row],
    continue_on_error: bool = True,
    keep: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    remade: Callable[[type[Any]], type[Any]] | None = None,
) -> Callable[["Dataset"], "Dataset"]:
    """Builds the chain: a row becomes a request, the engine answers it, the reply is joined to the row.

    Args:
        model: A model directory.
        engine: Settings of a replica.
        share: What `share_cluster` found.
        rows: How many there are, about.
        request: From a row to the columns that the engine reads: `tokenized_prompt` or `prompt`, `sampling_params`
            (see `sampling_params`), and what `remade` reads. Runs in a task, a row at a time.
        continue_on_error: A row that the engine refuses carries the reason in `error`; otherwise it ends the run.
        keep: Columns of the input that come back in `row`; None: all.
        arguments: Further ones of vLLM's.
        remade: Makes another class of the actors' one, such as `chat_engine.as_served`.

    Returns:
        From a dataset to a dataset with the columns `row` (the input row as JSON), `response`, `prompt_tokens`,
        `response_tokens`, `finish_reason` (`stop` or `length`) and `error` (empty if there is none), in any order.
    """
    with _contained():
        processor = _processor(model, engine, share, continue_on_error, arguments or {}, remade)
    light = light_task(share)
    stop_tokens = frozenset(_stop_tokens(model))

    def prepare(row: Row) -> Row:
        kept = row if keep is None else {name: row[name] for name in keep}
        return {"row": json.dumps(kept), **request(row)}

    def join(row: Row) -> Row:
        return _reply(row, stop_tokens)

    per_block = rows_per_block(rows, engine.max_num_seqs)

    def chain(dataset: "Dataset") -> "Dataset":
        requests = dataset.repartition(target_num_rows_per_block=per_block).map(prepare, **light)
        return processor(requests).map(join, **light)

    return chain


def rows_per_block(rows: int, batch: int) -> int:
    """Returns how many rows a block of requests should have, from one batch to 16.

    An engine's actor answers whole blocks, and progress shows when one is done, so they are small; but of each block
    the driver keeps some 70 KB until the end, so a large run has larger ones.
    """
    return max(batch, min(16 * batch, rows // _BLOCKS))


def _processor(
    model: Path,
    engine: EngineConfig,
    share: Share,
    continue_on_error: bool,
    arguments: Mapping[str, Any],
    remade: Callable[[type[Any]], type[Any]] | None,
) -> Any:
    """Ray's processor around the engine stage alone."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=str(model),
        engine_kwargs={**engine_arguments(engine, share.gpu), **_FOR_BATCHES, **arguments},
        batch_size=engine.max_num_seqs,
        max_concurrent_batches=BATCHES_IN_FLIGHT,
        concurrency=share.replicas,
        should_continue_on_error=continue_on_error,
        log_engine_metrics=False,
        accelerator_type=None,
        placement_group_config={
            "bundles": [share.bundle] * engine.tensor_parallel_size * engine.pipeline_parallel_size
        },
        runtime_env=None if share.gpu else {"env_vars": cpu_environment(engine)},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    light = light_task(share)
    # With the arguments of the `map` beside them, the processor's own two run in the same tasks.
    processor = build_processor(config, preprocess_map_kwargs=light, postprocess_map_kwargs=light)
    stage = processor.get_stage_by_name("vLLMEngineStage")
    # Without a limit, a row that always kills its engine would have it restarted for ever.
    stage.map_batches_kwargs["max_restarts"] = ENGINE_RESTARTS
    actor = stage.fn if config.engine_kwargs["enforce_eager"] else with_own_cache(stage.fn)
    # A copy, because Ray's stage books anew when a field is assigned, and has forgotten the placement by then.
    processor.stages["vLLMEngineStage"] = stage.model_copy(update={"fn": remade(actor) if remade else actor})
    return processor


def sampling_params(sampling: SamplingConfig, seed: int) -> Row:
    """Returns vLLM's sampling parameters of one row; equal seeds draw equal replies in whatever batch."""
    greedy = {"temperature": 0.0, "max_tokens": sampling.max_tokens}
    if sampling.temperature == 0:
        return greedy
    return greedy | sampling.model_dump() | {"seed": seed}


def chat_tokens(model: Path, turns: Sequence[dict[str, Any]]) -> list[int]:
    """Returns the tokens of a conversation in the model's own chat template, ready for the assistant's reply.

    A balsa model's template also takes contents of parts, `{"type": "audio"}` for a clip: its placeholder.

    Tokens and not text, because vLLM would add a second begin-of-text to a template that writes one.
    """
    return list(_tokenizer(str(model)).apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False))


def check_chat_template(model: Path, system: str | None = None) -> None:
    """Raises UserError if the model's tokenizer can't be read, has no chat template or one without system prompts."""
    from jinja2 import TemplateError

    try:
        tokenizer = _tokenizer(str(model))
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: its tokenizer can't be read: {str(error).splitlines()[0]}") from error
    if not tokenizer.chat_template:
        raise UserError(f"{model}: its tokenizer has no chat template; an instruction-tuned model is needed")
    try:
        chat_tokens(
            model, [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": ""}]
        )
    except TemplateError as error:
        raise UserError(f"system_prompt: the chat template of {model} refuses it: {error}") from error


@cache
def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    import balsa_ray.model.configuration  # noqa: F401 (makes transformers know what a balsa model is)

    return AutoTokenizer.from_pretrained(model)


def _stop_tokens(model: Path) -> set[int]:
    """The tokens that end a reply: those of `generation_config.json`, as vLLM reads it, and the tokenizer's."""
    file = model / "generation_config.json"
    ids = json.loads(file.read_text("utf-8")).get("eos_token_id") if file.is_file() else None
    return {*(ids if isinstance(ids, list) else [ids]), _tokenizer(str(model)).eos_token_id} - {None}


def engine_arguments(engine: EngineConfig, gpu: bool) -> Row:
    """Returns vLLM's own arguments for an engine, whether it serves or works through a dataset."""
    arguments: Row = {
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "enforce_eager": not gpu if engine.enforce_eager is None else engine.enforce_eager,
    }
    if engine.max_model_len is not None:
        arguments["max_model_len"] = engine.max_model_len
    if gpu:
        arguments["gpu_memory_utilization"] = engine.gpu_memory_utilization
    else:
        # A prompt cut in two while a row has a seed of its own ends vLLM's engine: it rewinds the row's generator, and
        # those of a CPU can't be ("CPU Generator does not use offset").
        arguments["enable_chunked_prefill"] = False
    return arguments


def cpu_environment(engine: EngineConfig) -> dict[str, str]:
    """Returns the environment variables of an engine on a CPU."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gb),
        # Else vLLM binds a thread to each core, and threads that wait for a busy core spin: ten times slower.
        "OMP_NUM_THREADS": str(engine.cpus),
        # The engine still has a process of its own; this keeps the worker inside it instead of in a third one, which
        # saves one import of vLLM (8 s of CPU) and a hop between processes at every step.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def _reply(data: Row, stop_tokens: frozenset[int]) -> Row:
    """What is kept of the engine's output."""
    tokens = list(data.get("generated_tokens") or [])
    return {
        "row": data["row"],
        "response": data.get("generated_text") or "",
        "prompt_tokens": int(data.get("num_input_tokens") or 0),
        "response_tokens": len(tokens),
        # The stage drops vLLM's own finish reason. A reply that ended by itself ends in a stop token.
        "finish_reason": "stop" if tokens and tokens[-1] in stop_tokens else "length",
        "error": data.get("__inference_error__") or "",
    }
