"""The only home of what transformers does that nobody would guess, and of what is done about it here. Seen in 5.19.0;
tests/process/test_transformers_contract.py fails by its name when an upgrade changes it.

- Where it finds torch, any tokenizer and any config imports torch, and of transformers what generates, shards and
  accelerates models: three seconds of a processor. Where it finds none, "only tokenizers, configuration and file/data
  utilities can be used", as it says itself: `find_no_torch`.
"""

import sys


def find_no_torch() -> None:
    """In this process transformers finds no torch from now on: for one that makes no model. Others find torch there.

    It has no effect where transformers has looked already.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # by which Python says that there is none
    try:
        from transformers.utils import is_torch_available

        is_torch_available()  # it remembers what it has found
    finally:
        del sys.modules["torch"]
