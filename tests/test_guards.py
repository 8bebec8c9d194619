"""Each guard catches the fault of a published walkthrough that it exists for, planted here on purpose."""

import copy
from dataclasses import replace

from helpers import guards
from helpers.batches import Collator
from helpers.data import Data, Example
from helpers.guards import GuardError, WeightWatch, batch_is_supervised
from helpers.models import adapter_config, load_base
from helpers.settings import IGNORED, settings_for
from helpers.sources import resolve
from helpers.training import train
from tests.shared import collate

import pytest
import torch
from peft import get_peft_model
from transformers import DataCollatorForLanguageModeling

FULL, LORA = settings_for("tiny", "full"), settings_for("tiny", "lora")


def fresh():
    return load_base(resolve(FULL), "fp32")


def wrapped(model=None):
    return get_peft_model(model or fresh(), adapter_config(LORA))


def test_lora_under_the_name_full_is_caught():
    base = fresh()
    wrapped(base)  # changes `base` in place, as the published page did before its "full" run
    with pytest.raises(GuardError, match="LoRA under the name full"):
        guards.trains_what_it_says(base, FULL)


def test_training_refuses_a_model_that_was_wrapped_before(tmp_path, data):
    base = fresh()
    wrapped(base)
    with pytest.raises(GuardError, match="LoRA under the name full"):
        train(FULL.change(runs_dir=str(tmp_path)), data, model=base)
    assert not (tmp_path / "tiny/full-s0/record.json").exists()


def test_training_refuses_weights_that_something_trained_before(tmp_path, data):
    base = fresh()
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight[0, 0] += 0.1
    with pytest.raises(GuardError, match="fresh base: model.layers.0.mlp.up_proj.weight"):
        train(FULL.change(runs_dir=str(tmp_path)), data, model=base)


def test_a_merged_model_is_not_a_fresh_base():
    model = wrapped()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data += 0.01
    with pytest.raises(GuardError, match="not the weight in the base model's files"):
        guards.is_fresh(model.merge_and_unload(), fresh())
    assert guards.is_fresh(fresh(), fresh()).name == "fresh base"


def test_a_second_adapter_or_a_thawed_weight_is_caught():
    model = wrapped()
    model.add_adapter("second", adapter_config(LORA))
    with pytest.raises(GuardError):
        guards.trains_what_it_says(model, LORA)
    model = wrapped()
    next(p for n, p in model.named_parameters() if "embed_tokens" in n).requires_grad = True
    with pytest.raises(GuardError, match="outside the adapter"):
        guards.trains_what_it_says(model, LORA)


def test_a_full_run_with_frozen_layers_is_caught():
    model = fresh()
    model.model.layers[0].requires_grad_(False)
    with pytest.raises(GuardError, match="full trains everything"):
        guards.trains_what_it_says(model, FULL)


def test_a_frozen_weight_that_changed_is_caught():
    model = wrapped()
    watch = WeightWatch(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value += 0.01 if "lora_" in name else 0
        model.get_base_model().model.norm.weight[3] += 0.01
    with pytest.raises(GuardError, match="frozen weights did not change: they differ"):
        watch.check(model)


def test_bf16_steps_that_move_nothing_are_caught():
    """A step of 4e-7 is lost in the rounding of bf16 weights, and not in fp32."""
    for dtype, moves in ((torch.bfloat16, False), (torch.float32, True)):
        model = fresh().to(dtype)
        with torch.no_grad():
            for value in model.parameters():
                value.fill_(0.5)
            watch = WeightWatch(model)
            for value in model.parameters():
                value -= 4e-7
        if moves:
            assert watch.check(model)[0].detail.startswith("100.00 %")
        else:
            with pytest.raises(GuardError, match="lost in rounding"):
                watch.check(model)


def _with(data: Data, example: Example) -> Data:
    return replace(data, train=[*data.train, example])


@pytest.mark.parametrize("elsewhere", [["embedding", "head"], ["embedding"]])
def test_a_shard_may_stay_as_it_was_but_not_a_whole_tensor(elsewhere):
    """The shard of an embedding that holds only tokens of no row gets no gradient."""
    model = torch.nn.Linear(4, 4)
    watch = WeightWatch(model)
    changed = [(0.5, ["head"]), (1.0, elsewhere)]
    if "head" in elsewhere:
        with pytest.raises(GuardError, match="1 trained tensors did not change at all, head first"):
            watch.check(model, changed)
    else:
        assert watch.check(model, changed)[0].detail.startswith("75.00 %")


def test_a_doubled_bos_is_caught(data, tokenizer):
    good = data.train[0]
    text = tokenizer.apply_chat_template(good.messages, tokenize=False)
    tokenizer_with_bos = copy.deepcopy(tokenizer)
    ids = [tokenizer_with_bos.bos_token_id, *tokenizer_with_bos(text, add_special_tokens=False)["input_ids"]]
    assert ids[:2] == [tokenizer.bos_token_id] * 2
    with pytest.raises(GuardError, match="one BOS"):
        guards.tokens_are_sound(_with(data, Example(good.messages, input_ids=ids, labels=ids)), tokenizer, 600)


def test_a_missing_eos_a_foreign_token_and_a_leak_are_caught(data, tokenizer):
    good = data.train[0]
    cut = replace(good, input_ids=good.input_ids[:-1], labels=good.labels[:-1])
    with pytest.raises(GuardError, match="EOS supervised"):
        guards.tokens_are_sound(_with(data, cut), tokenizer, 600)
    with pytest.raises(GuardError, match="tokens fit"):
        guards.tokens_are_sound(data, tokenizer, 100)
    with pytest.raises(GuardError, match="held-out questions are also trained on"):
        guards.tokens_are_sound(_with(data, data.test[0]), tokenizer, 600)


def test_guards_of_a_good_run_carry_their_numbers(runs):
    names = {g["name"]: g["detail"] for g in runs.lora.record.guards}
    assert "sha256" in names["frozen weights did not change"]
    assert f"{runs.lora.record.training['trainable']:,}" in names["only the adapter is trained"]
    assert "no adapter" in {g["name"]: g["detail"] for g in runs.full.record.guards}["full trains everything"]


def test_padding_and_eos_of_a_batch_are_checked(data, tokenizer):
    rows = data.train[:4]
    for collator in (Collator(False, 3, 8), Collator(True, 3, 640, 160)):
        batch = collate(rows, collator)
        assert "4 </s> labels in a batch of 4 rows" in batch_is_supervised(batch, rows, tokenizer).detail
        masked = dict(batch, labels=batch["labels"].masked_fill(batch["labels"] == tokenizer.eos_token_id, IGNORED))
        with pytest.raises(GuardError, match="never learn to stop"):
            batch_is_supervised(masked, rows, tokenizer)
        padded = dict(batch, labels=torch.where(batch["input_ids"] == 3, batch["input_ids"], batch["labels"]))
        with pytest.raises(GuardError, match="padding or a question takes part"):
            batch_is_supervised(padded, rows, tokenizer)


def test_a_collator_that_ignores_eos_with_the_padding_is_caught(data, tokenizer):
    """With padding = EOS, transformers' own collator ignores every EOS label; this project's keeps it among the labels."""
    rows = [{"input_ids": e.input_ids} for e in data.train[:4]]
    as_published = copy.deepcopy(tokenizer)
    as_published.pad_token = as_published.eos_token
    batch = DataCollatorForLanguageModeling(as_published, mlm=False)(rows)
    supervised = [replace(e, labels=e.input_ids) for e in data.train[:4]]
    with pytest.raises(GuardError, match="never learn to stop"):
        guards.batch_is_supervised(batch, supervised, as_published)


@pytest.mark.parametrize("changed", [{"lora_dropout": 0.3}, {"lora_alpha": 5}, {"use_rslora": True}])
def test_an_adapter_that_the_record_would_describe_wrongly_is_caught(changed):
    config = adapter_config(LORA)
    for name, value in changed.items():
        setattr(config, name, value)
    (name,) = changed
    with pytest.raises(GuardError, match=f"its {name} is .*change one of them"):
        guards.trains_what_it_says(get_peft_model(fresh(), config), LORA)
