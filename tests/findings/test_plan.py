from balsa_ray.config import load
from balsa_ray.findings.config import FindingsConfig
from balsa_ray.findings.plan import MAIN, runs

RECIPE = "jobs/configs/miniature/findings.yaml"


def test_the_main_comparison_has_all_seeds_and_the_others_the_first_few() -> None:
    config = load(FindingsConfig, [RECIPE, "seeds=[5,6,7,8]", "few=2"])
    base, *others = config.conditions
    planned = list(runs(config))
    assert len(set(planned)) == len(planned)

    def seeds(**wanted: object) -> set[int]:
        return {run.seed for run in planned if all(getattr(run, key) == value for key, value in wanted.items())}

    for arm in config.arms:
        wanted = {5, 6, 7, 8} if arm in MAIN else {5, 6}
        backbone = len(config.backbones) - 1 if arm == "guided" else 0
        assert seeds(arm=arm, condition=base, backbone=backbone, split="test", steps=config.steps) == wanted
    for name in others:
        assert seeds(condition=name) == {5, 6}
    assert {run.arm for run in planned if run.condition != base} == set(MAIN)
    assert {run.arm for run in planned if run.backbone} <= {*MAIN, "guided"}


def test_given_absent_sounds_are_for_the_last_backbone() -> None:
    planned = list(runs(load(FindingsConfig, [RECIPE, "backbones=[a,b,c]"])))
    assert {run.backbone for run in planned if run.arm == "guided"} == {2}
    assert {run.arm for run in planned if run.backbone == 2} == {*MAIN, "guided"}
    assert {run.arm for run in planned if run.backbone == 1} == set(MAIN)


def test_a_point_of_a_learning_curve_shares_the_training_of_the_test() -> None:
    config = load(FindingsConfig, [RECIPE])
    planned = list(runs(config))
    tested = {run.model for run in planned if run.split == "test"}
    usual = config.conditions["base"].clips
    for run in planned:
        if run.split == "validation":
            assert (run.model in tested) == (run.steps == config.steps and run.clips == usual)
    assert len({run.name for run in planned}) == len(planned)


def test_one_seed_of_the_main_comparison_is_two_trainings() -> None:
    planned = list(runs(load(FindingsConfig, [RECIPE, "seeds=[1]", "few=0"])))
    assert [run.arm for run in planned] == list(MAIN)


def test_every_arm_has_the_same_steps_and_clips() -> None:
    config = load(FindingsConfig, [RECIPE])
    base = next(iter(config.conditions))
    tested = [run for run in runs(config) if run.split == "test" and run.condition == base]
    assert {(run.steps, run.clips) for run in tested} == {(config.steps, config.conditions[base].clips)}


def test_learning_curves_have_seeds_of_their_own() -> None:
    curves = [run for run in runs(load(FindingsConfig, [RECIPE, "curve_seeds=2"])) if run.split == "validation"]
    assert {run.seed for run in curves} == {0, 1}
    assert not [run for run in runs(load(FindingsConfig, [RECIPE, "few=0"])) if run.split == "validation"]


def test_learning_curves_are_of_validation_clips_alone() -> None:
    config = load(FindingsConfig, [RECIPE, "curve_steps=[50,100]", "curve_clips=[500]", "seeds=[0]"])
    clips = config.conditions["base"].clips
    curve = {(run.steps, run.clips, run.arm) for run in runs(config) if run.split == "validation"}
    assert curve == {(s, c, arm) for s, c in ((50, clips), (100, clips), (config.steps, 500)) for arm in MAIN}
