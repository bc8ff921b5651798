"""Rows of prompts, or of preferences, to token ids; what is wrong with a row is said at once.

A data set is a `datasets.Dataset`, the path of a JSON-lines file, or a list of dictionaries.

    standard         {"prompt": "2+2="}
                     {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    conversational   {"prompt": [{"role": "user", "content": "2+2="}]}
                     {"prompt": [...], "chosen": [{"role": "assistant", "content": "4"}], ...}
    implicit prompt  {"chosen": ..., "rejected": ...}: what both begin with

as in TRL. Messages go through the tokenizer's chat template. Prompt and completion are tokenised
apart, as they are where a completion is sampled, and the end token follows a completion of text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upslope.errors import ArgumentError
from upslope.seeding import generator

MOST_NAMED = 5  # rows that are listed in one error


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, and the row it is from."""

    ids: list[int]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Preference:
    """A prompt with a chosen and a rejected completion, as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def rows_of(dataset: Any, name: str = "train_dataset") -> Sequence[Mapping[str, Any]]:
    """Return the rows of a data set; raises ArgumentError for what is none, or is empty."""
    if isinstance(dataset, str | Path):
        rows: Sequence[Mapping[str, Any]] = json_lines(Path(dataset))
    elif hasattr(dataset, "column_names") and not isinstance(dataset, Mapping):
        if not hasattr(dataset, "__len__"):
            raise ArgumentError(
                f"{name} is a streamed data set, whose length is not known: give one with rows"
            )
        rows = dataset
    elif isinstance(dataset, Mapping):
        raise ArgumentError(
            f"{name} takes one data set, got a dictionary of {', '.join(map(str, dataset))}"
        )
    elif isinstance(dataset, Sequence):
        rows = dataset
    else:
        raise ArgumentError(
            f"{name} takes a datasets.Dataset, a path to JSON lines, or a list of dictionaries, "
            f"got {type(dataset).__name__}"
        )
    if len(rows) == 0:
        raise ArgumentError(f"{name} has no rows")
    return rows


def json_lines(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a JSON-lines file; raises ArgumentError naming a line that is none."""
    rows: list[Mapping[str, Any]] = []
    number = 0
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):  # noqa: B007  (for the error)
            rows += [json.loads(line)] if line.strip() else []
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise ArgumentError(f"{path} is not JSON lines, in line {number}: {error}") from error
    return rows


def prompts_of(
    dataset: Any, tokenizer: Any, longest: int | None = None, name: str = "train_dataset"
) -> list[Prompt]:
    """Return the prompts of a data set; rows that cannot be used are named in ArgumentError."""

    def read(number: int, row: Mapping[str, Any]) -> Prompt:
        ids = encoded_prompt(row.get("prompt"), tokenizer)
        check_prompt(ids, longest)
        return Prompt(ids, row)

    return _all(rows_of(dataset, name), read, name)


def preferences_of(
    dataset: Any, tokenizer: Any, longest: int | None = None, name: str = "train_dataset"
) -> list[Preference]:
    """Return the preferences of a data set; rows that cannot be used are named in ArgumentError.

    A completion is cut so that prompt and completion have at most `longest` tokens.
    """
    first: dict[tuple[tuple[int, ...], ...], int] = {}

    def read(number: int, row: Mapping[str, Any]) -> Preference:
        found = preference(row, tokenizer)
        check_prompt(found.prompt, None if longest is None else longest - 1)
        if found.chosen == found.rejected:
            raise ArgumentError("chosen and rejected are the same")
        key = (tuple(found.prompt), tuple(found.chosen), tuple(found.rejected))
        if first.setdefault(key, number) != number:
            raise ArgumentError(f"it is a duplicate of row {first[key]}")
        left = None if longest is None else longest - len(found.prompt)
        return Preference(found.prompt, found.chosen[:left], found.rejected[:left])

    return _all(rows_of(dataset, name), read, name)


def _all(
    rows: Sequence[Mapping[str, Any]],
    read: Callable[[int, Mapping[str, Any]], Any],
    name: str,
) -> list[Any]:
    """Return what `read` makes of each row and its number, or name the rows it cannot read."""
    made, wrong = [], []
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, Mapping):
                raise ArgumentError(f"it is no dictionary but {type(row).__name__}")
            made.append(read(number, row))
        except ArgumentError as error:
            wrong.append(f"row {number}: {error}")
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise ArgumentError(f"{name}, {'; '.join(wrong[:MOST_NAMED])}{more}")
    return made


# ---------------------------------------------------------------- one row
def encoded_prompt(prompt: Any, tokenizer: Any) -> list[int]:
    """Return the token ids of a prompt, text or messages; raises ArgumentError if it is empty."""
    if prompt is None:
        raise ArgumentError("it has no 'prompt'")
    kind = kind_of(prompt, "prompt")
    if not prompt:
        raise ArgumentError("its prompt is empty")
    if kind == "text":
        return encode_text(prompt, tokenizer, special=True)
    return encode_text(templated(prompt, tokenizer, opening=True), tokenizer)


def kind_of(value: Any, column: str) -> str:
    """Return whether a column holds "text" or "messages"; raises ArgumentError for neither."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, Sequence) or not all(isinstance(m, Mapping) for m in value):
        raise ArgumentError(f"its {column!r} takes text or a list of messages, got {value!r:.80}")
    for message in value:
        said = message.get("content") is not None or message.get("tool_calls")
        if not isinstance(message.get("role"), str) or not said:
            raise ArgumentError(f"its {column!r} has no role or content in {message!r:.80}")
    return "messages"


def preference(row: Mapping[str, Any], tokenizer: Any) -> Preference:
    """Return a row's prompt, chosen and rejected completion as token ids."""
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise ArgumentError(f"it has no {column!r}")
        kind_of(row[column], column)
        if len(row[column]) == 0:
            raise ArgumentError(f"its {column!r} is empty")
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    given = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if len({kind_of(value, name) for name, value in given.items() if value}) > 1:
        raise ArgumentError("it holds text and messages, where all its columns are of one kind")
    if prompt is None:
        prompt, chosen, rejected = without_common_start(chosen, rejected)
    ids = encoded_prompt(prompt, tokenizer)
    if isinstance(prompt, str):
        answers = [encode_text(text, tokenizer) for text in (chosen, rejected)]
        return Preference(ids, *(with_end(answer, tokenizer) for answer in answers))
    opened = templated(prompt, tokenizer, opening=True)
    answers = []
    for messages in (chosen, rejected):
        whole = templated([*prompt, *messages], tokenizer, opening=False)
        if not whole.startswith(opened):
            raise ArgumentError("the chat template does not begin a conversation as its prompt")
        answers.append(encode_text(whole[len(opened) :], tokenizer))
    return Preference(ids, *answers)


def without_common_start(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return what chosen and rejected both begin with, and what is left of each.

    Text is parted at the last blank that both share, so that no word is cut.
    """
    pairs = zip(chosen, rejected, strict=False)
    common = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        common = chosen[:common].rfind(" ") if " " in chosen[:common] else common
    return chosen[:common], chosen[common:], rejected[common:]


def templated(messages: Any, tokenizer: Any, *, opening: bool) -> str:
    """Return messages as text by the chat template, with the opening of an answer if asked."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ArgumentError("it holds messages, and the tokenizer has no chat template")
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=opening
        )
    except Exception as error:  # a template is a program, of whoever wrote it
        raise ArgumentError(f"the chat template does not take its messages: {error}") from error
    return text


def encode_text(text: str, tokenizer: Any, *, special: bool = False) -> list[int]:
    """Return the token ids of a text, with what the tokenizer adds to one if asked."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"it holds what is no character of Unicode: {error}") from None
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def with_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Return a completion with the end token after it."""
    end = tokenizer.eos_token_id
    return ids if ids and ids[-1] == end else [*ids, end]


def check_prompt(ids: Sequence[int], longest: int | None) -> None:
    """Raise ArgumentError for a prompt of no token, or of more than `longest`."""
    if not ids:
        raise ArgumentError("its prompt is empty")
    if longest is not None and len(ids) > longest:
        raise ArgumentError(f"its prompt has {len(ids)} tokens, and there is room for {longest}")


def fingerprint(rows: Sequence[Any]) -> str:
    """Return a hash of the token ids of rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        ids = row.ids if isinstance(row, Prompt) else (row.prompt, row.chosen, row.rejected)
        digest.update(repr(ids).encode())
    return digest.hexdigest()


def columns_fingerprint(prompts: Sequence[Prompt]) -> str:
    """Return a hash of what rows hold beside their prompts; of what is no JSON, its type."""
    digest = hashlib.sha256()
    for prompt in prompts:
        columns = sorted((str(name), x) for name, x in prompt.row.items() if name != "prompt")
        digest.update(
            json.dumps(columns, skipkeys=True, default=lambda x: type(x).__name__).encode()
        )
    return digest.hexdigest()


# ---------------------------------------------------------------- their order
class Order:
    """The rows in the order they are drawn: each epoch a permutation of its own.

    The k-th draw is row permutation(seed, k // n)[k % n]: nothing is remembered but k.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def take(self, start: int, count: int) -> list[int]:
        """Return the rows of draws start, start + 1, ..., start + count - 1."""
        return [self._at(k) for k in range(start, start + count)]

    def _at(self, k: int) -> int:
        epoch, place = divmod(k, self.rows)
        if epoch != self._epoch:
            draws = generator(self.seed, "data order", epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.rows, generator=draws)
        return int(self._permutation[place])
