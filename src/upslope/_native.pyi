"""The native part, built from src/native: a network over flat parameters, Adam, recurrent cells."""

from typing import Any

import numpy as np

Layer = tuple[int, int, int, int, int]
"""Inputs, outputs, activation (0 none, 1 tanh, 2 relu, 3 silu), and where weight and bias begin."""

class Descent:
    def __init__(
        self,
        learning_rate: float,
        step: int,
        max_norm: float,
        beta_1: float,
        beta_2: float,
        epsilon: float,
    ) -> None: ...

class Network:
    tiled: bool
    """Whether a layer fits tiles, for products in bfloat16."""

    def __init__(
        self,
        inputs: int,
        trunk: list[Layer],
        actor: list[Layer],
        critic: list[Layer],
        choices: list[int],
        log_std: int,
    ) -> None: ...
    def train(
        self,
        parameters: np.ndarray,
        gradient: np.ndarray,
        first_moment: np.ndarray,
        second_moment: np.ndarray,
        metrics: np.ndarray,
        observation: np.ndarray,
        choice: np.ndarray | None,
        action: np.ndarray | None,
        mask: np.ndarray | None,
        old_log_prob: np.ndarray,
        old_value: np.ndarray,
        advantage: np.ndarray,
        target: np.ndarray,
        index: np.ndarray,
        sizes: np.ndarray,
        clipped: bool,
        ratio: tuple[float, float, float],
        value_range: float,
        value_weight: float,
        entropy_weight: float,
        chunk_rows: np.ndarray | None,
        chunk_gradients: np.ndarray | None,
        descent: Descent,
        bfloat16: bool,
        threads: int,
    ) -> int: ...
    def train_action_values(
        self,
        parameters: np.ndarray,
        gradient: np.ndarray,
        first_moment: np.ndarray,
        second_moment: np.ndarray,
        metrics: np.ndarray,
        observation: np.ndarray,
        choice: np.ndarray,
        reward: np.ndarray,
        discount: np.ndarray,
        next_q: np.ndarray,
        next_observation: np.ndarray | None,
        next_legal: np.ndarray,
        index: np.ndarray,
        sizes: np.ndarray,
        huber: bool,
        descent: Descent,
        threads: int,
    ) -> int: ...
    def explore(
        self,
        parameters: np.ndarray,
        observation: np.ndarray,
        uniform: np.ndarray,
        mask: np.ndarray | None,
        epsilon: float,
        choice: np.ndarray,
        log_prob: np.ndarray,
        threads: int,
        same: bool = False,
    ) -> None: ...
    def action_values(
        self, parameters: np.ndarray, observation: np.ndarray, out: np.ndarray, threads: int
    ) -> None: ...
    def act(
        self,
        parameters: np.ndarray,
        observation: np.ndarray,
        uniform: np.ndarray | None,
        normal: np.ndarray | None,
        mask: np.ndarray | None,
        choice: np.ndarray | None,
        action: np.ndarray | None,
        log_prob: np.ndarray,
        threads: int,
        same: bool = False,
    ) -> None: ...
    def values(
        self, parameters: np.ndarray, observation: np.ndarray, value: np.ndarray, threads: int
    ) -> None: ...
    def begin_values(
        self,
        parameters: np.ndarray,
        observation: np.ndarray,
        value: np.ndarray,
        threads: int,
        same: bool = False,
    ) -> None: ...
    def finish(self) -> None: ...

def gae(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    advantage: np.ndarray,
    gamma: float,
    decay: float,
) -> None: ...
def group(rows: np.ndarray, n_envs: int, together: np.ndarray, sizes: np.ndarray) -> None: ...
def shuffle(valid: np.ndarray, seed: int, rows: np.ndarray) -> int: ...
def squares(vectors: np.ndarray, sizes: np.ndarray) -> list[float]: ...
def variances(x: np.ndarray, y: np.ndarray, valid: np.ndarray) -> tuple[float, float]: ...
def standardize(
    advantage: np.ndarray,
    index: np.ndarray,
    sizes: np.ndarray,
    epsilon: float,
    out: np.ndarray,
) -> None: ...
def lstm_forward(
    counts: list[int],
    threads: int,
    projected: np.ndarray,
    weight: np.ndarray,
    start: np.ndarray,
    hidden: np.ndarray,
    gates: np.ndarray,
    cells: np.ndarray,
) -> None: ...
def lstm_backward(
    counts: list[int],
    threads: int,
    d_hidden: np.ndarray,
    weight: np.ndarray,
    start: np.ndarray,
    hidden: np.ndarray,
    gates: np.ndarray,
    cells: np.ndarray,
    d_gates: np.ndarray,
    before: np.ndarray,
) -> None: ...
def gru_forward(
    counts: list[int],
    threads: int,
    projected: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    start: np.ndarray,
    hidden: np.ndarray,
    gates: np.ndarray,
    inner: np.ndarray,
) -> None: ...
def gru_backward(
    counts: list[int],
    threads: int,
    d_hidden: np.ndarray,
    weight: np.ndarray,
    start: np.ndarray,
    hidden: np.ndarray,
    gates: np.ndarray,
    inner: np.ndarray,
    d_gates: np.ndarray,
    d_products: np.ndarray,
    before: np.ndarray,
) -> None: ...

class PackedLinear:
    outputs: int
    def __init__(self, weight: np.ndarray, bias: np.ndarray | None) -> None: ...
    def apply(self, x: np.ndarray, out: np.ndarray, threads: int) -> None: ...

def attend(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    seen: np.ndarray | None,
    out: np.ndarray,
    scale: float,
    threads: int,
) -> None: ...
def inside(x: np.ndarray, n: int, low: np.ndarray, high: np.ndarray) -> bool: ...
def take_signals(
    reward: object,
    terminated: object,
    truncated: object,
    counted: np.ndarray,
    own_reward: np.ndarray,
    own_terminated: np.ndarray,
    own_truncated: np.ndarray,
    own_ended: np.ndarray,
) -> int: ...
def place(
    rows: np.ndarray,
    parts: list[Any],
    first: np.ndarray,
    firsts: list[Any],
    second: np.ndarray,
    seconds: list[Any],
) -> bool: ...
def clip(x: object, low: object, high: object, out: object) -> bool: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def bfloat16() -> str:
    """How products in bfloat16 are taken: "AMX", "AVX-512", or "" where they are not."""
