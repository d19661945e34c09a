"""Chat templates: the same text as transformers gives, and nothing that a template can break."""

from __future__ import annotations

from datetime import datetime

import pytest
from model_directories import make_backend, write_model
from templates import CHATML, GEMMA, LLAMA_3, MISTRAL, TEMPLATES
from transformers import AutoTokenizer

from trimtab.errors import CheckpointError, RequestError
from trimtab.tokenization import ChatTemplate, load_tokenizer

USER = {"role": "user", "content": "  Hello <b>'you'</b>, 日本!\n"}
ASSISTANT = {"role": "assistant", "content": "Hi.\n\n"}
SYSTEM = {"role": "system", "content": " Be brief. "}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": "é<>"}}}],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": 'Say "é" & <more>',
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}, "y": {}}},
        },
    }
]
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, USER],
    [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
    [USER, {"role": "assistant", "content": "<think>hm</think>\n\nYes"}, USER],
]


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request, tmp_path_factory):
    """(name, our tokenizer, transformers' tokenizer) of the same directory."""
    path = tmp_path_factory.mktemp("chat")
    write_model(path, make_backend("byte-level"), chat_template=TEMPLATES[request.param])
    return request.param, load_tokenizer(path), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_same_as_transformers(model, messages, prompt) -> None:
    _, ours, theirs = model
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert ours.chat_template.render(messages, add_generation_prompt=prompt) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert ours.encode_chat(messages, add_generation_prompt=prompt) == ids
    assert ids.count(ours.bos_token_id) == expected.count("<s>") <= 1  # BOS once, or not at all


@pytest.mark.parametrize("messages", [[USER], [USER, ASSISTANT, USER]])
def test_tools_same_as_transformers(model, messages) -> None:
    _, ours, theirs = model
    expected = theirs.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert ours.chat_template.render(messages, TOOLS, False) == expected


def test_tool_calls_and_variables_same_as_transformers(model) -> None:
    name, ours, theirs = model
    if name != "chatml":
        return
    arguments = {"add_generation_prompt": True, "enable_thinking": False}
    expected = theirs.apply_chat_template([USER, CALL], tokenize=False, **arguments)
    assert "<call>" in expected
    assert "<think></think>" in expected
    assert ours.chat_template.render([USER, CALL], **arguments) == expected


def test_content_parts(model) -> None:
    name, ours, theirs = model
    parts = [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]
    rendered = ours.chat_template.render([{"role": "user", "content": parts}])
    if name == "gemma":  # renders parts itself
        given = [{"role": "user", "content": parts}]
    else:
        given = [{"role": "user", "content": " one \ntwo"}]
    assert rendered == theirs.apply_chat_template(given, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content if m.content is string else '' }}{% endfor %}",
        "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
        "{% for m in messages %}{{ m.content + '' }}{% endfor %}",
        "{% for m in messages %}"
        "{{ m.content if m.content is string else m.content | tojson }}{% endfor %}",
    ],
)
def test_parts_are_never_lost(source) -> None:
    """Templates that drop a list, write it as Python or JSON do, or cannot take it."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}, {"role": "user", "content": "three"}]
    assert ChatTemplate(source).render(messages) == "one\ntwothree"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"content": "x"}], r"messages\[0\]: must be an object with a role"),
        ([USER, "hello"], r"messages\[1\]: must be an object with a role"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content: must be a string or a list"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "only parts of type text",
        ),
        ([{"role": "user", "content": ["x"]}], "only parts of type text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "only parts of type text"),
    ],
)
def test_malformed_messages(messages, reason) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        ChatTemplate(CHATML).render(messages)
    assert caught.value.param == "messages"


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ChatTemplate(MISTRAL, {"bos_token": "<s>"}).render([USER, USER])
    assert caught.value.param == "messages"
    with pytest.raises(RequestError, match="Unknown role: wizard"):
        ChatTemplate(LLAMA_3, {"bos_token": "<s>"}).render([{"role": "wizard", "content": ""}])
    with pytest.raises(RequestError, match="Invalid content type"):
        ChatTemplate(GEMMA).render([{"role": "user", "content": None}])
    for messages in ([], [{"role": "user"}]):
        with pytest.raises(RequestError, match="cannot render these messages"):
            ChatTemplate(MISTRAL, {"bos_token": "<s>"}).render(messages)


def test_no_template(tmp_path) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path, make_backend("byte-level")))
    assert tokenizer.chat_template is None
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.encode_chat([USER])


def test_where_the_template_is_found(tmp_path) -> None:
    backend = make_backend("byte-level")
    named = [
        {"name": "default", "template": "default {{ messages[0].content }}"},
        {"name": "tool_use", "template": "tools {{ tools | length }}"},
    ]
    path = write_model(tmp_path, backend, chat_template=named)
    template = load_tokenizer(path).chat_template
    user = [{"role": "user", "content": "x"}]
    assert template.render(user) == "default x"
    assert template.render(user, []) == "default x"
    assert template.render(user, TOOLS) == "tools 1"
    (path / "chat_template.jinja").write_text("file {{ bos_token }}{{ eos_token }}")
    assert load_tokenizer(path).chat_template.render(user, TOOLS) == "file <s></s>"
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("tool file")
    assert load_tokenizer(path).chat_template.render(user, TOOLS) == "tool file"
    assert load_tokenizer(path).chat_template.render(user) == "file <s></s>"
    for broken in ({"a": 1}, 3, [{"name": "default"}], [{"name": "other", "template": "x"}]):
        (path / "chat_template.jinja").unlink(missing_ok=True)
        write_model(tmp_path, backend, chat_template=broken)
        with pytest.raises(CheckpointError, match="chat_template"):
            load_tokenizer(path)


def render(source: str) -> str:
    return ChatTemplate(source).render([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ [1, 2] + [3] }}{{ (1, 2) }}{{ {'a': [1]} | tojson }}", '[1, 2, 3](1, 2){"a": [1]}'),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{% for x in [1, 2] %}{{ loop.length }}{{ loop.last }}{% endfor %}", "2False2True"),
        ("{% for x in range(9) if x % 2 %}{{ x }}{% else %}none{% endfor %}", "1357"),
        ("{% for x in nothing %}{% else %}none{% endfor %}", "none"),
        ("{% set a, b = 1, 2 %}{{ a }}{{ b }}", "12"),
        ("{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) ~ f(3, 4) }}", "<12><34>"),
        ("{% set x %}one{% endset %}{{ x | upper | replace('N', 'nn') }}", "OnnE"),
        ("{{ messages | map(attribute='content') | join(', ') }}", "hello"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{{ '%s-%05d' % ('x', 7) }}{{ '{:>3}'.format(1) }}", "x-00007  1"),
        ("{{ 2 ** 10 }}{{ 7 // 2 }}{{ 'ab' * 2 }}{{ 3.14159 | round(2) }}", "10243abab3.14"),
        ("{{ 'a,b'.split(',') | last }}{{ ','.join(['x', 'y']) }}", "bx,y"),
        ("{{ messages[0].content[1:3] }}{{ messages.__class__ }}", "el"),
        ("{% generation %}x{% set y = 1 %}{% endgeneration %}", "x"),
        ("  {% if true %}\n  a\n  {% endif %}\n", "  a\n"),  # trim_blocks, lstrip_blocks
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
    ],
)
def test_the_language_is_jinja(source, text) -> None:
    assert render(source) == text


GROW = "{% set ns = namespace(x=X) %}{% for i in range(90) %}{% set ns.x = Y %}{% endfor %}"
HOSTILE = {
    "endless loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "a huge range": "{% for i in range(1000000) %}{% endfor %}",
    "exponential recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling text": GROW.replace("X", "'aa'").replace("Y", "ns.x ~ ns.x"),
    "doubling sum": GROW.replace("X", "'aa'").replace("Y", "ns.x + ns.x"),
    "doubling list": GROW.replace("X", "[1]").replace("Y", "ns.x + ns.x"),
    "nested lists": GROW.replace("X", "[1]").replace("Y", "[ns.x, ns.x]"),
    "nested dicts": GROW.replace("X", "[1]").replace("Y", "dict(a=ns.x, b=ns.x)"),
    "nested tuples": GROW.replace("X", "[1]").replace("Y", "(ns.x, ns.x)"),
    "doubling by replace": GROW.replace("X", "'aa'").replace("Y", "ns.x | replace('a', 'aa')"),
    "doubling by method": GROW.replace("X", "'aa'").replace("Y", "ns.x.replace('a', 'aa')"),
    "doubling by join": GROW.replace("X", "'aa'").replace("Y", "[ns.x, ns.x] | join"),
    "doubling by format": GROW.replace("X", "'aa'").replace("Y", "'%s%s' % (ns.x, ns.x)"),
    "doubling by brackets": GROW.replace("X", "'aa'").replace("Y", "'{0}{0}'.format(ns.x)"),
    "squaring": GROW.replace("X", "10").replace("Y", "ns.x * ns.x"),
    "a huge power": "{{ 9 ** (9 ** 9) }}",
    "a huge product": "{{ 'a' * 10 ** 12 }}",
    "a huge list": "{{ [0] * 10 ** 12 }}",
    "a wide column": "{{ 'a'.ljust(1000000000000) }}",
    "a wide number": "{{ '%1000000000000d' % 3 }}",
    "a wide star": "{{ '%*d' % (1000000000000, 3) }}",
    "a wide format": "{{ '{:1000000000000}'.format(3) }}",
    "a nested format": "{{ '{:{}}'.format(3, 1000000000000) }}",
    "a wide indent": "{{ 'a\nb' | indent(1000000000000) }}",
    "a wide JSON indent": "{{ [1] | tojson(indent=1000000000000) }}",
    "a long rounding": "{{ 1 | round(1000000000, 'ceil') }}",
    "a captured flood": "{% set x %}{% for i in range(99999) %}"
    + "y" * 999
    + "{% endfor %}{% endset %}",
    "a flood": "{% for i in range(99999) %}{{ 'abc' * 1000 }}{% endfor %}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "a parent": "{% extends 'x' %}",
    "recursive loops": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "broken syntax": "{% if %}",
    "an unknown filter": "{{ 'a' | nosuch }}",
    "nested brackets": "{{ " + "(" * 999 + "1" + ")" * 999 + " }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name) -> None:
    with pytest.raises(CheckpointError, match=r"^chat template(, line 1)?: ") as caught:
        render(HOSTILE[name])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_long_conversation_is_no_attack() -> None:
    """2,000 messages and a prompt of two million characters."""
    long = [USER, ASSISTANT] * 1000 + [{"role": "user", "content": "x" * 2_000_000}]
    text = ChatTemplate(MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}).render(long)
    assert text.count("[INST]") == 1001
    assert len(text) > 2_000_000
