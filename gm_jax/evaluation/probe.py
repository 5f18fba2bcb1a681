"""A linear probe of features: classification with few labels.

    rows = probe.balanced_rows(labels, 100, seed=0)
    accuracy = probe.linear_accuracy(z[rows], labels[rows], test_z, test_labels)
"""

import chex
import numpy as np

from gm_jax.data import pipeline

__all__ = ['balanced_rows', 'linear_accuracy']


def balanced_rows(labels: np.ndarray, num: int, *, seed: int) -> np.ndarray:
    """Choose `num` examples at random, equally many from each class.

    They are drawn in rounds, one from each class that has any left. So the choice of
    100 is a part of the choice of 1000, and if `num` is not a multiple of the number of
    classes, the counts differ by one.

    Args:
        labels: [N] integer.
        num: the number of examples, at most N.
        seed: the seed of the choice.

    Returns:
        [num] int64 rows, all different.

    Raises:
        AssertionError: labels is not integer [N].
        ValueError: num is not in [1, N].
    """
    chex.assert_rank(labels, 1)
    chex.assert_type(labels, int)
    if not 1 <= num <= len(labels):
        raise ValueError(f'num must be in [1, {len(labels)}], got {num}')
    order = pipeline.example_order(seed, 0, len(labels), len(labels))
    shuffled = labels[order]
    rounds = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled == label
        rounds[members] = np.arange(members.sum())
    return order[np.argsort(rounds, kind='stable')[:num]]


def linear_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """Fit softmax(W f + b) to fixed features and return its test accuracy.

    This is multinomial logistic regression with the default L2 penalty of scikit-learn,
    on features scaled to mean 0 and variance 1 over the examples it is fitted to.

    Args:
        features: [n, F] float.
        labels: [n] integer, of at least two classes.
        test_features: [N, F] float.
        test_labels: [N] integer.

    Returns:
        The share of the N test examples whose most probable class is their label.

    Raises:
        AssertionError: an array has the wrong rank, or there is not one label per row
            of features.
        ValueError: there is only one class.
    """
    # The imports take a second, which a run without labels should not pay.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, test_features = (
        np.asarray(x, np.float64) for x in (features, test_features)
    )
    chex.assert_rank([features, labels, test_features, test_labels], [2, 1, 2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    chex.assert_equal_shape_prefix([test_features, test_labels], 1)
    chex.assert_equal_shape_suffix([features, test_features], 1)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features, labels)
    predicted = model.predict(test_features)
    return float(np.mean(predicted == test_labels))
