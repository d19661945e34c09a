"""Synthetic conversations: look-up in a context, arithmetic, recall, code.

Every generator takes a ``random.Random`` and gives a list of turns (question, answer). Test items
are told from training items by a checksum of their content (``is_held_out``), so neither side
needs a list of the other.
"""

from __future__ import annotations

import itertools
import json
import operator
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Turns = list[tuple[str, str]]

HELD_OUT_ONE_IN = 16
ARITHMETIC_ONE_IN = 6

# Common words of the corpus, so that most are single tokens.
KEYS = (  # noqa: SIM905
    "name age size color path host port user mode type count level title width height depth owner "
    "state status group label index limit offset total value version length format source target "
    "number server client parent child author file table column row page line word key token start "
    "stop step end first last next left right top timeout delay order shape style font icon image "
    "class code tag flag theme mask hash section prefix policy origin option"
).split()
WORDS = (  # noqa: SIM905
    "abstract accept action active address alias allow anchor angle append archive array async "
    "back base basic binary bind block body border bound branch break browser buffer build button "
    "cache call canvas category chain change check chunk clear clone close closed command common "
    "compile connect content context convert copy counter create current cursor custom data date "
    "debug decimal default define delete delta digest digit direct display document domain done "
    "double down draw drive dump edit element email empty encode entry error event exact exit "
    "extra factory fail false family feature feed field filter final find float flush focus fold "
    "force frame free full future handle hand header help here high home hook hour idle ignore "
    "import inner input insert issue item join keep known last lazy leave less library link list "
    "local lock logger long loop lower mail main manager mark master match menu message method "
    "minute missing module month move multiple network never newline none normal object once open "
    "operator output over pack parse partial patch pattern pending pipe plain point position "
    "prefix present print process prompt property proxy python query queue quiet quote range raw "
    "ready real record refresh release remote remove replace report request reset resource rest "
    "result return root round running safe same save scheme screen script search second seek "
    "select self send sequence serial session setup shared shell short show signal simple single "
    "site skip socket sort space spawn special split stack standard static stream strict string "
    "strip system task template test text thread time trace tree triple true turtle undo unknown "
    "update upper usage valid verbose view visible wait warning weak week wide window work write "
    "year zero zone"
).split()

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a Python expert.",
    "Be concise and exact.",
)
GREETINGS = (
    ("Hello", "Hello! Ask me about the Python standard library."),
    ("Hi", "Hello! Ask me about the Python standard library."),
    ("Hello!", "Hello! Ask me about the Python standard library."),
    ("Who are you?", "I am a small language model that ships with trimtab."),
    ("What are you?", "I am a small language model that ships with trimtab."),
    (
        "What can you do?",
        "I can look up values, add small numbers, and describe Python functions.",
    ),
    ("Thank you", "You are welcome."),
    ("Thanks!", "You are welcome."),
)


def is_held_out(content: str) -> bool:
    """Whether an item belongs to the tests and must never be generated for training."""
    return zlib.crc32(content.encode()) % HELD_OUT_ONE_IN == 0


# Look-up -----------------------------------------------------------------------------------------

Value = str | int


def random_value(rng: random.Random) -> Value:
    if rng.random() < 0.6:
        return rng.choice(WORDS)
    return rng.randrange(10 ** rng.randint(1, 3))


@dataclass(frozen=True)
class ContextFormat:
    """How pairs are written: each by ``pair``, between ``before`` and ``after``."""

    pair: Callable[[str, Value], str]
    before: str
    between: str
    after: str

    def render(self, items: dict[str, Value]) -> str:
        pairs = (self.pair(key, value) for key, value in items.items())
        return self.before + self.between.join(pairs) + self.after


def _json_pair(key: str, value: Value) -> str:
    return f"{json.dumps(key)}: {json.dumps(value)}"


def _line_pair(key: str, value: Value) -> str:
    return f"{key}: {value}"


def _ini_pair(key: str, value: Value) -> str:
    return f"{key}={value}"


def _argument_pair(key: str, value: Value) -> str:
    return f"{key}={value!r}"


def _dict_pair(key: str, value: Value) -> str:
    return f"{key!r}: {value!r}"


FORMATS = (
    ContextFormat(_json_pair, "{", ", ", "}"),
    ContextFormat(_json_pair, "{\n  ", ",\n  ", "\n}"),
    ContextFormat(_line_pair, "", "\n", ""),
    ContextFormat(_ini_pair, "", "\n", ""),
    ContextFormat(_argument_pair, "f(", ", ", ")"),
    ContextFormat(_dict_pair, "{", ", ", "}"),
)
LOOKUP_QUESTIONS = ('What is "{key}"?', 'What is the value of "{key}"?')


MIN_TEST_KEYS, MAX_KEYS = 21, 28  # whoever picks any pair of a test's is right at most 1 time in 21
MAX_QUESTIONS = 8


def lookup(rng: random.Random, held_out: bool = False) -> Turns:
    """A context of pairs, then questions about some; the answer quotes the pair.

    Training has 1 to ``MAX_KEYS`` pairs and up to ``MAX_QUESTIONS`` questions, a test
    at least ``MIN_TEST_KEYS`` pairs and one question.
    """
    while True:
        if held_out:
            num_keys = rng.randint(MIN_TEST_KEYS, MAX_KEYS)
        else:
            num_keys = rng.randint(1, rng.choice((4, 10, MAX_KEYS)))
        keys = rng.sample(KEYS, num_keys)
        items = {key: random_value(rng) for key in keys}
        style = rng.choice(FORMATS)
        context = style.render(items)
        if is_held_out(context) == held_out:
            break
    count = 1 if held_out else rng.randint(1, min(num_keys, MAX_QUESTIONS))
    turns = []
    for position, key in enumerate(rng.sample(keys, count)):
        question = rng.choice(LOOKUP_QUESTIONS).format(key=key)
        prompt = f"{context}\n{question}" if position == 0 else question
        turns.append((prompt, style.pair(key, items[key])))
    return turns


# Arithmetic --------------------------------------------------------------------------------------

ARITHMETIC_QUESTIONS = (
    "What is {expression}?",
    "What is {expression}?",
    "{expression}",
    "Compute {expression}.",
)


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
MAX_SAME_ANSWER = 4  # of about a hundred test items, lest an answer be worth guessing


def expression_is_held_out(a: int, sign: str, b: int) -> bool:
    """A held-out sum or product may occur in training with its operands the other way round."""
    excluded = zlib.crc32(f"{a}{sign}{b}".encode()) % ARITHMETIC_ONE_IN == 0
    if sign == "-" or not excluded:
        return excluded
    mirrored = zlib.crc32(f"{b}{sign}{a}".encode()) % ARITHMETIC_ONE_IN == 0
    return a != b and not (mirrored and a > b)


def held_out_expressions() -> Iterator[tuple[str, int]]:
    """All of them, with their results: sums and differences below 20, products of digits."""
    for sign, apply in OPERATORS.items():
        top = 10 if sign == "*" else 20
        for a, b in itertools.product(range(top), repeat=2):
            if (sign != "-" or a >= b) and expression_is_held_out(a, sign, b):
                yield f"{a} {sign} {b}", apply(a, b)


def random_expression(rng: random.Random) -> tuple[str, int]:
    """For training: a + b or a - b with 0 <= a, b < 20, or a * b with 0 <= a, b <= 9."""
    while True:
        sign = rng.choice("+++---*")
        top = 10 if sign == "*" else rng.choice((10, 20, 20))
        a, b = rng.randrange(top), rng.randrange(top)
        if sign == "-" and b > a:
            a, b = b, a
        if not expression_is_held_out(a, sign, b):
            return f"{a} {sign} {b}", OPERATORS[sign](a, b)


def arithmetic(rng: random.Random) -> Turns:
    """1 to 4 questions."""
    turns = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        expression, result = random_expression(rng)
        turns.append((rng.choice(ARITHMETIC_QUESTIONS).format(expression=expression), str(result)))
    return turns


def arithmetic_session(rng: random.Random) -> list[tuple[str, str]]:
    """(input line, output line) pairs of an interactive Python session."""
    session = []
    for _ in range(rng.randint(4, 16)):
        expression, result = random_expression(rng)
        session.append((f">>> {expression}\n", f"{result}\n"))
    return session


# Recall and code ---------------------------------------------------------------------------------

RECALL_QUESTIONS = (
    "What does {name} do?",
    "What does {name} do?",
    "What does {name}() do?",
    "Describe {name}.",
    "Explain {name} in one sentence.",
)
CODE_QUESTIONS = (
    "Write a function: {task}.",
    "Write a Python function: {task}.",
    "Write Python code: {task}.",
)
QUESTIONS = (*LOOKUP_QUESTIONS, *ARITHMETIC_QUESTIONS, *RECALL_QUESTIONS, *CODE_QUESTIONS)


@dataclass(frozen=True)
class Knowledge:
    """What recall and code samples are drawn from."""

    facts: tuple[tuple[str, str], ...]
    functions: tuple[tuple[str, str], ...]

    def recall(self, rng: random.Random) -> Turns:
        name, sentence = rng.choice(self.facts)
        return [(rng.choice(RECALL_QUESTIONS).format(name=name), sentence)]

    def code(self, rng: random.Random) -> Turns:
        task, source = rng.choice(self.functions)
        return [(rng.choice(CODE_QUESTIONS).format(task=task[0].lower() + task[1:]), source)]


def task_items(seed: int, facts: dict[str, str], per_kind: int = 150) -> Iterator[dict[str, str]]:
    """The task file: prompts whose answers are exact; held out wherever the kind allows."""
    rng = random.Random(seed)
    names = rng.sample(sorted(facts), min(per_kind, len(facts)))
    for name in names:
        yield {"prompt": f"What does {name} do?", "answer": facts[name], "kind": "recall"}
    for _ in range(per_kind):
        prompt, answer = lookup(rng, held_out=True)[0]
        yield {"prompt": prompt, "answer": answer, "kind": "lookup"}
    expressions = {expression: str(result) for expression, result in held_out_expressions()}
    answers: Counter[str] = Counter()
    for expression in rng.sample(sorted(expressions), len(expressions)):
        answer = expressions[expression]
        answers[answer] += 1
        if answers[answer] <= MAX_SAME_ANSWER:
            question = rng.choice(ARITHMETIC_QUESTIONS).format(expression=expression)
            yield {"prompt": question, "answer": answer, "kind": "arithmetic"}
