"""The reference that `--model lr` is held against: scikit-learn's logistic regression on the same split.

`python -m tablebay.examples.flights.reference` prints its figures. It needs scikit-learn; Tablebay does not.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tablebay.examples.flights import data, model

# The regularisation and iterations of the reference figure, AUC 0.784 and logloss 0.443 (docs/flights.md).
C = 0.3
ITERATIONS = 100


def logistic_regression(training: data.Examples, test: data.Examples, c: float = C) -> model.Floats:
    """Log-odds of the test examples by LogisticRegression(C=c, lbfgs) on one-hot columns: float32 (n,)."""
    from scipy.sparse import csr_matrix  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-not-found,import-untyped,unused-ignore]

    keys = np.unique(np.concatenate((training.keys, test.keys)))

    def one_hot(examples: data.Examples) -> Any:
        ones = np.ones(examples.keys.size)
        columns = np.searchsorted(keys, examples.keys).reshape(-1)
        starts = np.arange(0, examples.keys.size + 1, len(data.FIELDS))
        return csr_matrix((ones, columns, starts), shape=(len(examples), len(keys)))

    fitted = LogisticRegression(C=c, solver="lbfgs", max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(one_hot(training), training.labels)
    scores: model.Floats = fitted.decision_function(one_hot(test)).astype(np.float32)
    return scores


def main() -> None:
    """Print AUC and logloss at the reference's C and at scikit-learn's default."""
    training, test = data.split(data.load(), "random")
    for c in (C, 1.0):
        scores = logistic_regression(training, test, c)
        auc, logloss = model.auc(scores, test.labels), model.logloss(scores, test.labels)
        print(f"scikit-learn LogisticRegression(C={c}): AUC {auc:.5f}, logloss {logloss:.5f}")


if __name__ == "__main__":
    main()
