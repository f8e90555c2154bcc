"""The head of a task with classes."""

from __future__ import annotations

import pytest
import torch

from tsfm.errors import InputError
from tsfm.models.class_head import ClassHead


def test_a_new_head_says_what_the_sample_said_whatever_the_state() -> None:
    head = ClassHead(8, 3).eval()
    hidden, waited = torch.randn(5, 8), torch.rand(5) * 100
    even = torch.softmax(head(hidden, waited), -1)
    torch.testing.assert_close(even, torch.full((5, 3), 1 / 3))
    head.set_baseline(torch.tensor([0, 0, 0, 0, 1, 1]))  # none of the third class
    chances = torch.softmax(head(hidden, waited), -1)
    torch.testing.assert_close(chances, torch.tensor([5.0, 3.0, 1.0]).div(9).expand(5, 3))


def test_state_and_wait_both_reach_the_answer() -> None:
    torch.manual_seed(0)
    head = ClassHead(8, 3).eval()
    torch.nn.init.normal_(head.logits.weight)
    hidden, waited = torch.randn(5, 8), torch.rand(5) * 100
    answer = head(hidden, waited)
    assert not torch.isclose(head(hidden + 1, waited), answer).any()
    assert not torch.isclose(head(hidden, waited * 50 + 9), answer).any()


def test_no_points_give_no_answers() -> None:
    assert ClassHead(8, 3)(torch.zeros(0, 8), torch.zeros(0)).shape == (0, 3)


@pytest.mark.parametrize("label", [[-1, 0], [0, 3]])
def test_labels_of_no_class_are_refused(label: list[int]) -> None:
    with pytest.raises(InputError, match="bad_labels"):
        ClassHead(8, 3).set_baseline(torch.tensor(label))


def test_hours_of_any_precision_are_read_in_the_precision_of_the_weights() -> None:
    head = ClassHead(8, 3).eval()
    torch.nn.init.normal_(head.logits.weight)
    hidden, waited = torch.randn(5, 8), torch.arange(5.0)
    own = head(hidden, waited)
    torch.testing.assert_close(head(hidden, waited.double()), own)
    assert head.bfloat16()(hidden.bfloat16(), waited).dtype == torch.bfloat16
