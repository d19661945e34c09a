"""The built-in model as one that calls tools and reasons: a copy with another chat template.

The template is in the manner of Qwen's and opens the reasoning itself if `enable_thinking` is true.
The markers of the reasoning take the places of two special tokens that it does not use, so that a
grammar can begin behind the end of the reasoning, which a bias (`END_THINKING`) can bring about.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from serving import SOURCE

# Instead of <|system|> and <|pad|>.
NEW_TOKENS = {4: "<think>", 5: "</think>"}
END_THINKING = 5

TEMPLATE = """{{- bos_token }}
{%- if tools %}
    {{- '<|user|>Functions, to be called within <tool_call></tool_call>:\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- if message.reasoning_content is string %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function if tool_call.function else tool_call %}
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|user|><tool_response>\\n' + message.content + '\\n</tool_response><|end|>' }}
    {%- else %}
        {{- '<|user|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}"""


def write_tool_model(directory: Path) -> Path:
    """A checkpoint of 24 MB in a directory that is new."""
    source = SOURCE / "trimtab" / "builtin" / "target"
    shutil.copytree(source, directory)
    config = directory / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings["chat_template"] = TEMPLATE
    settings["additional_special_tokens"] = ["<|user|>", "<|assistant|>", *NEW_TOKENS.values()]
    settings["pad_token"] = "<|end|>"
    for token_id, text in NEW_TOKENS.items():
        settings["added_tokens_decoder"][str(token_id)]["content"] = text
    config.write_text(json.dumps(settings))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    places = {token_id: text for text, token_id in tokenizer["model"]["vocab"].items()}
    for token_id, text in NEW_TOKENS.items():
        del tokenizer["model"]["vocab"][places[token_id]]
        tokenizer["model"]["vocab"][text] = token_id
        tokenizer["added_tokens"][token_id]["content"] = text
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "special_tokens_map.json").unlink()
    return directory
