"""Chat templates render as in transformers, character by character."""

from __future__ import annotations

from typing import Any, cast

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tidemill.base.errors import InvalidRequestError
from tidemill.text.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "system" %}{% continue %}{% endif %}
    {%- if message["role"] == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if ns.index > 20 %}{% break %}{% endif %}
{%- endfor %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n<|im_end|>\\n" }}
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- message.tool_calls | tojson(indent=2) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
GENERATION = (
    "{% set mark = 'outer' %}\n  {% for message in messages %}\n{{ message.role }}:"
    "{% generation %}\n  {% set mark = 'inner' %}{{ message.content }}\n{% endgeneration %}\n"
    "{{ mark }}{% endfor %}"
)
TEMPLATES = [CHATML, LLAMA2, LLAMA3, MISTRAL, QWEN, GENERATION]

USER = {"role": "user", "content": "  What <is> 'this' & \u00e9\u4f60? "}
ANSWER = {"role": "assistant", "content": "It is\nthat. "}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = [[USER], [USER, ANSWER, USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, USER]]
TOOLS = [{"name": "f", "about": "<b>\u00e9</b> it's", "parameters": {"z": 1, "a": [True, None]}}]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("chat", CHATS, ids=["one", "three", "system", "four"])
@pytest.mark.parametrize("template", TEMPLATES, ids=["ml", "2", "3", "mistral", "qwen", "gen"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_conversation_renders_as_in_transformers(
    template: str, chat: list[dict[str, str]], tools: list[dict[str, Any]] | None
) -> None:
    for prompt, extra in ((True, {}), (False, {}), (True, {"enable_thinking": False})):
        values: dict[str, Any] = {"add_generation_prompt": prompt, **SPECIALS, **extra}
        rendered: Any = render_jinja_template(
            [chat], tools=cast(Any, tools), chat_template=template, **values
        )
        (expected,), _ = rendered
        ours = ChatTemplate(template).render(chat, {"tools": tools, "documents": None, **values})
        assert ours == expected


def test_template_cannot_change_the_messages_or_reach_python() -> None:
    for attack in ("{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}{{ dict.__class__() }}"):
        with pytest.raises(InvalidRequestError, match="SecurityError"):
            ChatTemplate(attack).render([USER], {})


def test_date_is_written_in_the_form_asked_for() -> None:
    text = ChatTemplate("{{ strftime_now('%Y|%%') }}").render([USER], {})
    year, percent = text.split("|")
    assert year.isdigit() and len(year) == 4 and percent == "%"
