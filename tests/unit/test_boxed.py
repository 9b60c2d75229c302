r"""The verifier: which answer counts, which does not, and that no answer can hold up whoever asks."""

import pytest

from rollout.tasks.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("\\boxed{7}", "7"),
        ("first \\boxed{7}, then \\boxed{8}.", "8"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {7}", "7"),
        ("\\boxed{\n7\n} so", "\n7\n"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("\\boxed{}", ""),
        ("", None),
        ("boxed{7}", None),
        ("The answer is 7.", None),
        ("\\boxed{7} or rather \\boxed{8", None),  # the last one never ends
        ("\\boxed{{7}", None),
    ],
)
def test_the_last_box_is_read_with_its_braces_in_pairs(text: str, held: str | None) -> None:
    assert last_boxed(text) == held
