"""Small invented chat templates, each with one behaviour that published ones have. None is a published one.

They are written in the special tokens of the default model's tokenizer, <|im_start|> and <|im_end|> and some of those
that it has for files and issues, under which names here they play other parts.
"""

import copy
from typing import Any

A, B, C, D = "<issue_start>", "<issue_comment>", "<issue_closed>", "<file_sep>"


def speaking(tokenizer: Any, template: str, eos: str = "<|im_end|>") -> Any:
    """A copy of the tokenizer with this template and this end-of-sequence token."""
    own = copy.deepcopy(tokenizer)
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
