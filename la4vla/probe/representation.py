"""What enters the action head, without vision: the same states, each told all six directions (FACTS 1.6, Figure 5).

A representation is the mean of the context over its valid tokens and the state token. Two silhouettes, after PCA and
before t-SNE, tell whether direction or state orders the representations; t-SNE is only drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from la4vla.construct.vocabulary import DIRECTIONS, phrase
from la4vla.probe.metrics import distances, silhouette
from la4vla.probe_cases.cases import Case, CaseClips
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import TRANSLATION, Observation

STATES = 200
PERPLEXITY = 30.0
COMPONENTS = 50
"""FACTS 1.6: all three are lost in the paper; perplexity as in GPLA."""

BATCH = 64
WORDS = tuple(word for pair in DIRECTIONS for word in pair)


@dataclass(frozen=True)
class Representation:
    """Points of the representation, M of them: every state with every word.

    direction_M    number in WORDS
    state_M        number of the state
    position_M3    of the hand: those of x, y and z of the base frame that the state has
    map_M2         t-SNE
    by_direction   silhouette of the directions, -1 .. 1
    by_state       silhouette of the states, -1 .. 1
    explained      share of the variance that PCA kept
    perplexity     of t-SNE: PERPLEXITY, or less where there are too few points for it
    """

    direction_M: np.ndarray
    state_M: np.ndarray
    position_M3: np.ndarray
    map_M2: np.ndarray
    by_direction: float
    by_state: float
    explained: float
    perplexity: float


def represent(policy: ServedPolicy, states: Sequence[np.ndarray], seed: int) -> Representation:
    """The representation of all states, each told all directions. states: float32 [S], at least two different ones.
    seed: of t-SNE, which starts from PCA. Needs scikit-learn."""
    assert len(states) > 1
    vectors_ME = vectors(policy.as_kind("la"), states)
    state_M = np.repeat(np.arange(len(states)), len(WORDS))
    direction_M = np.tile(np.arange(len(WORDS)), len(states))
    reduced_MP, map_M2, explained, perplexity = _reduced(vectors_ME, seed)
    distance_MM, once = distances(reduced_MP), np.ones((1, len(state_M)))
    place = policy.embodiment.state.dims(*TRANSLATION)
    return Representation(
        direction_M,
        state_M,
        np.array(states)[:, place][state_M],
        map_M2,
        float(silhouette(distance_MM, direction_M, once)[0]),
        float(silhouette(distance_MM, state_M, once)[0]),
        explained,
        perplexity,
    )


def distinct_states(cases: Sequence[Case], case_clips: CaseClips) -> list[np.ndarray]:
    """float32 [S] each, in an order that takes the directions in turn."""
    by_direction: dict[str, list[Case]] = {}
    for case in cases:
        by_direction.setdefault(case.direction, []).append(case)
    longest = max(map(len, by_direction.values()), default=0)
    in_turn = [group[n] for n in range(longest) for group in by_direction.values() if n < len(group)]
    states = [case_clips.clips[case.clip].state[case.frame] for case in in_turn]
    return list({state.tobytes(): state for state in states}.values())


def vectors(policy: ServedPolicy, states: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [M, E]: state by state, the words in order."""
    observations = [
        Observation({}, state, phrase("move", 0.0, grip="", way=word)) for state in states for word in WORDS
    ]
    rows = []
    for first in range(0, len(observations), BATCH):
        part = observations[first : first + BATCH]
        with torch.inference_mode():
            rows.append(_pooled(policy, part))
    return np.concatenate(rows)


def _pooled(policy: ServedPolicy, observations: Sequence[Observation]) -> np.ndarray:
    """The noise key is arbitrary, since noise is no part of the context."""
    batch = policy.batch(observations, [NoiseKey(0, "representation", 0, 0)] * len(observations))
    source_BLE, mask_BL = policy.policy.context(batch)
    valid_BL1 = mask_BL[..., None].to(source_BLE.dtype)
    return ((source_BLE * valid_BL1).sum(dim=1) / valid_BL1.sum(dim=1)).float().cpu().numpy()


def _reduced(vectors_ME: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(PCA coordinates, t-SNE of them, share of the variance that PCA kept, perplexity)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    parts = min(COMPONENTS, *vectors_ME.shape)
    pca = PCA(parts, svd_solver="full")
    reduced_MP = pca.fit_transform(vectors_ME.astype(np.float64))
    perplexity = min(PERPLEXITY, (len(vectors_ME) - 1) / 3)  # sklearn's bound: fewer points than this have no 30
    map_M2 = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced_MP)
    return reduced_MP, map_M2, float(pca.explained_variance_ratio_.sum()), perplexity
