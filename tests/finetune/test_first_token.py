"""The last layer trained for the first token only: the same answers and gradients, in every family that allows it."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from finetune.first_token import train_first_token
from tests.export.test_families import EXPORTED, FUSED, Family, build

ALL = list({str(one): one for one in [*EXPORTED, *FUSED]}.values())
NARROWED = {
    *("Bert", "Camembert", "Data2VecText", "Deberta", "DebertaV2", "Electra", "Ernie", "Esm", "MobileBert"),
    *("Roberta", "RobertaPreLayerNorm", "XLMRoberta", "XLMRobertaXL"),
}


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 60, (4, 11), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(11) < torch.tensor([[11], [7], [3], [2]])).long()
    return {"input_ids": ids, "attention_mask": mask}


def answer_and_gradients(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    answer: Any = model(**batch())
    logits = answer["logits"] if "logits" in answer else answer["start_logits"]
    (logits.float() ** 2).sum().backward()
    return logits.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("family", ALL, ids=str)
def test_answers_and_gradients_are_the_same(family: Family) -> None:
    model = build(family).eval()
    names = set(model.state_dict())
    logits, gradients = answer_and_gradients(model)
    narrowed = train_first_token(model)
    assert narrowed == (family.name in NARROWED and "SequenceClassification" in family.head)
    again, others = answer_and_gradients(model)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)
    assert others.keys() == gradients.keys()
    for name, one in gradients.items():
        torch.testing.assert_close(others[name], one, rtol=1e-3, atol=1e-5 * float(one.abs().max()) + 1e-7)
    assert set(model.state_dict()) == names
    assert not model.training
