"""Chat templates in the styles of eight families, in our own words, and a tokenizer of bytes for each with its special tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlkit.data.renderer import Renderer

CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
CHATML = (
    "{% if tools %}<|im_start|>system\n# Tools{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}\n<tool_response>\n{{ m.content }}\n"
    "</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ CONTENT }}" + CALLS + "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('only single tool calls at once') }}{% endif %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif %}\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function.name }}\n"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('an id has nine signs') }}{% endif %}"
    '{{ ", " if not loop.first }}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% endfor %}]{{ eos_token }}{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    '{% elif m.role == "tool" %}[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HARMONY = (
    "<|start|>system<|message|>You are a model.<|end|>{% set last = namespace(name='') %}{% for m in messages %}"
    "{% if m.tool_calls %}{% set last.name = m.tool_calls[0].function.name %}<|start|>assistant to=functions.{{ last.name }}"
    "<|channel|>commentary json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% elif m.role == 'tool' %}<|start|>functions.{{ last.name }} to=assistant<|channel|>commentary<|message|>"
    "{{ m.content | tojson }}<|end|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
PHI = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
STRIPPED = (  # thinking of every turn but the last is removed
    "{{ m.content if m.role != 'assistant' or loop.last or '</think>' not in m.content "
    "else m.content.split('</think>')[-1].lstrip('\\n') }}"
)


@dataclass(frozen=True)
class Style:
    """ends: tokens that end a turn. added: that are no special ones. refuses: role -> why an episode cannot go on after its messages."""

    template: str
    special: tuple[str, ...]
    ends: tuple[str, ...]
    added: tuple[str, ...] = ()
    refuses: tuple[tuple[str, str], ...] = ()
    strips_white_space: bool = False


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
STYLES = {
    "chatml": Style(CHATML.replace("CONTENT", "m.content"), IM, ("<|im_end|>", "<|endoftext|>"), ("<tool_call>", "</tool_call>")),
    "chatml_thinking": Style(CHATML.replace("{{ CONTENT }}", STRIPPED), IM, ("<|im_end|>",), ("<tool_call>", "<think>", "</think>")),
    "llama": Style(
        LLAMA,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "glm": Style(
        GLM,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        ("<tool_call>", "</tool_call>", "<tool_response>"),
    ),
    "mistral": Style(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), ("</s>",)),
    "gemma": Style(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        refuses=(("tool", "roles must alternate"),),
    ),
    "harmony": Style(
        HARMONY,
        ("<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"),
        ("<|return|>", "<|call|>"),
        refuses=(("user", "writes no token that ends a turn"),),  # what ends a last turn it replaces where others follow
    ),
    "phi": Style(
        PHI,
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ("<|endoftext|>", "<|end|>"),
        refuses=(("tool", "leaves out messages of the role tool"),),
        strips_white_space=True,
    ),
}


def build_style(style: Style, folder: Path) -> Renderer:
    """The renderer of a model that writes chats so."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(word, special=True, normalized=False, rstrip=style.strips_white_space) for word in style.special]
    )
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in style.added])
    known = {"bos_token": style.special[0], "eos_token": style.ends[0], "pad_token": style.ends[0]}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=style.template, **known)
    fast.save_pretrained(str(folder))
    ends = [backend.token_to_id(word) for word in style.ends]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return Renderer(folder, offline=True)
