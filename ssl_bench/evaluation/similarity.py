"""How alike two representations of the same images are."""

from __future__ import annotations

from torch import Tensor

from ssl_bench.errors import require

_FEWEST = 4


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features, without the bias of few images.

    Kornblith et al., *Similarity of Neural Network Representations Revisited*, ICML 2019,
    arXiv:1905.00414, equation 1, for linear kernels, with the unbiased estimator of the
    Hilbert-Schmidt independence criterion in place of the biased one: Song et al., *Feature
    Selection via Dependence Maximization*, JMLR 2012, equation 5; Nguyen et al., arXiv:2010.15327,
    equation 3. It does not change with a rotation, a shift or a common scale of either side. Each
    takes ``N * N`` numbers in float64.

    Args:
        x_ND: features of any width and floating type, on any device.
        y_NE: features of the same images in the same order, on the same device.

    Returns:
        1 for features that are equal up to these, near 0 for unrelated ones, which may fall
        below it by chance; 0 where one side is the same for all images; NaN where features are
        no numbers.

    Raises:
        UserError: there are fewer than four images, or not as many on both sides.
    """
    require(
        len(x_ND) == len(y_NE) >= _FEWEST,
        f"similarity of features of {len(x_ND)} and of {len(y_NE)} images; "
        f"the same {_FEWEST} or more would work",
    )
    x_NN, y_NN = _centred_gram(x_ND), _centred_gram(y_NE)
    shared = (x_NN * y_NN).sum()
    scale = x_NN.norm() * y_NN.norm()
    return 0.0 if scale == 0 else (shared / scale).item()


def _centred_gram(x_ND: Tensor) -> Tensor:
    """Products of all pairs of images, so centred that the mean of their products is unbiased.

    The sum of two such matrices' products is ``N * (N - 3)`` times the estimate: the U-centring of
    Székely and Rizzo, arXiv:1310.2926, definition 2.
    """
    x_ND = x_ND.double()
    # The result is blind to a shift; the first image is exact where all are the same.
    x_ND = x_ND - x_ND[0]
    x_ND = x_ND - x_ND.mean(dim=0)
    count = len(x_ND)
    gram_NN = (x_ND @ x_ND.T).fill_diagonal_(0)
    mean_N = gram_NN.sum(dim=0) / (count - 2)
    overall = gram_NN.sum() / ((count - 1) * (count - 2))
    return (gram_NN - mean_N[:, None] - mean_N + overall).fill_diagonal_(0)
