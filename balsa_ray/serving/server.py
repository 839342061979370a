"""The endpoint as a Ray Serve application: built, started, drained and stopped.

One deployment of Ray Serve LLM a model (an engine a replica); that of the first model answers HTTP itself. Everything
that can be wrong with the configuration is found before Ray starts.
"""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balsa_ray import cluster
from balsa_ray.checkpoints import configuration, fingerprint, resolve
from balsa_ray.config import UserError
from balsa_ray.endpoint import KEY_VARIABLE
from balsa_ray.engine import Share, cpu_environment, engine_arguments, find_room, share_cluster
from balsa_ray.preflight import free_ports, port_problem
from balsa_ray.serving import haproxy
from balsa_ray.serving.auth import digest, read_keys
from balsa_ray.serving.config import ServeConfig, ServeEngineConfig

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "balsa"
_NO_DOMAIN = ["none.invalid"]  # an empty list would allow every host
_FEW_THREADS = {"VLLM_MEDIA_LOADING_THREAD_COUNT": "2"}  # they have the cores of the engine
_BESIDE_CHATS = 1000  # requests at once in a replica
BUSY = 0.7  # share of an engine's sequences in use from which on another engine is started
_CONTROLLER, _NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
_DRAIN_SECONDS = 120  # for requests under way; HAProxy gives them as long when it is told of new replicas
_STOP_SECONDS = 60.0
_EVERYWHERE = ("0.0.0.0", "::")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Model:
    """A model to serve.

    Attributes:
        name: What clients call it.
        path: Its directory.
        fingerprint: Hash of weights and configuration.
        hears: Whether it is a balsa model, as opposed to a plain LLM.
        max_audio_seconds: Longest clip that it hears; None for a plain LLM.
    """

    name: str
    path: Path
    fingerprint: str
    hears: bool
    max_audio_seconds: float | None = None


class Server:
    """A running endpoint.

    Attributes:
        url: Its address, without `/v1`.
        models: What it serves.
    """

    def __init__(self, url: str, models: Sequence[Model], started: contextlib.ExitStack) -> None:
        self.url, self.models, self._started = url, tuple(models), started

    def stop(self) -> None:
        """Lets requests under way finish, then ends what `start` started (Ray too, if it did)."""
        self._started.close()


def start(config: ServeConfig, told: str = "") -> Server:
    """Starts the endpoint and returns when it answers.

    Args:
        config: The configuration.
        told: Printed once everything was checked that can be before.

    Raises:
        UserError: If the key, the host, the port, a model or the output can't be used (nothing was started), if the
            cluster's Ray Serve listens elsewhere, or if an engine fails to start (exit code 1; what was started is
            stopped).
    """
    import ray

    keys = read_keys(config.api_key_file)
    if not keys and not config.is_local:
        raise UserError(f"host: {config.host} can be reached by others: set {KEY_VARIABLE} or api_key_file")
    models = [_find(name, source) for name, source in config.models.items()]
    port = _port(config)
    _make_folder(config.output)
    if told:
        print(told, flush=True)
    with contextlib.ExitStack() as started:
        if cluster.is_local() and not ray.is_initialized():
            started.enter_context(haproxy.wanted())
        started.enter_context(cluster.session())
        _run(config, models, keys, port, started)
        url = f"http://{_in_url(config.host)}:{port}"
        _write(config.output, url, models)
        return Server(url, models, started.pop_all())


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains and stops what was started."""
    began = time.monotonic()
    names = ", ".join(config.models)
    server = start(config, f"starting {names}: vLLM takes a minute or so")
    asked_to_stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked_to_stop.set()) for number in _STOP_SIGNALS}
    try:
        print(f"serving {names} at {server.url}/v1 (started in {time.monotonic() - began:.0f} s)", flush=True)
        if config.playground:
            print(f"playground at {server.url}/", flush=True)
        asked_to_stop.wait()
        print("stopping: requests under way are finished first", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        server.stop()
    print("stopped", flush=True)


def build(config: ServeConfig, models: Sequence[Model], keys: Sequence[str], share: Share) -> "Application":
    """Returns the application: a deployment of Ray Serve LLM a model, of which the first answers HTTP.

    What is asked of the first model never leaves the replica that a request came to; what is asked of the others is
    handed on to theirs.

    Args:
        config: The configuration.
        models: The models.
        keys: Keys that clients may use; none: no key is asked for.
        share: What an engine books in Ray.
    """
    from ray import serve
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from balsa_ray.serving.ingress import Card, HttpSettings, Metadata
    from balsa_ray.serving.replica import Endpoint

    def card(model: Model) -> Card:
        clips = config.engine.max_clips if model.hears else 0
        return Card(
            id=model.name, created=int(time.time()), metadata=Metadata(fingerprint=model.fingerprint, max_clips=clips)
        )

    main, *others = [(model.name, LLMConfig(**engine_settings(config, model, share))) for model in models]
    chats = (config.engine.max_num_seqs + config.waiting) * len(models)
    given = {
        "others": {name: build_llm_deployment(settings) for name, settings in others},
        "cards": [card(model) for model in models],
        "settings": HttpSettings(
            [digest(key) for key in keys], int(config.max_body_mb * 2**20), chats, config.playground
        ),
    }
    # Health and refusals have to pass while all those chats are under way.
    options = {"max_ongoing_requests": chats + _BESIDE_CHATS, "max_queued_requests": -1}
    return build_llm_deployment(
        main[1], deployment_cls=serve.ingress()(Endpoint), bind_kwargs=given, override_serve_options=options
    )


def app(args: Mapping[str, Any]) -> "Application":
    """Builds the endpoint for `serve deploy` and for a RayService: `import_path: balsa_ray.serving:app`.

    Where it listens stands in that file's `http_options`, which is not known here, so that it always wants a key.

    Args:
        args: Keys of `ServeConfig`; `output`, `host` and `port` have no effect.

    Machines may come with the application, so that nothing is concluded from those that are there.

    Raises:
        UserError: If there is no key, the device isn't named, or a model can't be used.
        ValueError: If a key is unknown or of another type (pydantic's `ValidationError`).
    """
    config = ServeConfig.model_validate({"output": "."} | dict(args))
    keys = read_keys(config.api_key_file)
    if not keys:
        raise UserError(f"set {KEY_VARIABLE} in the application's runtime_env, or args.api_key_file")
    if config.engine.device == "auto":
        raise UserError("args.engine.device: name it, gpu or cpu: which machines will come can't be seen from here")
    models = [_find(name, source) for name, source in config.models.items()]
    return build(config, models, keys, _named(config.engine))


def _named(engine: ServeEngineConfig) -> Share:
    """Returns what an engine books by its settings alone."""
    room = engine.tensor_parallel_size * engine.pipeline_parallel_size
    gpus = room if engine.device == "gpu" else 0
    return share_cluster([{"CPU": float(room * engine.cpus + 1), "GPU": float(gpus)}], engine, 1)


def engine_settings(config: ServeConfig, model: Model, share: Share) -> dict[str, Any]:
    """Returns the fields of Ray Serve LLM's `LLMConfig` for one model."""
    engine = config.engine
    arguments = engine_arguments(engine, share.gpu) | {
        "seed": config.seed,
        # Of any model: a plain LLM may be one that takes images.
        "allowed_media_domains": _NO_DOMAIN,
        "allowed_local_media_path": "",
    }
    environment = {
        "RAYLLM_VLLM_ENGINE_CLS": "balsa_ray.serving.replica.LocalEngine",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }
    if model.hears:
        from balsa_ray.vllm_plugin.register import AUDIO_HOSTS, MAX_SECONDS, MEDIA_CONNECTOR

        arguments |= {
            "limit_mm_per_prompt": {"audio": engine.max_clips},
            # Guessed from the template otherwise; the wrong guess moves all clips to the front.
            "chat_template_content_format": "openai",
        }
        environment["VLLM_MEDIA_CONNECTOR"] = MEDIA_CONNECTOR
        environment[AUDIO_HOSTS] = ",".join(config.allowed_audio_hosts)
        if model.max_audio_seconds is not None:
            environment[MAX_SECONDS] = f"{model.max_audio_seconds:g}"
    return {
        "model_loading_config": {"model_id": model.name, "model_source": str(model.path)},
        "engine_kwargs": arguments,
        "accelerator_type": None,
        "placement_group_config": {
            "bundles": [share.bundle] * engine.tensor_parallel_size * engine.pipeline_parallel_size
        },
        "deployment_config": {
            **_replicas(config),
            # An engine works on so many at once; the others wait where they can be counted, and refused.
            "max_ongoing_requests": engine.max_num_seqs,
            "max_queued_requests": max(1, config.waiting),  # Ray knows no 0
            "graceful_shutdown_timeout_s": _DRAIN_SECONDS,
            "max_constructor_retry_count": 1,  # a model that can't be loaded can't be loaded the third time either
            "ray_actor_options": {"num_cpus": 0},
        },
        "runtime_env": {"env_vars": environment | ({} if share.gpu else cpu_environment(engine) | _FEW_THREADS)},
    }  # fmt: skip


def _replicas(config: ServeConfig) -> dict[str, Any]:
    """Returns Ray Serve's options for the number of engines of a model."""
    least, most = config.replica_range
    if least == most:
        return {"num_replicas": least}
    busy = max(1, BUSY * config.engine.max_num_seqs)
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": busy}}


def _find(name: str, source: str) -> Model:
    path = resolve(source)
    try:
        known = configuration(path)
    except UserError as error:
        raise UserError(f"model {name}: {error}") from error
    hears = known.get("model_type") == "balsa"
    return Model(name, path, fingerprint(path), hears, known.get("max_audio_seconds") if hears else None)


def _port(config: ServeConfig) -> int:
    """Returns the port to listen on, which is free now."""
    if problem := port_problem(config.port, config.host):
        raise UserError(f"port: {config.port} at {config.host} {problem}; choose another port or host")
    if config.port == 0:
        (port,) = free_ports(1, config.host)
        return port
    return config.port


def _run(
    config: ServeConfig, models: Sequence[Model], keys: Sequence[str], port: int, started: contextlib.ExitStack
) -> None:
    """Runs the application on the Ray that is there, and leaves in `started` how to end it."""
    from ray import serve
    from ray.exceptions import RayError

    if there := _serve_address():
        raise UserError(
            f"Ray Serve already runs on this cluster at {there[0]}:{there[1]}, and listens at no second address: end "
            "it (`serve shutdown`), use another cluster, or add balsa_ray.serving:app to what `serve deploy` runs there"
        )
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and not (config.is_local or config.host in _EVERYWHERE):
        # It looks for the replicas of its own machine at 127.0.0.1.
        raise UserError(f"host: {config.host}: behind HAProxy it has to be 0.0.0.0 or 127.0.0.1")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when `build` imports vLLM into this process
    application = build(config, models, keys, find_room(config.engine, config.engine_range))
    started.callback(_end_serve)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port})
        serve.run(application, name=APPLICATION, route_prefix="/")
    except (RuntimeError, TimeoutError, RayError) as error:
        raise UserError(f"the endpoint did not start: {_cause(error)}", exit_code=1) from error


def _serve_address() -> tuple[str | None, int] | None:
    """Returns host and port of the Ray Serve that already runs on the cluster; None if there is none.

    `serve.status` has neither, and `serve.start` only logs that it ignores other ones. The controller is asked whether
    or not a proxy is up yet.
    """
    import ray

    try:
        controller = ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
    except ValueError:  # there is no such actor
        return None
    options = ray.get(controller.get_http_config.remote())
    return options.host, options.port


def _end_serve() -> None:
    """Drains and ends Ray Serve.

    The application goes first, while the proxy is still there to bring its last answers to the clients.
    `serve.shutdown` alone would end both at once; it also waits inside the controller, which ends by killing itself,
    and Ray then prints a line about a failed task to the user.
    """
    import ray
    from ray import serve

    began = time.monotonic()
    while APPLICATION in serve.status().applications and time.monotonic() < began + _DRAIN_SECONDS:
        with contextlib.suppress(TimeoutError):  # it waits for a minute
            serve.delete(APPLICATION)
    with contextlib.suppress(ValueError):  # raised by get_actor once the controller is gone
        controller = ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False))
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.1)
            ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
    serve.shutdown()  # forgets the connection


def _cause(error: Exception) -> str:
    """Returns what an engine's traceback says is wrong, as one line, and where its log is."""
    import ray
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    messages = [d.message for d in application.deployments.values() if d.message] if application else []
    reason = cluster.last_error("\n".join(messages)) or cluster.last_error(str(error)) or str(error).splitlines()[0]
    context = ray.get_runtime_context()
    return f"{reason} (logs: {Path(context.get_temp_dir()) / context.get_session_name() / 'logs'})"


def _in_url(host: str) -> str:
    """Returns a host as it stands in a URL that reaches it from this machine."""
    if host in _EVERYWHERE:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {output}: can't be a folder: {str(error.strerror).lower()}") from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise UserError(f"output: {output}: can't be written to; choose another folder")


def _write(output: Path, url: str, models: Sequence[Model]) -> None:
    served = {m.name: {"path": str(m.path), "fingerprint": m.fingerprint} for m in models}
    (output / "server.json").write_text(json.dumps({"url": url, "models": served}, indent=1) + "\n", "utf-8")
