import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from balsa_ray.config import Config, UserError, load, main


class Sharding(Config):
    zero_stage: int = 2


class Stage(Config):
    name: str
    steps: int = Field(3, gt=0)
    kinds: list[str] | dict[str, float] = []


class Recipe(Config):
    """Trains the adapter."""

    output: Path = Field(description="folder of everything the run writes")
    seed: int = 0
    learning_rate: float = 1e-3
    precision: Literal["fp32", "bf16"] = "fp32"
    shuffle: bool = True
    limit: int | None = Field(None, description="clips to use; all if null")
    betas: tuple[float, float] = (0.9, 0.98)
    deepspeed: Sharding = Sharding()
    stages: list[Stage] = []
    data: str | list[str] = "samples"
    models: dict[str, Sharding] = {}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text("output: ${oc.env:HOME,x}/run\nlearning_rate: 1e-4\nstages: [{name: one}, {name: two}]\n")
    return str(file)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line that the job prints on stderr before it exits with code 2."""
    with pytest.raises(SystemExit) as stopped:
        load(Recipe, list(argv))
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("error: ").strip()


def test_file_and_overrides_are_merged(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    overrides = ["stages.1.steps=7", "limit=null", "shuffle=false", "betas=[0.8,0.9]", "models.small.zero_stage=3"]
    config = load(Recipe, [recipe, *overrides, "deepspeed.zero_stage=1", "precision=bf16"])
    assert config.output == Path("/somewhere/run")
    assert config.learning_rate == 1e-4
    assert [stage.steps for stage in config.stages] == [3, 7]
    assert (config.limit, config.shuffle, config.betas) == (None, False, (0.8, 0.9))
    assert config.models == {"small": Sharding(zero_stage=3)}
    assert (config.deepspeed.zero_stage, config.precision) == (1, "bf16")


def test_a_mapping_of_chosen_names_is_given_as_a_whole_or_name_by_name(recipe: str) -> None:
    with Path(recipe).open("a") as file:
        file.write("models: {a: {zero_stage: 0}, b: {zero_stage: 1}}\ndeepspeed: {zero_stage: 1}\n")
    assert set(load(Recipe, [recipe, "models={c: {zero_stage: 2}}"]).models) == {"c"}
    assert set(load(Recipe, [recipe, "models.c={zero_stage: 2}"]).models) == {"a", "b", "c"}
    assert load(Recipe, [recipe, "deepspeed={}"]).deepspeed.zero_stage == 1


def test_a_list_may_become_a_mapping_and_the_other_way_round(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("output: run\nstages: [{name: one, kinds: [a, b]}, {name: two, kinds: {a: 1}}]\n")
    stages = load(Recipe, [str(file), "stages.0.kinds={a: 2, b: 1}", "stages.1.kinds=[c]"]).stages
    assert [stage.kinds for stage in stages] == [{"a": 2.0, "b": 1.0}, ["c"]]


def test_what_is_no_yaml_is_text(recipe: str) -> None:
    assert load(Recipe, [recipe, "data={youtube_id}.flac"]).data == "{youtube_id}.flac"
    assert load(Recipe, [recipe, "data=a=b: c: d"]).data == "a=b: c: d"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sed=1", "command line: sed: unknown key; did you mean 'seed'?"),
        ("deepspeed.zero=1", "command line: deepspeed.zero: unknown key; known: zero_stage"),
        ("zero_stage=1", "command line: zero_stage: unknown key; did you mean 'deepspeed.zero_stage'?"),
        ("stages.0.step=1", "command line: stages.0.step: unknown key; did you mean 'stages.0.steps'?"),
        ("seed=true", "command line: seed: should be a valid integer, not true"),
        ("seed='3'", 'command line: seed: should be a valid integer, not "3"'),
        ("shuffle=1", "command line: shuffle: should be a valid boolean, not 1"),
        ("precision=fp16", "command line: precision: should be 'fp32' or 'bf16', not \"fp16\""),
        ("stages.0.steps=0", "command line: stages.0.steps: should be greater than 0, not 0"),
        ("deepspeed=3", "command line: deepspeed: should be a mapping with keys of zero_stage, not 3"),
        ("data=3", "command line: data: should be a valid string, not 3, or should be a valid list, not 3"),
        ("data=[a,3]", 'command line: data: should be a valid string, not ["a", 3] (and 1 more)'),
        ("stages.0.name=null", "command line: stages.0.name: should be a valid string, not null"),
        ("stages=[{steps: 1}]", "command line: stages.0.name: missing; this key is required"),
        ("models.a=1", "command line: models.a: should be a mapping with keys of zero_stage, not 1"),
        ("stages.9.steps=1", "command line: stages.9.steps: list index out of range"),
        ("seed", "command line: 'seed': an override has the form key=value"),
    ],
)
def test_wrong_override_is_refused_in_one_line(
    recipe: str, override: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, recipe, override) == expected


def test_mistake_in_the_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("outptu: x\nseed: soon\n")
    assert refusal(capsys, str(file)) == f"{file}: outptu: unknown key; did you mean 'output'? (and 2 more)"
    file.write_text("seed: 1\n")
    assert refusal(capsys, str(file)) == f"{file}: output: missing; this key is required"
    file.write_text("output: ${nowhere}\n")
    assert refusal(capsys, str(file)).startswith(f"{file}: Interpolation key 'nowhere' not found")


@pytest.mark.parametrize("text", ["output: [", "- a\n- b\n", "a: b: c", "\0"])
def test_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert refusal(capsys, str(file)).startswith(f"{file}: ")


def test_missing_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, str(tmp_path / "none.yaml")) == f"{tmp_path}/none.yaml: no such file or directory"
    assert refusal(capsys).startswith("no configuration file: usage: ")
    assert refusal(capsys, "seed=1").startswith("no configuration file: usage: ")


def test_help_lists_every_key_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(Recipe, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "Trains the adapter." in text
    for line in (
        "output  (path; required)",
        "folder of everything the run writes",
        'precision  (fp32 or bf16; default: "fp32")',
        "limit  (integer or null; default: null)",
        "deepspeed.zero_stage  (integer; default: 2)",
        "stages[].name  (text; required)",
        "models.<name>.zero_stage  (integer; default: 2)",
        "betas  (list of number; default: [0.9, 0.98])",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("raised", "code"), [(UserError("no port"), 2), (UserError("worker lost", 1), 1), (KeyboardInterrupt(), 130)]
)
def test_main_turns_the_end_of_a_run_into_an_exit_code(
    raised: BaseException, code: int, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Recipe) -> None:
        raise raised

    monkeypatch.setattr(sys, "argv", ["job.py", recipe])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        main(Recipe, run)
    signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == code
    told = f"error: {raised}\n" if isinstance(raised, UserError) else "interrupted: "
    assert capsys.readouterr().err.startswith(told)


def test_sigterm_runs_the_cleanup_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    job = tmp_path / "job.py"
    job.write_text(
        "import time\n"
        "from balsa_ray.config import Config, main\n"
        "def run(config):\n"
        "    try:\n"
        "        print('running', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('state saved', flush=True)\n"
        "main(Config, run)\n"
    )
    command = [sys.executable, str(job), str(tmp_path / "empty.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.read() == "state saved\n"
        assert process.wait(30) == 143
