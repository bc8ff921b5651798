"""The yardstick: PPO on CartPole as a plain PyTorch loop, with nothing around it.

    python benchmarks/plain_loop.py ENVS STEPS MINIBATCH      prints "sps NUMBER cpu NUMBER"

No seeds, no records, no checks, a time limit treated as death: what a person writes to see how fast
it could go. Physics in NumPy, two 64-64 tanh networks, four epochs, fused Adam.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torch import nn

ITERATIONS, WARM_UP, EPOCHS = 20, 2, 4


class CartPoles:
    """N cart-poles stepped together (Barto, Sutton and Anderson 1983; Gymnasium's constants)."""

    def __init__(self, n: int) -> None:
        self.rng = np.random.default_rng(0)
        self.state = self.rng.uniform(-0.05, 0.05, (n, 4)).astype(np.float32)
        self.age = np.zeros(n, np.int64)

    def step(self, action: np.ndarray) -> np.ndarray:
        """Advance one step; returns where an episode ended."""
        x, x_dot, theta, theta_dot = self.state.T
        force = (20.0 * action - 10.0).astype(np.float32)
        cos, sin = np.cos(theta), np.sin(theta)
        push = (force + 0.05 * theta_dot**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        slide = push - 0.05 * turn * cos / 1.1
        new = (x + 0.02 * x_dot, x_dot + 0.02 * slide, theta + 0.02 * theta_dot)
        self.state = np.stack([*new, theta_dot + 0.02 * turn], axis=1).astype(np.float32)
        self.age += 1
        fallen = (np.abs(self.state[:, 0]) > 2.4) | (np.abs(self.state[:, 2]) > 0.2095)
        ended = fallen | (self.age >= 500)
        count = int(ended.sum())
        if count:
            self.state[ended] = self.rng.uniform(-0.05, 0.05, (count, 4))
            self.age[ended] = 0
        return ended


def network(outputs: int) -> nn.Sequential:
    """Return a 64-64 tanh perceptron over the four numbers of a cart-pole."""
    hidden = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def main(n_envs: int, n_steps: int, minibatch: int) -> tuple[float, float]:
    """Train and return environment steps per second and per second of processor time."""
    actor, critic, poles = network(2), network(1), CartPoles(n_envs)
    parameters = [*actor.parameters(), *critic.parameters()]
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    seen = torch.zeros(n_steps + 1, n_envs, 4)
    actions = torch.zeros(n_steps, n_envs, dtype=torch.long)
    log_probs, done = torch.zeros(n_steps, n_envs), torch.zeros(n_steps, n_envs)
    began = spent = 0.0
    for iteration in range(ITERATIONS):
        if iteration == WARM_UP:
            began, spent = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for t in range(n_steps):
                seen[t] = torch.from_numpy(poles.state)
                log_pi = actor(seen[t]).log_softmax(-1)
                action = (log_pi.exp() / torch.empty_like(log_pi).exponential_()).argmax(-1)
                actions[t] = action
                log_probs[t] = log_pi.gather(-1, action[:, None])[:, 0]
                done[t] = torch.from_numpy(poles.step(action.numpy()))
            seen[n_steps] = torch.from_numpy(poles.state)
            values = critic(seen)[..., 0]
            advantage, running = torch.zeros(n_steps, n_envs), torch.zeros(n_envs)
            for t in reversed(range(n_steps)):
                alive = 1 - done[t]
                delta = 1 + 0.99 * values[t + 1] * alive - values[t]
                running = delta + 0.99 * 0.95 * alive * running
                advantage[t] = running
        target = (advantage + values[:-1]).clone().flatten()
        rows = [field.clone().flatten(0, 1) for field in (seen[:-1], actions, log_probs)]
        weight = advantage.clone().flatten()
        weight = (weight - weight.mean()) / (weight.std() + 1e-8)
        for _ in range(EPOCHS):
            for index in torch.randperm(n_envs * n_steps).split(minibatch):
                observation, action, old = (field[index] for field in rows)
                log_pi = actor(observation).log_softmax(-1)
                ratio = (log_pi.gather(-1, action[:, None])[:, 0] - old).exp()
                gain = torch.min(ratio * weight[index], ratio.clamp(0.8, 1.2) * weight[index])
                entropy = -(log_pi.exp() * log_pi).sum(-1).mean()
                error = ((critic(observation)[:, 0] - target[index]) ** 2).mean()
                loss = -gain.mean() + 0.5 * error - 0.01 * entropy
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                adam.step()
    steps = (ITERATIONS - WARM_UP) * n_envs * n_steps
    return steps / (time.perf_counter() - began), steps / (time.process_time() - spent)


if __name__ == "__main__":
    print("sps {} cpu {}".format(*main(*map(int, sys.argv[1:4]))))
