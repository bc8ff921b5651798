"""Action-values kept one by one: q(s, a) in a table, a row for every cell of a grid."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError, check_range
from upslope.policies.action_values import ActionValues, refuse_others
from upslope.policies.grid import Grid

MOST_VALUES = 2**27
"""How many action-values a table may hold: half a gigabyte of them."""

LARGEST = float(torch.finfo(torch.float32).max)


class ActionTable(nn.Module):
    """The mean of `tables` tables over the rows of `grid`: observations [B, ...] -> q [B, A].

    Raises ArgumentError for a table of more than 2^27 values.
    """

    def __init__(self, grid: Grid, actions: int, *, tables: int = 1, initial: float = 0.0) -> None:
        super().__init__()
        values = tables * grid.size * actions
        if values > MOST_VALUES:
            raise ArgumentError(
                f"a table of {tables} x {grid.size:,} states x {actions} actions is too large: it "
                f"takes at most {MOST_VALUES:,} values; give fewer bins, or take us.DQN"
            )
        check_range("initial_value", initial, -LARGEST, LARGEST)
        self.grid = grid
        start = torch.full((tables, grid.size, actions), float(initial))
        self.values = nn.Parameter(start, requires_grad=False)

    def forward(self, observation: Tensor) -> Tensor:
        """Return q(s, a), [B, A]."""
        row = self.grid(observation)
        if len(self.values) == 1:
            return self.values[0].index_select(0, row)
        return self.values[:, row].mean(0)

    def of(self, table: Tensor, row: Tensor) -> Tensor:
        """Return the values in row `row` [B] of table number `table` [B], [B, A]."""
        _, rows, actions = self.values.shape
        return self.values.view(-1, actions).index_select(0, table * rows + row)


def make_action_table(
    name: str,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    *,
    tables: int,
    initial: float,
    **grid: Any,
) -> ActionValues:
    """Return a policy of tables; `grid` is what a `Grid` takes.

    `name` is the agent's, for errors. Raises ArgumentError for what it cannot take.
    """
    refuse_others(name, action_space)
    actions = int(action_space.n)  # type: ignore[attr-defined]
    table = ActionTable(Grid(observation_space, **grid), actions, tables=tables, initial=initial)
    return ActionValues(table, action_space)
