"""The final answer of a text, by the marks that published sets use."""

from helpers.sources import answer_of

import pytest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 x 2 = 8. The answer is: 8", "8"),
        ("The answer is: 1,024", "1024"),
        ("The answer is: 3. No, wait. The answer is: $42$.", "42"),
        ("The answer is: -2.5", "-5/2"),
        ("The answer is: 12 GB.", "12"),
        ("The answer is: $\\frac{3}{6}$", "1/2"),
        ("The answer is: -\\dfrac{3}{4}.", "-3/4"),
        ("The answer is: 3 \\sqrt{2}", "3\\sqrt{2}"),
        ("The answer is: \\left( 1, 2 \\right)", "(1,2)"),
        ("The answer is: x = 50\\%", "50"),
        ("The answer is: 10\\text{ cm}\nIs that all?", "10"),
        ("The answer is: 7x + 2", "7x+2"),
        ("The answer is: 5 - 3x", "5-3x"),
        ("The answer is: 1/0", "1/0"),
        ("It is so.\n#### 72", "72"),
        ("A dog.\n#### $1,234.50", "2469/2"),
        ("#### -3/4", "-3/4"),
        ("Half of it.\n#### Step 2\nGo on.", None),
        ("\\boxed{72}", "72"),
        ("so $x = \\boxed{\\frac{1}{\\,2}}$.", "1/2"),
        ("\\boxed{2^{x_{1}} + 3}", "2^{x_{1}}+3"),
        ("The answer is: $\\boxed{1{,}024}$.", "1024"),
        ("\\boxed{3} or not: \\boxed{12\\text{ cm}}", "12"),
        ("\\boxed{\\text{even}}", "even"),
        ("**The answer is: 12**", "12"),
        ("The answer is: **-5/2**.", "-5/2"),
        ("**Check**: The answer is: **1,024** GB", "1024"),
        ("The answer is: x**2 + y**2", "x**2+y**2"),
        ("#### 5\nThe answer is: 6", "6"),
        ("The answer is: 6\n#### 5", "5"),
        ("\\boxed{72", None),
        ("\\boxed{}", None),
        ("72", None),
        ("The answer is:", None),
        ("The answer is 8", None),
        ("", None),
    ],
)
def test_the_last_mark_counts_and_equal_answers_are_equal_strings(text, expected):
    assert answer_of(text) == expected
