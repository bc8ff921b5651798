"""Without the optional packages everything else works, and a trainer says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.language import cases
from upslope.errors import ArgumentError, RunError
from upslope.language.requirements import need


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for make in (cases.dpo, cases.grpo):
        with pytest.raises(RunError, match=r"package 'transformers': pip install 'upslope\[langu"):
            make(model=object(), tokenizer=object(), train_dataset=[])


def test_what_an_installed_package_lacks_is_not_called_missing():
    with pytest.raises(ModuleNotFoundError, match=r"json\.nowhere"):
        need("json.nowhere.else")


@pytest.mark.slow
def test_neither_the_package_nor_the_agents_need_them():
    code = (
        "import sys\n"
        "for name in ('transformers', 'peft', 'datasets', 'tokenizers'): sys.modules[name] = None\n"
        "import upslope as us\n"
        "us.PPO, us.DPO, us.GRPO, us.losses.grpo_loss\n"
        "print('ok')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "ok\n", run.stderr


def test_an_adapter_outside_the_layers_is_refused():
    from peft import PromptTuningConfig

    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ArgumentError, match="got PromptTuningConfig"):
        cases.dpo(peft_config=prompt)
