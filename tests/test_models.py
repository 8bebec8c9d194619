"""Base models and adapters as loaded: anew each time, sizes checked, adapters bound to their base."""

from helpers.models import load_adapter, load_base, load_tokenizer
from helpers.settings import settings_for
from helpers.sources import ModelError, resolve
from helpers.sources import base_models as sources

import pytest
import torch


def test_the_base_is_read_anew_each_time(tiny):
    first, second = load_base(resolve(tiny)), load_base(resolve(tiny))
    with torch.no_grad():
        first.model.norm.weight.zero_()
    assert second.model.norm.weight.abs().sum() > 0


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_are_loaded_in_the_precision_of_the_arithmetic(method):
    assert load_base(resolve(settings_for("tiny", method)), "bf16").dtype == torch.bfloat16
    assert load_base(resolve(settings_for("tiny", method)), "fp32").dtype == torch.float32


def test_a_model_without_a_chat_template_is_refused(copied, tiny):
    (copied / "chat_template.jinja").unlink()
    (copied / sources.MANIFEST).unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(resolve(tiny.change(model=str(copied))))


def test_a_folder_without_an_adapter_says_which_notebook_makes_it(tmp_path, tiny):
    with pytest.raises(ModelError, match="run 02_lora_train"):
        load_adapter(load_base(resolve(tiny)), resolve(tiny), tmp_path)
