"""Chat templates in the manner of the families that trimtab serves, written for these tests."""

LLAMA_3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Functions:\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system ~ "<|eot|>" }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""

CHATML = """{%- if tools %}
<|im_start|>system
{% for tool in tools %}
{{ tool.function.name }}({{ tool.function.parameters.properties.keys() | join(', ') }})
{% endfor %}
<|im_end|>
{% endif %}
{%- set ns = namespace(last=-1, seen=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}{% set ns.last = loop.index0 %}{% endif %}
    {%- set ns.seen = ns.seen + 1 %}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- set content = message.content or '' %}
{%- if message.role == 'assistant' and '</think>' in content %}
{{- content.split('</think>')[-1].lstrip('\\n') -}}
{%- elif message.role == 'assistant' -%}
{% generation %}{{- content -}}{% endgeneration %}
{%- else -%}
{{- message.content -}}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '<call>' ~ (call.function | tojson) ~ '</call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- if loop.index0 > 50 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{% endif %}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, roles must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}
{%- macro render(role, content) -%}
<turn>{{ role }}
{% if content is string -%}
{{ content | trim }}
{%- elif content is iterable -%}
{%- for item in content -%}
{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
{%- endfor -%}
{%- else -%}
{{ raise_exception("Invalid content type") }}
{%- endif -%}
<end>
{% endmacro -%}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ render(role, message['content']) }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}
"""

TEMPLATES = {"llama-3": LLAMA_3, "chatml": CHATML, "mistral": MISTRAL, "gemma": GEMMA}
