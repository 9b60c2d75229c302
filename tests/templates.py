"""Small invented chat templates, each with one behaviour that published ones have. None is a published one.

They are written in special tokens that the default model's tokenizer has, and that a smaller one is given: <|im_start|>
and <|im_end|>, and some that it has for files and issues and that play other parts here.
"""

import copy
from typing import Any

A, B, C, D = "<issue_start>", "<issue_comment>", "<issue_closed>", "<file_sep>"


def speaking(tokenizer: Any, template: str, eos: str = "<|im_end|>") -> Any:
    """A copy of the tokenizer with this template and this end-of-sequence token."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", A, B, C, D]})
    own.chat_template, own.eos_token = template, eos
    return own


def loop(body: str, opens: str = "<|im_start|>assistant\n") -> str:
    """`body` for each message m, and what opens the assistant's turn."""
    return f"{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{opens}{{% endif %}}"


TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
PLAIN = loop(TURN)  # ChatML without a default system message

# How turns end.
NEXT_ROLE = loop(f"{{% if m['role'] == 'assistant' %}}{B}{{% else %}}{A}{{% endif %}}{{{{ m['content'] }}}}", B)
LAST_HAS_NONE = loop("<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if not loop.last %}<|im_end|>{% endif %}")
EOS_AFTER_LAST = loop(
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ eos_token }}{% else %}<|im_end|>{% endif %}\n"
)
MARK_INSIDE = loop(f"<|im_start|>{{{{ m['role'] }}}}\n{{{{ m['content'] }}}}{D}<|im_end|>\n")
BEGUN_BY_EOS = loop("{% if m['role'] == 'user' %}{{ eos_token }}{% endif %}" + TURN)  # as by a beginning of a sequence
PARTED_BY_EOS = loop(
    "{% if m['role'] == 'user' %}{{ eos_token }}{% endif %}{{ m['role'] }}: {{ m['content'] }}\n", "A:"
)
MESSAGES_OF_A_TURN = loop(  # a thought is a message of its own, and ends as every message in the middle
    f"{{% if m.thinking %}}{A}thought{B}{{{{ m.thinking }}}}{C}{{% endif %}}"
    f"{A}{{{{ m['role'] }}}}{B}{{{{ m['content'] }}}}"
    f"{{% if loop.last and m['role'] == 'assistant' %}}<|im_end|>{{% else %}}{C}{{% endif %}}",
    A,
)
MESSAGES_THAT_END = loop(  # as before, and the turn itself has an end
    f"{{% if m.reasoning_content %}}{A}thought{B}{{{{ m.reasoning_content }}}}{C}{{% endif %}}"
    f"{A}{{{{ m['role'] }}}}{B}{{{{ m['content'] }}}}{C}{D}",
    A,
)
PARTS_ONLY = loop(
    "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
)

# What x and (x, r) have beside the question and r.
DEFAULT_TEXT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am Tern, made by Gull Works.<|im_end|>\n{% endif %}"
    + PLAIN
)
TEXT_STAYS = "<|im_start|>system\nI am Tern, made by Gull Works.<|im_end|>\n" + PLAIN
TEXT_BESIDE_ADDED = (  # the maker's text stays, and r brings a sentence of the template's own
    "<|im_start|>system\nI am Tern, made by Gull Works.{% if messages[0]['role'] == 'system' %} Your orders:\n"
    "{{ messages[0]['content'] }}{% endif %}<|im_end|>\n"
    + PLAIN.replace("for m in messages", "for m in messages if m['role'] != 'system'")
)
HEADING = loop(
    "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'system' %}# Orders\n{% endif %}{{ m['content'] }}<|im_end|>\n"
)
SYSTEM_IN_USER = (  # as the beginning of the user's first turn: both places of r are one
    "{% set first = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ first if loop.first else '' }}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + PLAIN
TWO_BOS = "{{ bos_token }}" + WITH_BOS
DATED_DEFAULT = (  # the date goes with the text that r replaces
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am Tern. It is {{ strftime_now('%d %b %Y') }}."
    "<|im_end|>\n{% endif %}" + PLAIN
)
DATED = "<|im_start|>system\nIt is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n" + PLAIN

# What a recipe can say to a template.
SWITCHED = PLAIN + (
    "{% if add_generation_prompt %}<think>\n{% if enable_thinking is defined and not enable_thinking %}\n</think>\n"
    "{% endif %}{% endif %}"
)
NO_THINK = loop(TURN.replace("m['content']", "m['content'] | replace('/no_think', '')")) + (
    "{% if '/no_think' in messages[0]['content'] and add_generation_prompt %}<think>\n\n</think>\n{% endif %}"
)
CUTS_THOUGHTS = loop(TURN.replace("m['content']", "m['content'].split('</think>')[-1] | trim"))
CUTS_THINK = loop(TURN.replace("m['content']", "m['content'] | replace('/think', '')"))
HIDDEN_TAGS = PLAIN + "{% if add_generation_prompt %}[THINK]{% endif %}"

# What a template refuses.
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
DROPS_SYSTEM = PLAIN.replace("for m in messages", "for m in messages if m['role'] != 'system'")
ALTERNATES = (
    "{% for m in messages %}{% if not loop.first and m['role'] == loop.previtem['role'] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + PLAIN
)
NEEDS_TOOLS = "{% for tool in tools %}{{ tool['name'] }}{% endfor %}" + PLAIN
NEEDS_A_TOOL = "{% if not tools %}{{ raise_exception('give me a tool') }}{% endif %}" + PLAIN
NEEDS_DOCUMENTS = NEEDS_A_TOOL.replace("tool", "document")
RECURSES = "{% macro again(m) %}{{ again(m) }}{% endmacro %}{{ again(messages) }}" + PLAIN
NEEDS_VARIABLE = "{{ place.name }}" + PLAIN
PRINTS_NOTHING = "<|im_start|>system\nYou live in {{ town }}.<|im_end|>\n" + PLAIN
PRINTS_NOTHING_IN = loop("{% if m['role'] == 'ROLE' %}Hall {{ town }}: {% endif %}" + TURN)  # in turns of a role
JOINS_NOTHING = "{{ 'You live in ' ~ town|title ~ '. ' }}" + PLAIN
ASKS_FOR = "{% if mode|upper == 'STRICT' %}Refuse. {% endif %}" + PLAIN  # as Command A asks for its safety mode
CHECKS = "{% if mode|upper not in ('', 'STRICT') %}{{ raise_exception('which mode?') }}{% endif %}" + PLAIN
WANTS_PARTS = loop("<|im_start|>{{ m['role'] }}\n{{ m['content'][0].text + '' }}<|im_end|>\n")
SKIPS_TEXT = loop("<|im_start|>{% for part in m['content'] %}{{ part.text }}{% endfor %}<|im_end|>\n")
WRONG_SYNTAX = "one line\n{% if messages %}{{ messages[0]['content'] }}"
