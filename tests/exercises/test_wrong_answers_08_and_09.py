"""The usual wrong answers to the exercises of 08 and 09 are told why."""

from helpers.exercises import serving, speed
from helpers.memory import SHAPES


def test_08_wrong_answers_are_told_why(solved, data, tokenizer):
    given = {"references": [e.reference for e in data.test[:3]], "limit": 24}

    def text(response):
        return response.choices[0].message.content

    for wrong, why in (
        (text, "for a cut answer"),
        (lambda r: text(r) if r.choices[0].finish_reason == "stop" else "", "should return None"),
        (lambda r: text(r) if r.usage.completion_tokens < 24 else None, "exactly 24 tokens"),
        (lambda r: text(r) if text(r) in given["references"] else None, "looks complete"),
        (lambda r: None, "for a whole answer"),
    ):
        assert why in serving.whole_answers(wrong, **given).message

    names = solved("08_serve")[1]
    first, said, talk, grown = (names[name] for name in ("question", "said", "messages", "grows_by"))
    second = {"first": first, "said": said, "tokenizer": tokenizer}
    assert "keeps nothing" in serving.second_turn(talk[-1:], grown, **second).message
    assert "the roles are" in serving.second_turn([*first, talk[-1]], grown, **second).message
    other = [*first, {"role": "assistant", "content": "Something else."}, talk[-1]]
    assert "not what the server answered" in serving.second_turn(other, grown, **second).message
    said, asked = (len(tokenizer(m["content"], add_special_tokens=False)["input_ids"]) for m in talk[-2:])
    for wrong, why in ((names["tokens"](talk), "how much it grew"), (said + asked, "who speaks"), (asked, "both read")):
        assert why in serving.second_turn(talk, wrong, **second).message


def test_09_wrong_answers_are_told_why():
    shape = SHAPES["SmolLM2-135M"]
    best = {"speed": 1e12, "shape": shape}
    lora = 1e12 / (4 * shape.block_weights)
    right = lora * 4 / 6
    for wrong, why in ((lora, "LoRA's"), (7, "Count 2N")):
        verdict = speed.ceilings(wrong, right, **best).message
        assert verdict.startswith("full: ") and why in verdict
    for wrong, why in ((lora, "second time"), (lora / 2, "only the forward pass")):
        assert why in speed.ceilings(right, wrong, **best).message

    def rung(name, tokens, precision="bf16"):
        return {"name": name, "tokens_per_second": tokens, "chosen": {"precision": precision}}

    ladder = {"found": [rung("start", 100, "fp32"), rung("bf16", 300), rung("more", 500), rung("most", 510)],
              "ceiling": {"fp32": 200, "bf16": 1000}}  # fmt: skip
    assert speed.best_levers("bf16", "more", **ladder).state == "right"
    for faster, closer, why in (("most", "more", "1.02 times"), ("more", "more", "below it"), ("start", "more", "changed something"),
                                ("bf16", "bf16", "-20.0 points")):  # fmt: skip
        assert why in speed.best_levers(faster, closer, **ladder).message
