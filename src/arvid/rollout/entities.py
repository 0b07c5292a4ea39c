"""Who is in a prompt, and whether it is somebody who has been there before.

Knows: two readers of prompts (rules, or a language model that is asked for JSON), and how entities of one prompt are
matched with those of the prompts before it. Does not know: frames, keys, what a past does with a name. After the
identity registry of IAMFlow (2605.18733).

A name is a function of the prompts so far and of nothing else, so a video that is gone on with, rewound or branched
knows everybody by the names it has stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

ARTICLES = frozenset("a an the his her its their my our your this that one two three some".split())
NEWCOMERS = frozenset("another other new different second third".split())
"""Words that say that an entity is not one of those before."""
NOUNS = frozenset(
    "man woman boy girl child kid person baby lady gentleman dog cat horse bird fish bear fox lion tiger elephant "
    "robot car bus train boat ship plane bicycle truck circle square triangle diamond star ball cube".split()
)


@dataclass(frozen=True)
class Entity:
    """Somebody or something of a prompt: what it is, what else is said of it, and whether it is said to be new."""

    noun: str
    attributes: frozenset[str] = frozenset()
    newcomer: bool = False


class Parser(Protocol):
    """Reads a prompt."""

    def __call__(self, prompt: str) -> tuple[Entity, ...]:
        """Its entities, in the order of the prompt."""
        ...


@dataclass(frozen=True)
class Rules:
    """An entity is a known noun (or its plural in s) behind an article, with the words between the two."""

    nouns: frozenset[str] = NOUNS

    def __call__(self, prompt: str) -> tuple[Entity, ...]:
        """See `Parser`."""
        words = re.findall(r"[a-z]+(?:-[a-z]+)*|[^\sa-z]", prompt.lower())
        found = []
        for place, word in enumerate(words):
            noun = word if word in self.nouns else word.removesuffix("s")
            said = self._said(words[:place]) if noun in self.nouns else None
            if said is not None:
                found.append(Entity(noun, frozenset(said) - NEWCOMERS, not NEWCOMERS.isdisjoint(said)))
        return tuple(found)

    def _said(self, before: list[str]) -> list[str] | None:
        """The words from an article to the end of `before`; None when something else comes first."""
        said: list[str] = []
        for word in reversed(before):
            if word in ARTICLES or word == "another":
                return [*said, word] if word == "another" else said
            if word in self.nouns or not (word == "," or word[0].isalpha()):
                return None
            said += [] if word == "," else [word]
        return None


QUESTION = """List the people, animals and things that the following description of a video shows. Answer with JSON:
a list of objects with "noun" (one word), "attributes" (a list of words: colour, size, clothes) and "new" (true if the
description says that it is another one than before). Description: {prompt}
JSON:"""


@dataclass(frozen=True)
class Asked:
    """A language model reads the prompt: `complete` continues a text. Raises ValueError when the answer is not the JSON
    that was asked for."""

    complete: Callable[[str], str]

    def __call__(self, prompt: str) -> tuple[Entity, ...]:
        """See `Parser`."""
        answer = self.complete(QUESTION.format(prompt=prompt))
        found = re.search(r"\[.*\]", answer, re.DOTALL)
        try:
            return tuple(
                Entity(
                    str(item["noun"]).lower(), frozenset(str(word).lower() for word in item.get("attributes", [])),
                    bool(item.get("new", False)),
                )
                for item in json.loads(found.group() if found else answer)
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the language model answered {answer[:80]!r} for the prompt {prompt[:40]!r}; expected a JSON list of "
                "entities: use a model that follows instructions, or the rules"
            ) from error


def language_model(directory: Path, tokens: int = 256) -> Callable[[str], str]:
    """Greedy continuation of a text by at most `tokens` tokens of a transformers causal model in a local directory.
    Raises ValueError when there is none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{directory} holds no causal language model ({error}); give a transformers directory"
        ) from error

    def complete(text: str) -> str:
        inputs = tokenizer(text, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        answer: str = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer

    return complete


@lru_cache(maxsize=4)
def reader_of(directory: str) -> Parser:
    """Who reads prompts: the language model of a directory, which is loaded once and asked once for every prompt, or
    the rules for an empty name. Raises ValueError when the directory holds none."""
    return lru_cache(maxsize=256)(Asked(language_model(Path(directory)))) if directory else Rules()


@dataclass(frozen=True)
class Known:
    """An entity with the name it keeps, and all that was ever said of it."""

    name: str
    entity: Entity


def names(prompts: Sequence[str], parser: Parser | None = None) -> list[tuple[str, ...]]:
    """For each prompt the names of those it shows, in its order. Somebody is known if an entity of the same noun was
    there before and what is said of one is part of what is said of the other (the one with most in common, of equals
    the latest); who is said to be new, or matches nobody, gets a name of their own: noun, attributes and, if taken, a
    number.
    """
    read = Rules() if parser is None else parser
    known: list[Known] = []
    told = []
    for prompt in prompts:
        here: list[str] = []
        for entity in read(prompt):
            fits = [n for n, other in enumerate(known) if other.name not in here and _same(entity, other.entity)]
            if entity.newcomer or not fits:
                known.append(Known(_name(entity, {other.name for other in known}), replace(entity, newcomer=False)))
                place = len(known) - 1
            else:
                place = max(fits, key=partial(_likeness, entity, known))
                whole = entity.attributes | known[place].entity.attributes
                known[place] = replace(known[place], entity=Entity(entity.noun, whole))
            here.append(known[place].name)
        told.append(tuple(here))
    return told


def _likeness(entity: Entity, known: list[Known], place: int) -> tuple[int, int]:
    return len(entity.attributes & known[place].entity.attributes), place


def _same(entity: Entity, other: Entity) -> bool:
    mine, theirs = entity.attributes, other.attributes
    return entity.noun == other.noun and (mine <= theirs or theirs <= mine)


def _name(entity: Entity, taken: set[str]) -> str:
    plain = " ".join([*sorted(entity.attributes), entity.noun])
    number = next(n for n in range(1, len(taken) + 2) if (plain if n == 1 else f"{plain} {n}") not in taken)
    return plain if number == 1 else f"{plain} {number}"
