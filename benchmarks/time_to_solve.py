"""Seconds of training until the greedy policy is good enough, seed by seed, beside other libraries.

    python benchmarks/time_to_solve.py                        # four environments, seeds 0 to 9
    python benchmarks/time_to_solve.py --envs CartPole-v1 --seeds 3 --seed-from 100
    python benchmarks/time_to_solve.py --peers PEERS/bin/python --peer-seeds 3 --write docs

Every seed counts. The clock runs from the first step to the end of the last update, and stands
while the policy is evaluated; imports, set-up and compilation are not on it. Every few thousand
steps the deterministic policy plays episodes not seen in training (`TASKS` in solving.py says what
is to be reached); the first evaluation that reaches it ends the seed. A seed that does not reach it
within the steps of its settings, or a peer within --peer-limit seconds, is not solved. For
HalfCheetah-v5 the figure is the seconds that all its steps take, and the return then is told.

Each seed is a process of its own, one after another. Results are kept as they come and not measured
again, unless the settings changed or with --again; `--seeds 0` only writes. PEERS is an environment
with requirements-peers.txt; what others are tuned to is `TUNED` in solving.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from pages import folder, machine, write_section
from solving import TASKS, TUNED, Trial
from solving_report import draw, section

import upslope as us
from upslope import recipes
from upslope.agents.evaluation import run_episodes
from upslope.recipes import Recipe
from upslope.seeding import derive32

HERE = Path(__file__).parent
OURS = "Upslope"

# By environment: what is set otherwise than in the recipe, and why. Tuned on seeds from 100 on.
FASTER: dict[str, dict[str, Any]] = {
    # The recipe is for steps; this is for seconds. Four times the environments make a rollout four
    # times as wide for little more time, and half the epochs are made up for by twice the step:
    # seeds 100 to 114 took 0.2 to 0.7 s of processor time, with the recipe 100 to 109 0.8 to 2.3.
    "CartPole-v1": {
        "total_timesteps": 100_000,
        "settings": {"n_envs": 32, "n_epochs": 10, "learning_rate": "linear(2e-3)"},
    },
    # With 4 epochs and the recipe's step of 1e-3 about one seed in ten stayed below 50 pipes; with
    # half the step, tanh and 6 epochs one of 36 did not reach 1,000. A horizon of 100 frames in
    # place of 200 and a step that falls sooner took 6 to 12 million frames with the eight that
    # were tried (200 to 207); a horizon of 50 missed one of six.
    "upslope/FlappyBird-v0": {
        "total_timesteps": 20_000_000,
        "settings": {
            "gamma": 0.99,
            "learning_rate": "linear(5e-4)",
            "policy_kwargs": {"activation": "tanh"},
        },
    },
}


def recipe_of(env: str) -> Recipe:
    """Return PPO's recipe for an environment, with what is set otherwise here."""
    recipe, other = recipes.find("ppo", env), FASTER.get(env, {})
    settings = recipe.settings | other.get("settings", {})
    return dataclasses.replace(recipe, **other | {"settings": settings})


def solve(env: str, seed: int, recipe: Recipe) -> dict[str, Any]:
    """Train one seed of Upslope; return the trial's result."""
    task = TASKS[env]
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    agent = us.PPO(env, env_kwargs=recipe.env_kwargs, **recipe.settings | {"seed": seed})
    agent.engine.claim_threads()

    def evaluate(steps: int) -> float:
        played = run_episodes(
            agent,
            env,
            task.episodes,
            seed=derive32(seed, "time to solve", steps),
            env_kwargs=recipe.env_kwargs | task.env_kwargs,
            backend=agent.stream.backend,
        )
        return task.figure(played.scores if task.score else played.returns)

    trial = Trial(task, evaluate, total=recipe.total_timesteps, limit=None)
    trial.start()
    agent.learn(recipe.total_timesteps, lambda agent, _: trial.after(agent.num_timesteps))
    return trial.result() | {"version": us.__version__}


def measured(library: str, env: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Train one seed of a library in a process of its own; return the trial's result."""
    if library == OURS:
        command = [sys.executable, __file__, "--child", env, "--seed-from", str(seed)]
    else:
        script = str(HERE / "solving_peers.py")
        command = [chosen.peers, script, library, env, str(seed), str(chosen.peer_limit)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def plan(chosen: argparse.Namespace) -> list[tuple[str, str, int, dict[str, Any]]]:
    """Return every library, environment, seed and settings to measure, a seed of each in turn."""
    found: list[tuple[str, str, int, dict[str, Any]]] = []
    for i in range(max(chosen.seeds, chosen.peer_seeds if chosen.peers else 0)):
        for env in chosen.envs:
            if i < chosen.seeds:
                found.append((OURS, env, chosen.seed_from + i, dataclasses.asdict(recipe_of(env))))
            for library in TUNED if chosen.peers and i < chosen.peer_seeds else ():
                if env in TUNED[library]:
                    settings = TUNED[library][env] | {"limit": chosen.peer_limit}
                    found.append((library, env, chosen.seed_from + i, settings))
    return found


def main() -> None:
    """Measure what is not measured yet; print, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--seed-from", type=int, default=0, help="the first of them")
    parser.add_argument("--peers", help="the Python of an environment with the other libraries")
    parser.add_argument("--peer-seeds", type=int, default=3, help="how many seeds of the others")
    parser.add_argument("--peer-limit", type=float, default=600, help="their seconds of training")
    parser.add_argument("--again", action="store_true", help="measure also what was measured")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "time_to_solve.json")
    parser.add_argument("--write", type=folder, help="a folder with speed.md and images/")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(solve(chosen.child, chosen.seed_from, recipe_of(chosen.child))))
        return
    kept = json.loads(chosen.results.read_text()) if chosen.results.exists() else {}
    for library, env, seed, settings in plan(chosen):
        settings = json.loads(json.dumps(settings))
        entry = kept.setdefault(env, {}).setdefault(library, {})
        if entry.get("settings") != settings:  # other settings, other results
            entry |= {"settings": settings, "seeds": {}}
        if str(seed) in entry["seeds"] and not chosen.again:
            continue
        result = measured(library, env, seed, chosen)
        entry["seeds"][str(seed)] = result
        entry["measured"] = f"{datetime.date.today()}, {machine()}"
        chosen.results.write_text(json.dumps(kept, indent=1) + "\n")
        verdict = "solved" if result["solved"] else "not solved"
        figure = result["evaluations"][-1]["figure"]
        print(
            f"{env} {library} seed {seed}: {verdict} in {result['seconds']:.2f} s of training "
            f"({result['cpu']:.2f} s of processor time), {result['steps']:,} steps, {figure:.1f}",
            flush=True,
        )
    text = section(kept)
    print(text)
    if chosen.write:
        write_section(chosen.write, "time_to_solve", text)
        draw(kept, chosen.write / "images" / "time_to_solve.png")


if __name__ == "__main__":
    main()
