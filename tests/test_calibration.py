"Calibration and AUC against slow counting, against scikit-learn where it is installed, and their faults."

import numpy as np
import pytest
import torch

from hpt_nb import calibration as cal
from hpt_nb.store import InputError


def draw(seed, n, classes, ties):
    "Log-probabilities with some skill, and labels in which every class occurs."
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    z = rng.normal(size=(n, classes)) + np.eye(classes)[labels]
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    return ((8 * logp).round() / 8 if ties else logp), labels  # eighths: sums of them are exact, so ties stay ties


CASES = [
    (seed, n, classes, ties)
    for seed in range(3)
    for n, classes in ((7, 2), (40, 2), (60, 4), (90, 6))
    for ties in (False, True)
]


def area_slow(first, second):
    won = 0.0
    for x in first:
        for y in second:
            won += 1 if x > y else 0.5 if x == y else 0
    return won / (len(first) * len(second))


@pytest.mark.parametrize("case", CASES)
def test_each_pair_s_area_is_the_share_of_pairs_in_order(case):
    logp, labels = draw(*case)
    areas = cal.pair_aucs(logp, labels)
    assert list(areas) == [(i, j) for i in range(case[2]) for j in range(i + 1, case[2])]
    for (i, j), area in areas.items():
        m = logp[:, i] - logp[:, j]
        assert area == pytest.approx(area_slow(m[labels == i], m[labels == j]), abs=1e-12)
    assert cal.auc(logp, labels) == pytest.approx(np.mean(list(areas.values())), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_auc_is_scikit_learn_s(case):
    metrics = pytest.importorskip("sklearn.metrics")
    logp, labels = draw(*case)
    for (i, j), area in cal.pair_aucs(logp, labels).items():
        two = (labels == i) | (labels == j)
        assert area == pytest.approx(metrics.roc_auc_score(labels[two] == i, (logp[:, i] - logp[:, j])[two]), abs=1e-12)
    if case[2] == 2:
        assert cal.auc(logp, labels) == pytest.approx(metrics.roc_auc_score(labels, logp[:, 1] - logp[:, 0]), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_macro_f1_is_scikit_learn_s(case):
    metrics = pytest.importorskip("sklearn.metrics")
    logp, labels = draw(*case)
    assert cal.macro_f1(logp, labels) == pytest.approx(
        metrics.f1_score(labels, cal.guesses(logp), average="macro"), abs=1e-12
    )


@pytest.mark.parametrize("case", CASES)
def test_a_lean_changes_neither_auc_nor_calibrated_accuracy(case):
    logp, labels = draw(*case)
    lean = np.arange(case[2]) * 1.5 - 2
    assert cal.auc(logp + lean, labels) == pytest.approx(cal.auc(logp, labels), abs=1e-12)
    assert (cal.guesses(logp + lean) != cal.guesses(logp)).any()
    if not case[3]:
        assert cal.calibrated_accuracy(logp + lean, labels, logp + lean) == cal.calibrated_accuracy(logp, labels, logp)


def test_calibrated_accuracy_in_plain_loops():
    logp, labels = draw(4, 50, 3, False)
    unlabelled, _ = draw(5, 30, 3, False)
    means = [sum(row[c] for row in unlabelled) / len(unlabelled) for c in range(3)]
    right = sum(max(range(3), key=lambda c: row[c] - means[c]) == y for row, y in zip(logp, labels))
    assert cal.calibrated_accuracy(logp, labels, unlabelled) == right / 50
    seen = cal.measures(logp, labels, unlabelled)
    assert seen["calibrated"] == right / 50 and seen["accuracy"] == cal.accuracy(logp, labels)
    assert sum(seen["shares"]) == pytest.approx(1) and sum(seen["calibrated_shares"]) == pytest.approx(1)


def test_content_free_in_plain_loops():
    logp, _ = draw(4, 20, 3, False)
    blank, _ = draw(5, 3, 3, False)
    share = np.exp(blank).mean(0)
    assert np.allclose(np.exp(cal.content_free(logp, blank)), np.exp(logp) / share)


@pytest.mark.parametrize("kind", [np.float16, np.float32, torch.float16, torch.bfloat16, torch.float32, list])
def test_any_kind_of_array_goes_in(kind):
    logp = [[-1.0, -2.0], [-2.0, -0.5], [-0.25, -4.0]]
    given = (
        logp
        if kind is list
        else torch.tensor(logp, dtype=kind)
        if isinstance(kind, torch.dtype)
        else np.array(logp, kind)
    )
    assert cal.measures(given, [0, 1, 1], given) == cal.measures(logp, [0, 1, 1], logp)


def test_a_class_that_no_text_has_is_no_pair():
    logp, _ = draw(0, 20, 3, False)
    assert list(cal.pair_aucs(logp, [0, 2] * 10)) == [(0, 2)]


FAULTS = {
    "one class": lambda: cal.auc(np.zeros((4, 2)), [0] * 4),
    "no text": lambda: cal.accuracy(np.zeros((0, 2)), []),
    "nan": lambda: cal.measures([[0.0, np.nan]], [0]),
    "too few labels": lambda: cal.hits(np.zeros((3, 2)), [0, 1]),
    "a label too high": lambda: cal.macro_f1(np.zeros((2, 2)), [0, 2]),
    "a label below 0": lambda: cal.auc(np.zeros((2, 2)), [0, -1]),
    "other classes": lambda: cal.calibrated_accuracy(np.zeros((2, 2)), [0, 1], np.zeros((2, 3))),
    "one column": lambda: cal.guesses(np.zeros((2, 1))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line(fault):
    with pytest.raises(InputError) as e:
        FAULTS[fault]()
    assert "\n" not in str(e.value) and "need" in str(e.value)
