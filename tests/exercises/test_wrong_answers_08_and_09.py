"""The usual wrong answers to the exercises of 08 and 09 are told why."""

import threading

from helpers.exercises import serving, speed
from helpers.memory import SHAPES


def test_08_wrong_answers_are_told_why(solved, data, tokenizer):
    given = {"references": [e.reference for e in data.test[:3]], "limit": 24}

    def text(response):
        return response.choices[0].message.content

    for wrong, why in (
        (text, "a cut answer came through"),
        (lambda r: text(r) if r.choices[0].finish_reason == "stop" else "", "should return None"),
        (lambda r: text(r) if r.usage.completion_tokens < 24 else None, "exactly 24 tokens"),
        (lambda r: text(r) if text(r) in given["references"] else None, "looks complete"),
        (lambda r: None, "a whole answer"),
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
    for wrong, why in ((names["tokens"](talk), "how much it grew"), (said + asked, "who speaks"), (said, "first answer;"),
                       (asked, "second question;"), (grown + 7, "count")):  # fmt: skip
        assert why in serving.second_turn(talk, wrong, **second).message


def test_08_a_limit_for_clients_has_to_hold_and_to_let_go(monkeypatch):
    monkeypatch.setattr(serving, "STUCK", 1)

    def each_time(ask, at_once):
        def asks(messages):
            with threading.Semaphore(at_once):
                return ask(messages)

        return asks

    def one(ask, at_once, places=None, give_back=True):
        places = places or threading.Lock()

        def asks(messages):
            places.acquire()
            answer = ask(messages)
            if give_back:
                places.release()
            return answer

        return asks

    def twice(ask, at_once):
        return one(ask, at_once, threading.Semaphore(at_once))

    def never(ask, at_once):
        return one(ask, at_once, threading.Semaphore(at_once), give_back=False)

    for wrong, why in ((lambda ask, at_once: ask, "anew for each request"), (each_time, "anew for each request"),
                       (one, "only 1 was on its way"), (twice, "nobody gets in any more"), (never, "some still wait"),
                       (lambda ask, at_once: None, "should return a function"),
                       (lambda ask, at_once: lambda: ask(""), "TypeError")):  # fmt: skip
        assert why in serving.limited_clients(wrong).message


def test_09_wrong_answers_are_told_why():
    shape = SHAPES["SmolLM2-135M"]
    best = {"speed": 1e12, "shape": shape}
    lora = 1e12 / (4 * shape.block_weights)
    right = lora * 4 / 6
    for wrong, why in ((lora, "LoRA's"), (2 * lora, "forward pass alone"), (lora / 2, "checkpointing here"), (7, "Count 2N"),
                       (lora * 6 / 4, "upside down")):  # fmt: skip
        verdict = speed.ceilings(wrong, right, **best).message
        assert verdict.startswith("full: ") and why in verdict
    for wrong, why in ((lora, "second time"), (lora / 2, "only the forward pass")):
        assert why in speed.ceilings(right, wrong, **best).message

    def rung(name, tokens, precision="bf16"):
        return {"name": name, "tokens_per_second": tokens, "chosen": {"precision": precision}}

    ladder = {"found": [rung("start", 100, "fp32"), rung("bf16", 300), rung("more", 500), rung("most", 510)],
              "ceiling": {"fp32": 200, "bf16": 1000}}  # fmt: skip
    assert speed.best_levers("bf16", "more", **ladder).state == "right"
    for faster, closer, why in (("most", "more", "stands highest"), ("more", "more", "below it"), ("start", "more", "starts there"),
                                ("fast", "more", "no rung is called"), ("bf16", "bf16", "-20.0 points"),
                                ("bf16", "most", "+1.0 points")):  # fmt: skip
        assert why in speed.best_levers(faster, closer, **ladder).message

    curve = {
        "known": {1000: 100.0, 2000: 190.0, 4000: 199.0, 8000: 200.0},
        "own": lambda: {8: 1.0, 16: 5.0},
        "share": 0.95,
    }

    def ordered(curve):
        return next(n for n, s in curve.items() if s >= 0.95 * max(curve.values()))

    def last(curve):
        return min(n for n, s in curve.items() if s >= 0.95 * list(curve.values())[-1])

    for wrong, why in ((lambda c: max(c, key=c.get), "nearly as fast"), (last, "falls at its end"), (ordered, "another order"),
                       (lambda c: 4000, "the fewest tokens per step"), (lambda c: None, "you give None"),
                       (min, "95 % of the best")):  # fmt: skip
        assert why in speed.knee(wrong, **curve).message
    assert (
        "the knee is at 16"
        in speed.knee(lambda c: min(n for n in c if c[n] >= 0.95 * max(c.values())), **curve).message
    )
