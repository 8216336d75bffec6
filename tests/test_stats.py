"Intervals, verdicts and power against scipy, statsmodels and simulation."

import numpy as np
import pytest

pytest.importorskip("scipy")
from scipy import stats as sp

from hpt_nb import stats as st
from hpt_nb.calibration import auc
from hpt_nb.crossed import rest_square
from hpt_nb.store import InputError


def draw(rng, S, T, truth, sd, whole=True):
    "(S, T) differences with this mean and these deviations over seeds, texts, and for the rest: -1, 0, 1, or normal."
    mean = truth + sd[0] * rng.normal(size=(S, 1)) + sd[1] * rng.normal(size=(1, T))
    if not whole:
        return mean + sd[2] * rng.normal(size=(S, T))
    some = np.clip(sd[2] ** 2 + mean**2, abs(mean), 1)
    u = rng.random((S, T))
    return (u < (some + mean) / 2).astype(float) - (u > 1 - (some - mean) / 2)


MEASURED = (0.064, 0.022, 0.33)  # over seeds, over texts, the rest: SmolLM2's prompts on Gemma, SST-2

# ---- the crossed interval ----


def coverage(S, T, sd, draws, truth=0.01, seed=0):
    rng, held = np.random.default_rng([seed, S, T]), 0
    for _ in range(draws):
        found = st.crossed_interval(draw(rng, S, T, truth, sd))
        held += found.low <= truth <= found.high
    return held / draws


@pytest.mark.parametrize("S", [5, 10, 22, 50])
def test_the_interval_holds_the_truth_as_often_as_it_says(S):
    "400 draws have a standard error of 1.1 points: these are the bounds of 93 to 97 %, and two of those."
    assert 0.908 <= coverage(S, 200, MEASURED, 400) <= 0.992


@pytest.mark.slow  # minutes; its result is stored in nbs/stored/11b-coverage.json
@pytest.mark.parametrize("S", [5, 10, 22, 50])
@pytest.mark.parametrize("T", [400, 872])
def test_large_simulation_holds_the_truth_in_93_to_97_percent(S, T):
    assert 0.93 <= coverage(S, T, MEASURED, 5000, seed=1) <= 0.97


@pytest.mark.parametrize("S,T", [(3, 4), (5, 30), (10, 200)])
def test_mean_squares_are_those_of_statsmodels(S, T):
    pd, api = pytest.importorskip("pandas"), pytest.importorskip("statsmodels.formula.api")
    from statsmodels.stats.anova import anova_lm

    d = draw(np.random.default_rng(S), S, T, 0.02, (0.1, 0.2, 0.4))
    rows = pd.DataFrame(dict(d=d.ravel(), seed=np.repeat(np.arange(S), T), text=np.tile(np.arange(T), S)))
    table = anova_lm(api.ols("d ~ C(seed) + C(text)", rows).fit())
    assert rest_square(d) == pytest.approx(table.loc["Residual", "mean_sq"], rel=1e-8)
    found = st.crossed_interval(d)
    seed, text, rest = (table.loc[k, "mean_sq"] / (S * T) for k in ("C(seed)", "C(text)", "Residual"))
    assert found.se**2 == pytest.approx(max(seed + text - rest, seed, text), rel=1e-8)
    assert found.seed_part == pytest.approx(seed * S, rel=1e-8)


def test_variances_are_those_of_a_mixed_model():
    "REML of a balanced crossed design equals the analysis of variance, where no component is negative."
    pd, sm = pytest.importorskip("pandas"), pytest.importorskip("statsmodels.api")
    S, T = 8, 25
    d = draw(np.random.default_rng(4), S, T, 0.3, (0.5, 0.8, 1.0), whole=False)
    rows = pd.DataFrame(dict(d=d.ravel(), one=1, seed=np.repeat(np.arange(S), T), text=np.tile(np.arange(T), S)))
    fit = sm.MixedLM.from_formula(
        "d ~ 1", rows, groups="one", re_formula="0", vc_formula={"seed": "0 + C(seed)", "text": "0 + C(text)"}
    ).fit()
    found = st.crossed_interval(d)
    assert fit.bse["Intercept"] == pytest.approx(found.se, rel=2e-3) and fit.params["Intercept"] == pytest.approx(
        found.estimate, abs=1e-6
    )


def test_without_seeds_it_is_the_paired_t_test():
    d = draw(np.random.default_rng(0), 1, 60, 0.1, (0, 0.3, 0.4))[0]
    found, ref = st.crossed_interval(d), sp.ttest_1samp(d, 0)
    assert (found.p, found.df) == (pytest.approx(ref.pvalue), pytest.approx(ref.df))
    assert (found.low, found.high) == pytest.approx(tuple(ref.confidence_interval(0.95)))


def test_where_texts_do_not_differ_it_is_the_t_test_of_seeds():
    seeds = np.random.default_rng(0).normal(0.1, 0.3, 7)
    found, ref = st.crossed_interval(np.repeat(seeds[:, None], 50, 1)), sp.ttest_1samp(seeds, 0)
    assert (found.p, found.df) == (pytest.approx(ref.pvalue), pytest.approx(6))


def test_agreeing_seeds_hide_no_effect():
    "Five seeds that ended on one prompt: the texts decide, and the verdict is the one that they give."
    texts = np.repeat([1.0, 0, -1], [60, 30, 10])
    found = st.crossed_interval(np.tile(texts, (5, 1)))
    assert found.p == pytest.approx(sp.ttest_1samp(texts, 0).pvalue) and st.decide(found)["verdict"] == "above"


def test_unequal_seeds_hold_the_truth():
    "Ten seeds against four, as strangers, on the same texts."
    rng, held = np.random.default_rng(5), 0
    for _ in range(400):
        text = 0.2 * rng.normal(size=(1, 60))
        arm = lambda S, mean: mean + 0.06 * rng.normal(size=(S, 1)) + text + 0.3 * rng.normal(size=(S, 60))
        found = st.crossed_contrast([arm(10, 0.05), arm(4, 0.02)], [1, -1])
        held += found.low <= 0.03 <= found.high
    assert 0.915 <= held / 400 <= 0.985


def test_pooled_sources_hold_the_truth():
    "Two sources: other prompts, the same texts; what a text does to both does not average out."
    rng, held = np.random.default_rng(6), 0
    for _ in range(400):
        text = 0.15 * rng.normal(size=(1, 80))
        found = st.crossed_contrast(
            [0.02 + text + draw(rng, 8, 80, 0, (0.05, 0.05, 0.3), whole=False) for _ in range(2)], [0.5, 0.5]
        )
        held += found.low <= 0.02 <= found.high
    assert 0.915 <= held / 400 <= 0.985


def test_targets_are_averaged_within_a_seed():
    "Targets share prompts and texts. Taken as separate experiments, they would count one seed's luck several times."
    rng = np.random.default_rng(7)
    luck = 0.1 * rng.normal(size=(6, 1))
    targets = [luck + 0.3 * rng.normal(size=(6, 100)) for _ in range(3)]
    within = st.crossed_interval(st.over_targets(targets))
    apart = st.crossed_contrast(targets, [1 / 3] * 3)
    assert within.estimate == pytest.approx(apart.estimate) and within.se > 1.3 * apart.se


# ---- AUC ----


@pytest.mark.parametrize("classes", [2, 4])
def test_a_text_s_values_average_to_the_auc_and_its_variance(classes):
    rng = np.random.default_rng(classes)
    labels = np.repeat(np.arange(classes), 30)
    logp = (rng.normal(size=(len(labels), classes)) + 0.8 * np.eye(classes)[labels]).round(1)
    values = st.auc_values(logp, labels)
    assert values.mean() == pytest.approx(auc(logp, labels))
    drawn = []
    for _ in range(1500):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), 30) for c in range(classes)])
        drawn.append(auc(logp[rows], labels[rows]))
    assert st.crossed_interval(values).se == pytest.approx(np.std(drawn, ddof=1), rel=0.12)  # the bootstrap over texts


def test_delong_s_variance_of_a_difference():
    "As DeLong et al. print it, for two curves on the same texts."
    rng = np.random.default_rng(1)
    labels = np.r_[np.zeros(20, int), np.ones(35, int)]
    two = [
        np.stack([m / 2, -m / 2], 1)
        for m in (rng.normal(size=55) + (labels == 0), rng.normal(size=55) + 0.5 * (labels == 0))
    ]
    parts = []
    for logp in two:
        x, y = (logp[:, 0] - logp[:, 1])[labels == 0], (logp[:, 0] - logp[:, 1])[labels == 1]
        psi = (x[:, None] > y).astype(float)
        parts.append((psi.mean(1), psi.mean(0)))
    cov = np.cov(parts[0][0], parts[1][0]) / 20 + np.cov(parts[0][1], parts[1][1]) / 35
    found = st.crossed_interval(st.auc_values(two[0], labels) - st.auc_values(two[1], labels))
    assert found.se**2 == pytest.approx(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])


def test_bootstrap_and_formula_agree_where_seeds_dominate():
    rng = np.random.default_rng(2)
    labels = np.tile([0, 1], 100)

    def arm(mean):
        m = (mean + 0.6 * rng.normal(size=(12, 1))) * (labels == 0) + rng.normal(size=(12, 200))
        return np.stack([m / 2, -m / 2], -1)

    a, b = arm(1.5), arm(1.0)
    found = st.crossed_interval(st.difference(st.text_values("auc", a, labels), st.text_values("auc", b, labels)))
    drawn = st.bootstrap_auc(a, b, labels, draws=2000)
    assert drawn["estimate"] == pytest.approx(found.estimate) and drawn["se"] == pytest.approx(found.se, rel=0.15)


# ---- tests, verdicts, power ----


def test_welch_is_scipy_s():
    found = st.welch(68.35, 3.43, 5, 64.13, 3.65, 5)
    ref = sp.ttest_ind_from_stats(68.35, 3.43, 5, 64.13, 3.65, 5, equal_var=False)
    assert found.p == pytest.approx(ref.pvalue) and found.estimate / found.se == pytest.approx(ref.statistic)


def test_equivalence_is_statsmodels():
    w = pytest.importorskip("statsmodels.stats.weightstats")
    for seed in range(6):
        d = np.random.default_rng(seed).normal(0.005, 0.08, 120)
        ref = w.ttost_paired(d, np.zeros_like(d), -0.02, 0.02)[0]
        assert st.p_equivalent(st.crossed_interval(d)) == pytest.approx(ref)


def test_equivalence_and_the_90_percent_interval_say_the_same():
    rng = np.random.default_rng(0)
    for _ in range(200):
        found = st.Interval(rng.normal(0, 0.01), rng.uniform(0.001, 0.02), rng.uniform(2, 50), 0.95, (5,), 400)
        low, high = found.at(0.9)
        assert (st.p_equivalent(found) < 0.05) == (low > -0.02 and high < 0.02)


def test_holm_is_statsmodels():
    m = pytest.importorskip("statsmodels.stats.multitest")
    for seed in range(5):
        p = np.random.default_rng(seed).random(9) ** 3
        assert st.holm(p) == pytest.approx(m.multipletests(p, method="holm")[1])


@pytest.mark.parametrize("n,effect", [(5, 0.3), (5, 1.0), (10, 0.8), (22, 0.62), (91, 0.2), (5, 4.0)])
def test_power_is_statsmodels(n, effect):
    p = pytest.importorskip("statsmodels.stats.power")
    assert st.power(effect, n**-0.5, n - 1) == pytest.approx(p.TTestPower().power(effect, n, 0.05), abs=1e-8)
    assert st.power(effect, (2 / n) ** 0.5, 2 * n - 2) == pytest.approx(
        p.TTestIndPower().power(effect, n, 0.05), abs=1e-8
    )


def test_number_of_seeds_is_statsmodels():
    p = pytest.importorskip("statsmodels.stats.power")
    found = st.Interval(0.0, 0.0, 1, 0.95, (10,), 10**6, 0.064**2, 0.0)  # no texts to speak of
    assert st.seeds_needed(found) == int(np.ceil(p.TTestPower().solve_power(0.02 / 0.064, power=0.8, alpha=0.05)))


def test_the_smallest_effect_is_seen_in_four_of_five_studies():
    rng, found, n = np.random.default_rng(3), 0, 500
    V = 0.064**2 / 10 + 0.022**2 / 200 + 0.33**2 / 2000
    effect = st.smallest_effect(V**0.5, 9)
    for _ in range(n):
        found += st.crossed_interval(draw(rng, 10, 200, effect, MEASURED, whole=False)).p < 0.05
    assert 0.74 <= found / n <= 0.86


def test_the_planned_seeds_decide():
    """With the number that an undecided verdict names, both a difference of 2 points and none at all are settled in
    about four of five studies."""
    rng, settled = np.random.default_rng(8), {0: 0, 0.02: 0}
    sd = (0.02, 0.02, 0.25)
    pilot = st.Interval(0.0, 0.0, 1, 0.95, (10,), 200, sd[0] ** 2 + sd[2] ** 2 / 200, sd[1] ** 2 / 200)
    n = max(st.seeds_needed(pilot), st.seeds_needed(pilot, same=True))
    for truth in settled:
        for _ in range(300):
            found = st.crossed_interval(draw(rng, n, 200, truth, sd, whole=False))
            settled[truth] += found.p < 0.05 if truth else st.p_equivalent(found) < 0.05
    assert all(0.73 <= s / 300 <= 0.92 for s in settled.values()), (n, settled)


def test_false_alarms_and_false_sameness_are_rare():
    "Without a difference, above or below in 5 % of studies; with a difference of exactly the margin, the same in 5 %."
    rng, alarm, same = np.random.default_rng(9), 0, 0
    for _ in range(500):
        alarm += st.crossed_interval(draw(rng, 8, 100, 0, (0.03, 0.05, 0.2), whole=False)).p < 0.05
        same += st.p_equivalent(st.crossed_interval(draw(rng, 30, 100, 0.02, (0.01, 0.02, 0.1), whole=False))) < 0.05
    assert 0.02 <= alarm / 500 <= 0.08 and same / 500 <= 0.08


def test_a_plan_ignores_the_difference():
    d = draw(np.random.default_rng(0), 10, 200, 0, MEASURED)
    assert len({st.seeds_needed(st.crossed_interval(d + shift)) for shift in (-0.3, 0, 0.1, 0.5)}) == 1


# ---- correlations ----


def test_pearson_s_interval_is_scipy_s():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    y = 0.5 * x + rng.normal(size=80)
    found, ref = st.correlate(x, y), sp.pearsonr(x, y)
    assert found.r == pytest.approx(ref.statistic) and (found.low, found.high) == pytest.approx(
        tuple(ref.confidence_interval(0.95))
    )


def test_spearman_is_scipy_s_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 60), rng.integers(0, 6, 60)
    assert st.correlate(x, y, "spearman").r == pytest.approx(sp.spearmanr(x, y).statistic)


@pytest.mark.parametrize("kind", st.KINDS)
def test_a_correlation_s_interval_holds_the_truth(kind):
    rho = 0.6
    truth = rho if kind == "pearson" else 6 / np.pi * np.arcsin(rho / 2)  # of two normal variables
    rng, held = np.random.default_rng(1), 0
    for _ in range(600):
        x, y = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 60).T
        found = st.correlate(x, y, kind)
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 600 <= 0.98


@pytest.mark.slow  # a simulation
def test_the_corrected_interval_holds_the_truth():
    rng, held = np.random.default_rng(2), 0
    for _ in range(60):
        true = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 200)
        x, y = (true[:, i] + rng.normal(size=(2, 200)) for i in (0, 1))
        found = st.reliable_correlation(x, y, draws=100)
        held += found["corrected_low"] <= 0.5 <= found["corrected_high"]
    assert held >= 52  # of 60: 95 % less three standard errors


# ---- faults ----

FAULTS = {
    "seeds": lambda: st.difference(np.zeros((3, 5)), np.zeros((2, 5))),
    "texts": lambda: st.difference(np.zeros((3, 5)), np.zeros((3, 6))),
    "one text": lambda: st.crossed_interval([[1.0], [0.0]]),
    "nan": lambda: st.crossed_interval([[1.0, np.nan]]),
    "margin": lambda: st.p_equivalent(st.crossed_interval([1.0, 0, 1]), -1),
    "targets": lambda: st.over_targets([np.zeros((3, 5)), np.zeros((3, 6))]),
    "power": lambda: st.smallest_effect(1, 5, wanted=1.2),
    "p": lambda: st.holm([-0.1]),
    "weights": lambda: st.crossed_contrast([np.zeros((2, 3))], []),
    "measure": lambda: st.text_values("f1", [], []),
    "pairs": lambda: st.correlate([1, 2], [1, 2]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line(fault):
    with pytest.raises(InputError) as e:
        FAULTS[fault]()
    assert "\n" not in str(e.value) and "need" in str(e.value)
