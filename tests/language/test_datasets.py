"""Rows to token ids: every form, and rows that cannot be used named by their number."""

from __future__ import annotations

import json

import datasets
import pytest

from tests.language import tiny
from upslope.errors import ArgumentError
from upslope.language.datasets import (
    Order,
    preferences_of,
    prompts_of,
    rows_of,
    without_common_start,
)

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}={{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a={% endif %}"
)
GOOD = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}


def text(ids: list[int]) -> str:
    return tiny.tokenizer().decode(ids)


def chat():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_standard_row():
    (row,) = preferences_of([GOOD], tiny.tokenizer())
    assert (text(row.prompt), text(row.chosen), text(row.rejected)) == ("1+1=", "2<eos>", "3<eos>")


def test_the_end_token_is_not_doubled():
    (row,) = preferences_of([GOOD | {"chosen": "2<eos>"}], tiny.tokenizer())
    assert text(row.chosen) == "2<eos>"


def test_a_conversation_goes_through_the_template():
    row = {
        "prompt": [{"role": "ab", "content": "1+1"}],
        "chosen": [{"role": "a", "content": "2"}],
        "rejected": [{"role": "a", "content": "3"}],
    }
    (found,) = preferences_of([row], chat())
    assert text(found.prompt) == "a=1+1<eos>a="
    assert (text(found.chosen), text(found.rejected)) == ("2<eos>", "3<eos>")
    (prompt,) = prompts_of([row], chat())
    assert prompt.ids == found.prompt


def test_an_implicit_prompt_is_what_both_begin_with():
    assert without_common_start("1 + 1 = 21", "1 + 1 = 23") == ("1 + 1 =", " 21", " 23")
    assert without_common_start("ab", "ac") == ("a", "b", "c")
    (row,) = preferences_of([{"chosen": "1+1= 2", "rejected": "1+1= 3"}], tiny.tokenizer())
    assert (text(row.prompt), text(row.chosen)) == ("1+1=", " 2<eos>")
    begun = [{"role": "b", "content": "1"}]
    turns = [[*begun, {"role": "a", "content": c}] for c in "23"]
    (row,) = preferences_of([{"chosen": turns[0], "rejected": turns[1]}], chat())
    assert (text(row.prompt), text(row.chosen)) == ("b=1<eos>a=", "2<eos>")


def test_every_source_gives_the_same_rows(tmp_path):
    rows = [GOOD, GOOD | {"prompt": "2+2="}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    sources = (rows, path, str(path), datasets.Dataset.from_list(rows))
    found = [preferences_of(source, tiny.tokenizer()) for source in sources]
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1+1=", "chosen": "2"}, "row 1: it has no 'rejected'"),
        ({"prompt": "1+1=", "chosen": "2", "rejected": None}, "row 1: it has no 'rejected'"),
        ({"prompt": "", "chosen": "2", "rejected": "3"}, "row 1: its prompt is empty"),
        ({"prompt": "1=", "chosen": "", "rejected": "3"}, "row 1: its 'chosen' is empty"),
        ({"prompt": "1=", "chosen": "2", "rejected": "2"}, "row 1: chosen and rejected are the"),
        (GOOD, "row 1: it is a duplicate of row 0"),
        ({"prompt": "1" * 20, "chosen": "2", "rejected": "3"}, "row 1: its prompt has 20 tokens"),
        ({"prompt": [], "chosen": "2", "rejected": "3"}, "row 1: its prompt is empty"),
        (
            {"prompt": [{"role": "u", "content": "1"}], "chosen": [], "rejected": []},
            "row 1: its 'chosen' is empty",
        ),
        ("1+1=2", "row 1: it is no dictionary but str"),
        (GOOD | {"chosen": 4}, "row 1: its 'chosen' takes text or a list of messages, got 4"),
        (GOOD | {"prompt": 22}, "row 1: its 'prompt' takes text or a list of messages, got 22"),
        (GOOD | {"prompt": True}, "row 1: its 'prompt' takes text or a list of messages"),
        (GOOD | {"rejected": ["3"]}, r"row 1: its 'rejected' takes .* got \['3'\]"),
        (GOOD | {"chosen": {"role": "a", "content": "2"}}, "row 1: its 'chosen' takes text or a"),
        (GOOD | {"chosen": [{"role": "a", "content": "2"}]}, "row 1: it holds text and messages"),
        (GOOD | {"prompt": [{"role": "u", "content": "1"}]}, "row 1: it holds text and messages"),
        (GOOD | {"prompt": [{"role": "u"}]}, "row 1: its 'prompt' has no role or content in {"),
        (GOOD | {"prompt": [{"content": "1"}]}, "row 1: its 'prompt' has no role or content in {"),
        (GOOD | {"chosen": "\ud83d"}, "row 1: it holds what is no character of Unicode"),
        (GOOD | {"prompt": "\ud83d"}, "row 1: it holds what is no character of Unicode"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, said):
    with pytest.raises(ArgumentError, match=said):
        preferences_of([GOOD, row], tiny.tokenizer(), 20)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('roles alternate') }}", "{{ messages[3].content.x }}"]
)
def test_a_template_that_refuses_messages_is_named_with_the_row(template):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ArgumentError, match="row 0: the chat template does not take its messages"):
        prompts_of([{"prompt": [{"role": "user", "content": "1"}]}], tokenizer)


def test_all_wrong_rows_are_counted_and_the_first_named():
    with pytest.raises(ArgumentError, match=r"row 1: .*; row 5: .*; and 4 more") as error:
        prompts_of([{"prompt": "1"}] + [{"prompt": ""}] * 9, tiny.tokenizer())
    assert "row 6" not in str(error.value)


def test_messages_without_a_template_are_refused():
    with pytest.raises(ArgumentError, match="row 0: it holds messages, and the tokenizer has no"):
        prompts_of([{"prompt": [{"role": "user", "content": "1"}]}], tiny.tokenizer())


def test_a_long_completion_is_cut_and_a_long_prompt_refused():
    row = {"prompt": "1+1=", "chosen": "2" * 30, "rejected": "3"}
    (found,) = preferences_of([row], tiny.tokenizer(), 20)
    assert (len(found.prompt), len(found.chosen), len(found.rejected)) == (4, 16, 2)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([], "train_dataset has no rows"),
        ({"train": [GOOD]}, "takes one data set, got a dictionary of train"),
        (3, "takes a datasets.Dataset, a path to JSON lines, or a list"),
        ("nowhere.jsonl", "nowhere.jsonl cannot be read: No such file"),
        (datasets.Dataset.from_list([GOOD]).to_iterable_dataset(), "is a streamed data set"),
    ],
)
def test_what_is_no_data_set_is_refused(source, said):
    with pytest.raises(ArgumentError, match=said):
        rows_of(source)


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1"}\n{"prompt": \n')
    with pytest.raises(ArgumentError, match="is not JSON lines, in line 2"):
        rows_of(path)


def test_the_order_is_a_permutation_of_each_epoch_and_knows_every_draw():
    order = Order(7, seed=3)
    draws = order.take(0, 21)
    epochs = [draws[k : k + 7] for k in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert Order(7, seed=3).take(5, 10) == draws[5:15]
    assert Order(7, seed=4).take(0, 21) != draws
