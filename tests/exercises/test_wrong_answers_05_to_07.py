"""The usual wrong answers to the exercises of 05 to 07 are told why."""

from helpers import models
from helpers.data import Example, encode
from helpers.exercises import devices, four_bit
from helpers.exercises import inference as using
from helpers.sources import resolve

import torch
from peft import get_peft_model


def test_05_wrong_answers_are_told_why(runs):
    def load():
        return models.load_trained(runs.settings("lora")).eval()

    def both(model, factor):
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.data *= factor

    assert "0.25 of the update is left. B A is a product" in using.scaled_adapter(both, load=load).message
    assert "1.00 of the update" in using.scaled_adapter(lambda model, factor: model, load=load).message
    assert "no adapter left" in using.scaled_adapter(lambda model, _: model.merge_and_unload(), load=load).message


def test_05_a_fine_tune_of_ones_own_is_inspected(tiny, runs, tmp_path):
    talk = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Ember."}]

    def verdict(folder, talk=talk):
        return using.own_fine_tune(str(folder), talk, settings=tiny)

    assert "no adapter_config.json" in verdict(tmp_path).message
    model = get_peft_model(models.load_base(resolve(tiny), "fp32"), models.adapter_config(tiny))
    model.save_pretrained(tmp_path / "untrained")
    assert "before it was trained" in verdict(tmp_path / "untrained").message
    assert "end with a question and its answer" in verdict(tmp_path / "untrained", talk[:1]).message
    ids = torch.tensor([encode(Example(talk), models.load_tokenizer(resolve(tiny))).input_ids])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for sign, words in ((-1, "nothing that helps"), (1, "the model replies")):
        for _ in range(8):
            (sign * model(input_ids=ids, labels=ids).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(tmp_path / "trained")
        assert words in verdict(tmp_path / "trained").message, words
        for name, value in model.named_parameters():
            value.data *= 0 if "lora_B" in name else 1
        optimizer.state.clear()


def test_06_wrong_answers_are_told_why(solved):
    names = solved("06_qlora")[1]
    W, update, levels = (names[name] for name in ("W", "update", "levels"))
    quantiser = {name: names[name] for name in ("quantise", "dequantise")}
    bits = {"quantise": names["quantise"], "levels": levels, "block": 32, "group": 256}
    for wrong, why in ((5, "fp32 number for each"), (4.25, "have a scale too"), (4, "for each weight, each block")):
        assert why in four_bit.bits_a_weight(wrong, **bits).message
    held = names["dequantise"](names["codes"], names["scales"], levels, W.shape)
    again = names["dequantise"](*names["quantise"](held + update, levels), levels, W.shape)
    given = {"original": W, "codes": names["codes"], "scales": names["scales"], "levels": levels, "update": update}
    for wrong, why in ((W + update, "never on these weights"), (again, "fall back"), (held, "without the adapter"),
                       (held - update, "did the adapter see"), (again.T[:8], "its shape is"),
                       (names["codes"].tolist(), "class Tensor")):  # fmt: skip
        assert why in four_bit.merged_right(wrong, **given, **quantiser).message
    given = {"weight": W, "levels": levels}
    for wrong, why in ((levels, "closest to all"), (torch.linspace(-1, 1, 15), "NF4's"), (levels.flip(0), "ascend"),
                       (torch.linspace(-1, 1, 32), "4 bits can name 16")):  # fmt: skip
        assert why in four_bit.better_levels(wrong, **given, **quantiser).message


def test_07_wrong_answers_are_told_why(solved):
    names = solved("07_multi_gpu")[1]
    each, fewest, card = names["each"], names["fewest"], names["model_70b"] | {"devices": 8}
    for wrong, why in ((8 * each, "together"), (each * 3 / 4, "master copies"), (each / 2, "2 + 2 + 4 + 8")):
        assert why in devices.fewest_devices(wrong, fewest, **card).message
    for wrong, why in (
        (fewest - 1, "are not divided"),
        (fewest + 1, "one device fewer"),
        (1.5, "whole number"),
    ):
        assert why in devices.fewest_devices(each, wrong, **card).message
    assert devices.fewest_devices(140, fewest, **card).state == "right"  # 70 billion, as the name says

    n = (names["n0"], names["n1"])
    means = {"parts": (names["eight"][:4], names["eight"][4:]), "load": names["fresh"], "gradient": names["gradient"]}
    for wrong, why in (((1, 1), "mean of means"), ([k / sum(n) for k in n], "divides by 2"), ((2, 0), "sums over tokens"),
                       ([1], "2 factors")):  # fmt: skip
        assert why in devices.factors_of_means(wrong, **means).message
