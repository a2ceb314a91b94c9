"""Scores, statistics and comparisons, by hand."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import results
from benchmarks.pages import ROOT


def test_iqm_by_hand():
    # 8 values: two are cut at each end.
    two = [np.array([0.0, 10.0, 20.0, 30.0]), np.array([40.0, 50.0, 60.0, 1000.0])]
    assert results.iqm(two) == (20 + 30 + 40 + 50) / 4
    # 9 values: two are cut at each end (a quarter rounded down), five remain.
    assert results.iqm([np.arange(9.0)]) == 4.0
    # 3 values: nothing is cut.
    assert results.iqm([np.array([1.0, 2.0, 6.0])]) == 3.0


def test_probability_of_improvement_by_hand():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0])
    # 1 > 0; 2 > 0 and 2 = 2; 3 > both: (1 + 1.5 + 2) / 6.
    assert results.probability_of_improvement([x], [y]) == pytest.approx(4.5 / 6)
    # Environments weigh the same.
    two = results.probability_of_improvement([x, np.array([5.0])], [y, np.array([9.0])])
    assert two == pytest.approx(4.5 / 12)
    # Resampled scores: one probability each.
    rows = results.probability_of_improvement([np.stack([x, x[[0, 0, 0]]])], [np.stack([y, y])])
    assert rows == pytest.approx([4.5 / 6, 3 / 6])


def test_rank_sum_test_by_hand():
    # U of 2 over 2, all 6 orders alike: 0, 1, 2, 2, 3, 4.
    assert results.null_of_u(2, 2) == pytest.approx(np.array([1, 1, 2, 1, 1]) / 6)
    low, high = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert results.rank_sum_test([low], [high]) == (pytest.approx(2 / 6), False)
    assert results.rank_sum_test([high], [low]) == (pytest.approx(2 / 6), True)
    # Over two environments, the same: the sum is 0 in 1 of 36 orders, and 8 in another.
    assert results.rank_sum_test([low, low], [high, high])[0] == pytest.approx(2 / 36)
    assert results.rank_sum_test([low, high], [high, low])[0] == pytest.approx(1.0)
    # On one environment it is SciPy's exact test, also of unequal numbers.
    rng = np.random.default_rng(0)
    for m, n in ((3, 3), (4, 7), (10, 9)):
        x, y = rng.normal(size=m), rng.normal(0.8, size=n)
        assert results.rank_sum_test([x], [y])[0] == pytest.approx(stats.mannwhitneyu(x, y, method="exact").pvalue)


def test_its_p_is_small_as_often_as_it_says():
    """Three environments, three seeds, no difference: at most one in twenty, and not far below."""
    rng = np.random.default_rng(0)
    draws = [[rng.normal(size=3) for _ in range(6)] for _ in range(2000)]
    share = np.mean([results.rank_sum_test(draw[:3], draw[3:])[0] <= 0.05 for draw in draws])
    assert 0.02 < share < 0.055


def test_band_by_hand():
    # Two seeds, 0 and 1: mean and standard error 1/2, t(0.975; 1) = 12.706. A curve on which the seeds agree has
    # a band of no width.
    low, high = results.band(np.array([[0.0, 3.0], [1.0, 3.0]]))
    assert low == pytest.approx([0.5 - 6.353, 3.0], abs=1e-3) and high == pytest.approx([0.5 + 6.353, 3.0], abs=1e-3)


def test_a_band_of_five_seeds_holds_the_mean():
    """In 95 % of all curves; the noise of 4000 is 0.0034."""
    drawn = np.random.default_rng(0).normal(1.0, 0.3, (5, 4000))
    low, high = results.band(drawn)
    assert np.mean((low <= 1.0) & (high >= 1.0)) == pytest.approx(0.95, abs=0.01)


def test_interval_is_stratified():
    # The environments' IQM: with one seed each nothing can vary, whatever lies between environments.
    fixed = [np.array([1.0]), np.array([100.0])]
    assert results.interval(results.iqm, fixed) == (50.5, 50.5)
    # The mean of n normal scores: the interval's half-width is 1.96 std / sqrt(n), within the noise of 2000 draws.
    scores = np.random.default_rng(1).normal(size=200)
    low, high = results.interval(lambda sample: sample[0].mean(axis=-1), [scores])
    assert (high - low) / 2 == pytest.approx(1.96 * scores.std() / np.sqrt(200), rel=0.1)


def test_samples_and_environments_are_resampled_apart():
    """The difference of two means of equal scores varies as that of independent ones."""
    scores = np.random.default_rng(1).normal(size=200)
    width = 1.96 * np.sqrt(2) * scores.std() / np.sqrt(200)
    apart = results.interval(lambda x, y: x[0].mean(axis=-1) - y[0].mean(axis=-1), [scores], [scores])
    of_two = results.interval(lambda x: x[0].mean(axis=-1) - x[1].mean(axis=-1), [scores, scores])
    for low, high in (apart, of_two):
        assert (high - low) / 2 == pytest.approx(width, rel=0.1)


def test_scores_are_divided_by_the_bases_mean():
    assert results.normalised_iqm([np.array([2.0])], [np.array([1.0, 1.0, 4.0])]) == 1.0


def test_equals_have_a_ratio_of_1():
    """Also where the scores are skewed, whose interquartile mean is not their mean."""
    skewed = [np.array([1.0, 1.0, 1.0, 9.0]), np.array([2.0, 2.0, 2.0, 10.0])]
    assert results.normalised_iqm(skewed, skewed) < 0.6
    assert results.iqm_ratio(skewed, skewed) == 1.0
    assert results.iqm_ratio([3 * x for x in skewed], skewed) == pytest.approx(3.0)


def test_the_mean_ratio_weighs_environments_alike():
    """Four times and the same are twice, however many seeds; a half and twice are equal."""
    base = [np.array([1.0, 3.0]), np.full(5, 7.0)]
    assert results.mean_ratio([np.array([8.0]), np.full(3, 7.0)], base) == pytest.approx(2.0)
    assert results.mean_ratio([np.array([1.0]), np.full(3, 14.0)], base) == pytest.approx(1.0)
    assert np.isnan(results.mean_ratio([np.array([-1.0]), np.full(3, 14.0)], base))


def test_intervals_resample_the_base_too():
    # One score of 2 against a base of 1 and 3, whose resampled mean is 1, 2 or 3 with probabilities 1/4, 1/2, 1/4.
    scores, base = [np.array([2.0])], [np.array([1.0, 3.0])]
    assert results.normalised_iqm(scores, base) == 1.0
    assert results.interval(results.normalised_iqm, scores, base) == pytest.approx((2 / 3, 2.0))


def test_the_verdict_is_the_side_of_the_test():
    """Of ten seeds on one environment and three on two others the first weighs more in the test, not in P."""
    rng = np.random.default_rng(0)
    up, down = rng.normal(1.2, 0.1, 10), rng.normal(0.5, 0.01, 3)
    ours, base = [up, down, down], [rng.normal(1.0, 0.1, 10), rng.normal(1.0, 0.01, 3), rng.normal(1.0, 0.01, 3)]
    p, higher = results.rank_sum_test(ours, base)
    assert p < 0.05 and higher and results.probability_of_improvement(ours, base) < 0.5


def test_a_missing_evaluation_is_left_out_of_the_score():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    curve = results.Curve(1, np.arange(5), {"deterministic": values, "entropy": np.full(5, np.nan)}, np.arange(5.0), {})
    assert curve.score("deterministic") == pytest.approx(11 / 3) and np.isnan(curve.score("entropy"))
    some = np.array([1.0, 2.0, 3.0])
    assert results.comparable(some, some) and not results.comparable(np.array([1.0, np.nan, 2.0]), some)
    assert not results.comparable(some, some - 1.0) and not results.comparable(some[:0], some)


def test_score_rule():
    steps = np.arange(1, 31)
    curve = results.Curve(1, steps, dict.fromkeys(results.POLICIES, steps.astype(float)), steps * 1.0, {})
    assert curve.score("deterministic") == 25.5  # the last ten of thirty: 21 .. 30
    assert curve.maximum("deterministic") == 30.0
    assert curve.until(19).score("stochastic") == 18.0  # the last three of nineteen
    assert curve.until(20).score("stochastic") == 15.5
    assert curve.score("training") == 30.0  # an average of 100 episodes already


def test_pairs_by_hand(checkout):
    loaded = results.load(checkout / "benchmarks" / "results")
    # DiffWPO has two bases: SAC as all of its family, and DiffSAC, of which it is a variant.
    found = {(pair.name, pair.base): pair for pair in results.pairs(loaded) if pair.policy == "stochastic"}
    assert found["diffwpo_jax", "sac_jax"].iqm[0] == pytest.approx(167 / 112, abs=1e-2)
    assert found["diffwpo_jax", "diffsac_jax"].iqm[0] == pytest.approx(167 / 222, abs=1e-2)
    assert found["diffwpo_jax", "diffsac_jax"].improvement[0] == 0.0
    # Two seeds are too few: on Walker2d-v4 nothing is compared with them.
    one = {
        name: {env_id: curves[:2] if env_id == "Walker2d-v4" else curves for env_id, curves in by_env.items()}
        for name, by_env in loaded.items()
    }
    for few in ({**loaded, "sac_jax": one["sac_jax"]}, {**loaded, "diffsac_jax": one["diffsac_jax"]}):
        found = {pair.name: pair for pair in results.pairs(few) if pair.base == "sac_jax"}
        assert set(found["diffsac_jax"].steps) == {"Hopper-v4"} and found["diffsac_jax"].seeds == [3]
    # Without a training episode there is no training return and no comparison of it.
    for curves in (loaded["ppo_jax"][env_id] for env_id in ("Hopper-v4", "Walker2d-v4")):
        curves[0].measured["training"][:] = np.nan
    left = [pair for pair in results.pairs(loaded) if pair.base == "ppo_jax"]
    assert [pair.policy for pair in left] == ["deterministic"]


def test_reference_rows_are_complete():
    rows = results.read_rows(ROOT / "benchmarks" / "reference.csv")
    assert len(rows) >= 20
    for row in rows:
        assert row["source"] and row["metric"] in results.POLICIES and row["kind"] in results.FAMILIES
        assert float(row["mean"]) > 0 and int(row["steps"]) > 0
