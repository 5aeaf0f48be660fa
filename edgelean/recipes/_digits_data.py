"""The handwritten digits that scikit-learn carries, in one fixed split."""

from __future__ import annotations

import torch
from torch import Tensor

VALIDATION, TEST = 297, 500


def digits_split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return train, validation and test digits: images ``[n, 8, 8]`` in 0..1 and labels ``[n]``.

    The split is stratified and always the same, whatever the seed of a run.

    References
    ----------
    E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x, y = (digits.images / 16.0).astype("float32"), digits.target.astype("int64")
    rest_x, test_x, rest_y, test_y = train_test_split(x, y, test_size=TEST, stratify=y, random_state=0)
    train_x, val_x, train_y, val_y = train_test_split(
        rest_x, rest_y, test_size=VALIDATION, stratify=rest_y, random_state=0
    )
    parts = ((train_x, train_y), (val_x, val_y), (test_x, test_y))
    train, validation, test = ((torch.from_numpy(a), torch.from_numpy(b)) for a, b in parts)
    return train, validation, test
