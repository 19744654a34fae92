"""How a teacher's numbers become planes: order, rounding, tail mass, ranks, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from logits.examples import planes, teacher_row

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.check import problems
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.spec import ShardSpec

SPEC = ShardSpec("Exact", 3, vocab=200_000)
PROBABILITIES = np.array([[0.1, 0.3, 0.1, 0.25, 0.05]])
IDS = np.array([[70_000, 3, 9, 150_001, 5]])


def row(**changes: object) -> TeacherRow:
    base = TeacherRow(
        key=bytes(range(16)),
        input_ids=np.array([1, 3]),
        scored=np.array([False, True]),
        lab_lp=np.log([0.3]),
        lab_rank=np.array([1]),
        top_ids=IDS,
        top_lp=np.log(PROBABILITIES),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_the_head_is_the_k_most_probable_in_order_ties_by_lower_id() -> None:
    built = build_planes(SPEC, [row()])
    np.testing.assert_array_equal(built.top_ids(), [[3, 150_001, 9]])
    np.testing.assert_array_equal(built["top_lp"], np.log([[0.3, 0.25, 0.1]]).astype(np.float16))


def test_the_tail_is_what_the_unrounded_head_leaves() -> None:
    np.testing.assert_array_equal(build_planes(SPEC, [row()])["tail_lp"], np.log([0.35]).astype(np.float16))


def test_the_tail_of_an_overfull_head_has_a_floor() -> None:
    overfull = row(top_lp=np.log(np.array([[0.5, 0.4, 0.10001, 1e-9, 1e-9]])))
    assert build_planes(SPEC, [overfull])["tail_lp"][0] == np.float16(-16 * np.log(2))


def test_a_tail_that_the_engine_saw_is_kept() -> None:
    assert build_planes(SPEC, [row(tail_lp=np.array([-30.0]))])["tail_lp"][0] == -30


def test_ranks_saturate() -> None:
    assert build_planes(SPEC, [row(lab_rank=np.array([100_000]))])["lab_rank"][0] == 65_535


def test_a_logprob_that_rounding_put_above_zero_is_zero() -> None:
    built = build_planes(SPEC, [row(lab_lp=np.array([1e-7]))])
    assert built["lab_lp"][0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scored": np.array([True, False])}, "token 0 of row 0 is scored"),
        ({"lab_lp": np.array([np.nan])}, "lab_lp of position 0 is nan"),
        ({"top_lp": np.full((1, 5), np.nan)}, "NaN"),
        ({"top_lp": np.array([[-1, -np.inf, -np.inf, -np.inf, -np.inf]])}, "top_lp of position 0 is -inf"),
        ({"top_ids": np.array([[70_000, 200_000, 9, 4, 5]])}, "an id outside 0 to 199999"),
        ({"top_ids": np.array([[3, 3, 9, 150_001, 5]])}, "a token id twice"),
        ({"top_ids": IDS[:, :2], "top_lp": np.log(PROBABILITIES[:, :2])}, "3 entries are expected"),
        ({"top_ids": None}, "3 entries are expected"),
        ({"input_ids": np.array([1, 200_000])}, "the vocabulary ends at 199999"),
        ({"lab_rank": np.array([0])}, "ranks start at 1"),
        ({"key": b"short"}, "they must be equally many, and 16"),
        ({"lab_lp": np.log([0.3, 0.2])}, "plane lab_lp has 2 entries"),
    ],
)
def test_the_impossible_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_planes(SPEC, [row(**changes)])


def test_a_row_is_stored_once() -> None:
    with pytest.raises(DataError, match="two rows have the same key"):
        build_planes(SPEC, [row(), row()])


def test_targets_of_a_row_sum_to_one_after_rounding() -> None:
    spec = ShardSpec("Exact", 32, vocab=49_152)
    generator = np.random.default_rng(0)
    built = build_planes(spec, [teacher_row(spec, 200, generator)])
    targets = built.row(0)
    assert targets.top_lp is not None and targets.tail_lp is not None
    stored = np.exp(built["top_lp"].astype(np.float64)).sum(1) + np.exp(built["tail_lp"].astype(np.float64))
    total = np.exp(targets.top_lp.astype(np.float64)).sum(1) + np.exp(targets.tail_lp.astype(np.float64))
    assert np.abs(stored - 1).max() > 1e-5
    np.testing.assert_allclose(total, 1, atol=2e-6)


def test_targets_say_which_tokens_they_are_for() -> None:
    built = planes(SPEC, (5, 17))
    for number in (0, 1):
        targets = built.row(number)
        np.testing.assert_array_equal(targets.positions, np.flatnonzero(built.mask(number)))
        np.testing.assert_array_equal(targets.label_ids, targets.input_ids[targets.positions])


@pytest.mark.parametrize(
    ("plane", "at", "value", "message"),
    [
        ("top_lp", (0, 0), -9.0, "not in descending order"),
        ("scored", 0, 0, "scored tokens and"),
        ("scored", 0, 0xFE, "bits beyond its 5 tokens"),
        ("pos_ptr", -1, 0, "offsets"),
        ("row_ptr", 0, 1, "offsets"),
        ("lab_lp", 0, 0.5, "no log of a probability"),
    ],
)
def test_unsound_planes_are_named(plane: str, at: object, value: object, message: str) -> None:
    sound = planes(SPEC, (5, 17))
    assert problems(sound) == []
    arrays = {name: array.copy() for name, array in sound.arrays.items()}
    arrays[plane][at] = value
    assert any(message in problem for problem in problems(Planes(SPEC, arrays)))


def test_planes_of_another_dtype_or_name_are_named() -> None:
    sound = planes(SPEC)
    wide = dict(sound.arrays) | {"lab_rank": sound["lab_rank"].astype(np.int64)}
    assert "plane lab_rank is int64" in problems(Planes(SPEC, wide))[0]
    assert "profile Exact has" in problems(Planes(SPEC, dict(sound.arrays) | {"more": sound["key"]}))[0]


def compact(lp: list[float]) -> Planes:
    spec = ShardSpec("Compact", len(lp), vocab=200_000)
    ids = np.arange(len(lp))[None]
    return build_planes(spec, [row(top_ids=ids, top_lp=np.array([lp]))])


def test_compact_keeps_the_first_and_the_distance_to_the_last() -> None:
    built = compact([-0.5, -1.5, -5.6])
    np.testing.assert_array_equal(built["top_s"], np.array([[-0.5, 5.1]], np.float16))
    np.testing.assert_array_equal(built["top_q"], [[0, 50, 255]])
    np.testing.assert_allclose(built.top_lp(), [[-0.5, -1.5, -5.6]], atol=5.1 / 510 + 2e-3)


@pytest.mark.parametrize("lp", [[-0.7], [-1.5, -1.5], [-1.0, -1.0 - 1e-9]])
def test_a_compact_head_without_range_is_flat(lp: list[float]) -> None:
    built = compact(lp)
    assert not built["top_q"].any()
    np.testing.assert_allclose(built.top_lp()[0], lp, atol=1e-3)


UNBIASED = ShardSpec("Unbiased", 2, 4, vocab=200_000, entropy=True)


def drawn(ids: list[int], **changes: object) -> TeacherRow:
    return row(entropy=np.array([1.25]), draws=np.array([ids]), **changes)


def test_draws_are_distinct_ids_with_their_counts() -> None:
    built = build_planes(UNBIASED, [drawn([150_002, 7, 150_002, 150_002])])
    np.testing.assert_array_equal(built.draw_ids(), [[7, 150_002, -1, -1]])
    np.testing.assert_array_equal(built["rs_cnt"], [[1, 3, 0, 0]])
    assert built["ent"][0] == np.float16(1.25)


def test_draws_share_the_tails_mass_and_leave_none() -> None:
    targets = build_planes(UNBIASED, [drawn([150_002, 7, 150_002, 150_002])]).row(0).with_draws()
    assert targets.top_ids is not None and targets.top_lp is not None and targets.tail_lp is not None
    np.testing.assert_array_equal(targets.top_ids, [[3, 150_001, 7, 150_002, -1, -1]])
    p = np.exp(targets.top_lp[0])
    np.testing.assert_allclose(p, [0.3, 0.25, 0.45 / 4, 0.45 * 3 / 4, 0, 0], rtol=2e-3)
    assert p.sum() == pytest.approx(1, abs=1e-6)
    assert np.isneginf(targets.tail_lp).all()


def test_a_head_that_is_everything_has_no_draws() -> None:
    whole = row(entropy=np.array([1.0]), draws=np.full((1, 4), -1), tail_lp=np.array([-np.inf]))
    targets = build_planes(UNBIASED, [whole]).row(0).with_draws()
    assert targets.top_ids is not None and (targets.top_ids[0, 2:] == -1).all()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (drawn([7, 7, 7, -1]), "sums to 3, there are 4 draws"),
        (drawn([3, 7, 7, 7]), "a draw that is in its head"),
        (drawn([200_000, 7, 7, 7]), "outside 0 to 199999"),
        (row(draws=np.array([[7, 7, 7, 7]])), r"entropy of shape None, \[positions, \*\(\)\] is expected"),
        (row(entropy=np.array([1.0]), draws=np.array([[7]])), r"draws of shape \(1, 1\)"),
        (replace(drawn([7, 7, 7, 7]), entropy=np.array([-1.0])), "ent of position 0 is -1"),
    ],
)
def test_impossible_draws_are_refused(broken: TeacherRow, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_planes(UNBIASED, [broken])


def test_targets_at_a_temperature_are_normalised_with_its_own_tail() -> None:
    spec = ShardSpec("Exact", 2, 0, (2.0,), 200_000)
    targets = build_planes(spec, [row(tail_tau=np.log([[1.5]]))]).row(0, 2.0)
    assert targets.top_lp is not None and targets.tail_lp is not None
    masses = np.sqrt([0.3, 0.25, 2.25])
    np.testing.assert_allclose(np.exp([*targets.top_lp[0], *targets.tail_lp]), masses / masses.sum(), rtol=2e-3)
    with pytest.raises(SettingsError, match=r"objective\.temperature: 3\.0 .*use one of 1\.0, 2\.0"):
        build_planes(spec, [row(tail_tau=np.log([[1.5]]))]).row(0, 3.0)
