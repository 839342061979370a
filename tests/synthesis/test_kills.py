"""Runs with vLLM in processes of their own, in which things are killed."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from chaos_seeds import SHORT, in_chaos_and_once_always
from synthesis_outputs import replies, rows_of, start, write_recipe
from tiny_models import TinyCheckpoints

from balsa_ray.identity import pick, shuffled, unit

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.fixture(scope="module")
def recipe(tiny_checkpoints: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("chaos"), tiny_checkpoints.text)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> dict[str, tuple[str, str, str]]:
    assert start(recipe, ENVIRONMENT).wait() == 0
    return replies(recipe.parent / "undisturbed")


def processes(run: subprocess.Popen[bytes], what: str) -> list[psutil.Process]:
    """The processes of a run that can be a victim of a kind."""
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        is_a = {
            "any": True,
            "actor": "vLLMEngineStage" in title,
            "engine": "EngineCore" in title,
            "worker": title.startswith("ray::") and "Map" in title and "MapWorker" not in title,
        }
        if is_a[what]:
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@in_chaos_and_once_always
def test_whatever_is_killed_whenever_the_rows_are_those_of_an_undisturbed_run(
    recipe: Path, undisturbed: dict[str, tuple[str, str, str]], seed: int
) -> None:
    """A worker, the engine's actor and the engine's process in some order, then the driver, each at some moment.

    In short the engine's process alone, then the driver.
    """
    parts = ["engine"] if seed == SHORT else shuffled(seed, ["victims"], ["worker", "actor", "engine"])
    output = recipe.parent / f"killed-{seed}"
    run = start(recipe, ENVIRONMENT, f"output={output}")
    all_of_it: list[psutil.Process] = []
    killed: set[int] = set()
    try:
        for number, what in enumerate([*parts, "driver"]):
            # So many rows stand when it is killed; those in flight are lost.
            moment = len(undisturbed) * (0.2 * number + 0.15 * unit(seed, "moment", what))
            while rows_of(output) < moment or (what != "driver" and not processes(run, what)):
                assert run.poll() is None, f"the run ended before its {what} was killed"
                time.sleep(0.05)
            time.sleep(unit(seed, "delay", what))
            if what == "driver":
                while {process.pid for process in processes(run, "engine")} <= killed:
                    assert run.poll() is None, "the run did not outlive what was killed"
                    time.sleep(0.05)
                all_of_it = processes(run, "any")
                run.kill()
            else:
                while not (victims := processes(run, what)):  # it may just be starting again
                    assert run.poll() is None, f"the run ended before its {what} was killed"
                    time.sleep(0.05)
                victim = pick(seed, ["victim", what], sorted(process.pid for process in victims))
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
        assert run.wait() == -signal.SIGKILL
        stood = rows_of(output)
        assert 0 < stood < len(undisturbed)
        assert not (output / "report.json").exists()
        assert start(recipe, ENVIRONMENT, f"output={output}").wait() == 0
    finally:
        if run.poll() is None:
            all_of_it = processes(run, "any")
            run.kill()
        for process in all_of_it:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert replies(output) == undisturbed


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_that_is_interrupted_is_taken_up(recipe: Path, undisturbed: dict[str, tuple[str, str, str]]) -> None:
    output = recipe.parent / "interrupted"
    for sign, share in ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.5)):
        run = start(recipe, ENVIRONMENT, f"output={output}")
        while rows_of(output) < len(undisturbed) * share:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(sign)
        assert run.wait() == 128 + sign
        assert rows_of(output) < len(undisturbed)
    assert start(recipe, ENVIRONMENT, f"output={output}").wait() == 0
    assert replies(output) == undisturbed
