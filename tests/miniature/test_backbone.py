from balsa_ray.identity import rng
from balsa_ray.miniature.backbone import MOST_GHOSTS, ghosts
from balsa_ray.miniature.lexicon import lexicon


def test_ghosts_are_absent_and_often_confusable() -> None:
    drawn = [ghosts(["rain", "siren"], rng(0, "ghosts", index)) for index in range(300)]
    near = {*lexicon().neighbours("rain"), *lexicon().neighbours("siren")}
    assert not {"rain", "siren"} & {label for labels in drawn for label in labels}
    assert {len(labels) for labels in drawn} == set(range(MOST_GHOSTS + 1))
    assert all(len(set(labels)) == len(labels) for labels in drawn)
    hinted = [label in near for labels in drawn for label in labels]
    assert 0.4 < sum(hinted) / len(hinted) < 0.7
