"""The score of an item, the sum of four terms."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Vectors = npt.NDArray[np.float32]
TERMS = ("alpha", "beta", "gamma", "delta")


class ScoreWeights(BaseModel):
    """`s_i = alpha <h, e_i> + beta log softmax(u)[label(i)] + gamma <history, e_i> + delta prior_i`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    alpha: float = Field(ge=0)
    beta: float = Field(ge=0)
    gamma: float = Field(ge=0)
    delta: float = Field(ge=0)
    history_decay: float = Field(gt=0, le=1)

    def terms(self) -> npt.NDArray[np.float32]:
        """The four weights in the order of `TERMS`, float32 [4]."""
        return np.array([self.alpha, self.beta, self.gamma, self.delta], dtype=np.float32)


ZERO_SHOT = ScoreWeights(alpha=1, beta=0, gamma=0, delta=0, history_decay=1)


class CatalogueSide:
    """What the score needs of the catalogue: `vectors` [N, H], `label_ids` [N] and `priors` [N], in row order.

    `history_vectors` [N, D] are those that the history term multiplies: the item vectors, unless others are given.
    """

    def __init__(
        self,
        vectors: Vectors,
        label_ids: Sequence[int] | npt.NDArray[np.int64],
        priors: Sequence[float] | Vectors,
        history_vectors: Vectors | None = None,
    ) -> None:
        """Keep the catalogue's side of the score."""
        self.vectors = vectors
        self.label_ids = np.asarray(label_ids, dtype=np.int64)
        self.priors = np.asarray(priors, dtype=np.float32)
        self.history_vectors = vectors if history_vectors is None else history_vectors

    def __len__(self) -> int:
        """The number of items N."""
        return len(self.vectors)

    def at(self, priors: Vectors, history_vectors: Vectors | None) -> "CatalogueSide":
        """The same items with what was known of them at another time."""
        return CatalogueSide(self.vectors, self.label_ids, priors, history_vectors)

    def history_vector(self, rows: Sequence[int], decay: float) -> Vectors:
        """The mean of the history vectors at `rows`, newest first, weighted by `decay**j`; zero for no rows. [D]."""
        if not len(rows):
            return np.zeros(self.history_vectors.shape[1], dtype=np.float32)
        weights = decay ** np.arange(len(rows), dtype=np.float32)
        mean: Vectors = (weights @ self.history_vectors[list(rows)] / weights.sum()).astype(np.float32)
        return mean

    def features(self, h: Vectors, log_probabilities: Vectors, history: Vectors) -> Vectors:
        """The four unweighted terms, float32 [4, B, N], of `h` [B, H], `log_probabilities` [B, K], `history` [B, D]."""
        priors = np.broadcast_to(self.priors, (len(h), len(self)))
        terms = [
            h @ self.vectors.T,
            log_probabilities[:, self.label_ids],
            history @ self.history_vectors.T,
            priors,
        ]
        return np.stack(terms)


def log_softmax(u: Vectors) -> Vectors:
    """`log softmax(u)` over the last axis, safe for large logits."""
    shifted = u - u.max(axis=-1, keepdims=True)
    logs: Vectors = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
