import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsa_ray.identity import file_hash, hash_of_lists, pick, rng, shuffled, stable_hash, unit, units

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEY = st.lists(st.text(max_size=5) | st.integers(), max_size=3)


@given(st.dictionaries(st.text(max_size=3), JSON))
def test_hash_does_not_depend_on_the_order_of_keys(mapping: dict) -> None:
    assert stable_hash(mapping) == stable_hash(dict(reversed(mapping.items())))


def test_hash_is_the_same_in_another_process_and_release() -> None:
    assert stable_hash("clip-1", 3, {"b": None, "a": [1.5, "é"]}) == "d946f2adc22bc5fc"
    code = "from balsa_ray.identity import stable_hash; print(stable_hash('x', {'y': 1}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == stable_hash("x", {"y": 1})


@pytest.mark.parametrize("parts", [[["a", "b"], ["é"]], [[], ["a"], [], ["b", "é"]], [["a", "b", "é"]]])
def test_lists_in_parts_have_the_hash_of_whole_ones(parts: list[list[str]]) -> None:
    assert hash_of_lists(parts, [[1, 2]], []) == stable_hash(["a", "b", "é"], [1, 2], [])
    assert hash_of_lists() == stable_hash()


def test_hash_keeps_parts_apart() -> None:
    assert len({stable_hash("ab", "c"), stable_hash("a", "bc"), stable_hash("abc"), stable_hash(["ab", "c"])}) == 4
    assert stable_hash(1) != stable_hash("1")
    assert len(stable_hash("a", length=40)) == 40


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, float("nan"), np.float32(1)])
def test_hash_refuses_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        stable_hash(value)


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert file_hash(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.integers(), KEY)
def test_draws_depend_on_seed_and_key_alone(seed: int, key: list) -> None:
    assert unit(seed, *key) == unit(seed, *key)
    assert 0 <= unit(seed, *key) < 1
    assert rng(seed, *key).integers(1 << 60, size=4).tolist() == rng(seed, *key).integers(1 << 60, size=4).tolist()
    assert unit(seed, *key) != unit(seed + 1, *key)
    assert unit(seed, *key) != unit(seed, *key, "more")


def test_draws_are_uniform() -> None:
    draws = np.array([unit(0, "row", i) for i in range(10_000)])
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert counts.min() > 850
    assert counts.max() < 1150


def test_pick_follows_the_weights() -> None:
    chosen = [pick(7, ("row", i), ["a", "b", "c"], [1, 0, 3]) for i in range(4000)]
    assert "b" not in chosen
    assert chosen.count("c") / len(chosen) == pytest.approx(0.75, abs=0.03)
    assert {pick(7, ("row", i), "ab") for i in range(50)} == {"a", "b"}


@given(st.integers(), KEY, st.lists(st.floats(0, 1e6), min_size=1, max_size=5).filter(lambda w: sum(w) > 0))
def test_pick_never_takes_an_option_of_weight_zero(seed: int, key: list, weights: list[float]) -> None:
    assert weights[pick(seed, key, range(len(weights)), weights)] > 0


@pytest.mark.parametrize(("options", "weights"), [([], None), ("ab", [1]), ("ab", [-1, 2]), ("ab", [0, 0])])
def test_pick_refuses_what_it_cannot_choose_from(options: list, weights: list | None) -> None:
    with pytest.raises(ValueError, match="options"):
        pick(0, ("x",), options, weights)


@given(key=st.lists(st.text() | st.integers()), count=st.integers(0, 9))
def test_several_numbers_come_of_one_key(key: list[str | int], count: int) -> None:
    found = units(1, *key, count=count)
    assert found == units(1, *key, count=count + 1)[:count]
    assert all(0 <= number < 1 for number in found)
    assert not set(found) & set(units(2, *key, count=count))


@given(st.lists(st.text() | st.integers()))
def test_a_key_of_texts_and_numbers_is_hashed_as_its_json(key: list[str | int]) -> None:
    canonical = json.dumps(key, ensure_ascii=False, separators=(",", ":"))
    assert stable_hash(*key, length=64) == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_shuffle_puts_the_heavier_first_as_often_as_its_weight_says() -> None:
    orders = [shuffled(0, ("key", i), "abc", [6, 3, 1]) for i in range(2000)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    first = Counter(order[0] for order in orders)
    assert [round(first[item] / 2000, 1) for item in "abc"] == [0.6, 0.3, 0.1]
    assert shuffled(0, ("key", 1), "abc") == shuffled(0, ("key", 1), "abc", [1, 1, 1])
