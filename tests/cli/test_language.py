"""`upslope dpo` and `upslope grpo`: from a file to a model that transformers loads."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.language import cases, tiny
from upslope.cli import main as cli
from upslope.runs.toml import dumps

REWARDS = [{"name": "length_penalty", "per_token": 0.1, "weight": 2.0}]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.llama().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cases.SUMS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: Path, **more: object) -> None:
    training = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    base = {"model": "model", "train_dataset": "rows.jsonl", "training": training}
    (place / "config.toml").write_text(dumps({**base, **more}))


def code_of(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return ended.value.code


@pytest.mark.slow
def test_dpo_trains_and_overrides_win(place, capsys):
    write(place, eval_dataset="rows.jsonl", lora={"r": 2, "target_modules": ["q_proj"]})
    assert code_of("dpo", "config.toml", "--max-steps", "3", "--beta=0.3") == 0
    assert "trained for 3 steps; the model is in runs/config/last" in capsys.readouterr().out
    kept = tomllib.loads((place / "runs" / "config" / "config.toml").read_text())
    assert kept["training"]["max_steps"] == 3
    assert kept["training"]["beta"] == 0.3
    assert kept["lora"]["r"] == 2
    assert (place / "runs" / "config" / "last" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_adapter_of_a_run_is_trained_further(place, capsys):
    write(place, lora={"r": 2, "target_modules": ["q_proj"]})
    assert code_of("dpo", "config.toml", "--output-dir", "first", "--quiet") == 0
    write(place, model="first/last", reference_model="model")
    assert code_of("dpo", "config.toml", "--output-dir", "second", "--quiet") == 0
    assert (place / "second" / "last" / "adapter_model.safetensors").exists()
    write(place, model="first/last", lora={"r": 2})
    assert code_of("dpo", "config.toml", "--output-dir", "third") == 2
    assert "the model has an adapter already" in capsys.readouterr().err


def test_grpo_trains_and_resumes_by_its_own_configuration(place):
    write(place, rewards=REWARDS, metrics=[{"name": "regex_format", "pattern": "[0-9]+"}])
    options = ("--max-completion-length", "5", "--output-dir", "out", "--quiet")
    assert code_of("grpo", "config.toml", *options, "--max-steps", "2") == 0
    assert code_of("grpo", "out/config.toml", "--resume", "--max-steps", "4") == 0
    rows = [json.loads(line) for line in (place / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["reward"] == pytest.approx(2 * rows[0]["reward/length_penalty"])
    assert "metric/regex_format" in rows[0]
    AutoModelForCausalLM.from_pretrained(place / "out" / "last")


def test_what_is_refused_at_resume_leaves_the_configuration(place, capsys):
    write(place)
    assert code_of("dpo", "config.toml", "--output-dir", "out", "--quiet") == 0
    kept = (place / "out" / "config.toml").read_bytes()
    words = ("dpo", "config.toml", "--output-dir", "out", "--resume", "--quiet")
    assert code_of(*words, "--learning-rate", "0.5", "--max-steps", "9") == 1
    assert "config.learning_rate" in capsys.readouterr().err
    assert (place / "out" / "config.toml").read_bytes() == kept
    assert code_of(*words, "--max-steps", "5") == 0
    found = tomllib.loads((place / "out" / "config.toml").read_text())
    assert found["training"]["max_steps"] == 5


def test_decays_may_be_whole_numbers(place):
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "adam_beta1": 0, "adam_beta2": 0}
    write(place, training=training)
    assert code_of("dpo", "config.toml", "--quiet") == 0


def test_a_module_is_imported_only_when_that_is_allowed(place, capsys):
    (place / "my_judge.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\n"
        "def judge(completions):\n    return [0.0] * len(completions)\n"
    )
    write(place, rewards=[{"name": "my_judge:judge"}])
    options = ("grpo", "config.toml", "--max-steps", "1", "--max-completion-length", "5")
    assert code_of(*options) == 2
    assert "has the module 'my_judge' imported: --allow-import" in capsys.readouterr().err
    assert not (place / "ran").exists()
    assert code_of(*options, "--allow-import") == 0
    assert (place / "ran").exists()
    sys.modules.pop("my_judge")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rewards": []}, "says no [[rewards]]: shipped are exact_match"),
        ({"rewards": [{"weight": 1.0}]}, "[[rewards]] takes tables with a name"),
        ({"rewards": [{"name": "exact_mtch"}]}, "did you mean 'exact_match'"),
        ({"rewards": REWARDS, "modle": "x"}, "'modle', which there is not (did you mean 'model'"),
        ({"rewards": REWARDS, "resume": True}, "'resume', which is for the command line: --resume"),
        ({"rewards": REWARDS, "training": {"beeta": 1}}, "no 'beeta' in grpo (did you mean 'beta'"),
        ({"rewards": REWARDS, "train_dataset": "no.jsonl"}, "no.jsonl cannot be read"),
        ({"rewards": REWARDS, "model": ""}, "says no model"),
        ({"rewards": REWARDS, "lora": {"rank": 3}}, "[lora]: "),
        ({"rewards": REWARDS, "lora": {"target_modules": ["q"]}}, "Target modules {'q'} not found"),
        ({"rewards": REWARDS, "lora": {"r": 0}}, "peft_config does not fit the model: `r` should"),
        ({"rewards": REWARDS, "lora": {"r": "16"}}, "peft_config does not fit the model: "),
        ({"rewards": REWARDS, "device": "gpu"}, "device='gpu' is none: "),
        ({"rewards": [REWARDS[0] | {"weight": "high"}]}, "reward_weights takes finite numbers"),
        ({"rewards": [REWARDS[0] | {"weight": [1]}]}, "reward_weights takes finite numbers"),
        ({"rewards": [REWARDS[0] | {"weight": float("nan")}]}, "reward_weights takes finite numb"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(place, capsys, more, said):
    write(place, **more)
    assert code_of("grpo", "config.toml") == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("upslope: ")
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("broken", {}, "reward 'broken:judge' cannot be made: ZeroDivisionError: division by zero"),
        ("made", {"wrong": 3}, "reward 'made:judge' cannot be made: TypeError: judge() got an"),
        ("no_such", {}, "reward 'no_such:judge' cannot be made: ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_a_reward_of_ones_own_is_said(place, capsys, name, settings, said):
    (place / "broken.py").write_text("1 / 0\n")
    (place / "made.py").write_text("def judge(right):\n    return lambda completions: []\n")
    write(place, rewards=[{"name": f"{name}:judge", **settings}])
    assert code_of("grpo", "config.toml", "--allow-import") == 2
    assert said in capsys.readouterr().err
    sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_folder_that_is_damaged_is_named(place, capsys, file):
    damaged = {
        "model.safetensors": (place / "model" / "model.safetensors").read_bytes()[:-100],
        "tokenizer.json": b'{"version": "1.0"}',
        "config.json": (place / "model" / "config.json").read_bytes().replace(b"16", b"32"),
    }
    (place / "model" / file).write_bytes(damaged[file])
    write(place)
    assert code_of("dpo", "config.toml") == 2
    err = capsys.readouterr().err
    assert f"upslope: {'tokenizer' if file.startswith('t') else 'model'} 'model' cannot be" in err


def test_a_file_that_is_none(place, capsys):
    (place / "bad.toml").write_text("model = ")
    for name, said in (("none.toml", "cannot be read"), ("bad.toml", "is not TOML")):
        assert code_of("dpo", name) == 2
        assert said in capsys.readouterr().err
    assert code_of("dpo") == 2
