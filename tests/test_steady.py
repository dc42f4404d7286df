"""Steady attention against the stock one, and against itself in other company."""

from types import SimpleNamespace

import pytest
import torch

from saccade.models.steady import LEAST_ROWS, attend, filled, with_steady_attention
from saccade.models.tiny import build_model, build_tokenizer

ROWS, SHARED, SIZE, COLUMNS = 9, 2, 16, 90


def states(
    group: int, width: int
) -> tuple[SimpleNamespace, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(group)
    query = 2 * torch.randn(ROWS, SHARED * group, width, SIZE)
    key, value = torch.randn(2, ROWS, SHARED, COLUMNS, SIZE)
    module = SimpleNamespace(num_key_value_groups=group, is_causal=True)
    return module, query, key, value


def mask(rows: int, width: int, columns: int, hidden: int) -> torch.Tensor:
    """Additive (rows, 1, q, columns): nobody sees the first columns, nor what comes later."""
    column = torch.arange(columns)
    later = column > torch.arange(columns - width, columns)[:, None]
    return (
        torch.zeros(width, columns)
        .masked_fill(later | (column < hidden), -torch.inf)
        .expand(rows, 1, width, columns)
    )


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 5])
def test_steady_attention_is_the_stock_one_but_for_rounding(
    group: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, query, key, value = states(group, width)
    seen = mask(ROWS, width, COLUMNS, 7)
    stock, _ = attend(module, query, key, value, seen, scaling=0.25)
    found, _ = attend(module, query, key, value, seen, scaling=0.25, steady=True)
    torch.testing.assert_close(found, stock, rtol=0, atol=2e-6)
    monkeypatch.setattr("saccade.models.steady.SCORES", 1)
    pieces, _ = attend(module, query, key, value, seen, scaling=0.25, steady=True)
    torch.testing.assert_close(pieces, stock, rtol=0, atol=2e-6)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL")
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 5, 40, 80])
def test_hidden_columns_and_other_rows_change_no_bit(group: int, length: int) -> None:
    module, query, key, value = states(group, 1)
    together, _ = attend(
        module,
        query,
        key,
        value,
        mask(ROWS, 1, COLUMNS, COLUMNS - length),
        scaling=0.25,
        steady=True,
    )
    for row in range(ROWS):
        one = slice(row, row + 1)
        own = slice(COLUMNS - length, COLUMNS)
        alone, _ = attend(
            module,
            query[one],
            key[one, :, own],
            value[one, :, own],
            mask(1, 1, length, 0),
            scaling=0.25,
            steady=True,
        )
        assert torch.equal(alone[0], together[row])


def test_queries_without_keys_fill_up_and_get_zeros() -> None:
    module, query, key, value = states(2, 1)
    seen = mask(ROWS, 1, COLUMNS, 3)
    found, _ = attend(module, query, key[:4], value[:4], seen[:4], scaling=0.25, steady=True)
    alone, _ = attend(module, query[:4], key[:4], value[:4], seen[:4], scaling=0.25, steady=True)
    assert torch.equal(found[:4], alone)
    assert not found[4:].any()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL")
@pytest.mark.parametrize("shape", [(128, 384), (384, 128), (1176, 96), (96, 96)])
def test_a_product_of_few_rows_is_that_of_many_to_the_bit(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(shape), torch.randn(300, shape[0])
    many = rows @ weight
    for count in (1, 2, 5, LEAST_ROWS - 1, LEAST_ROWS, 17, 100):
        assert torch.equal((filled(rows[:count]) @ weight)[:count], many[:count])


def test_stock_calls_of_a_model_stay_as_they_were() -> None:
    tokenizer = build_tokenizer("What is the value of red?")
    model = build_model(tokenizer, seed=0, hidden=64, layers=1, vision=32, vision_layers=1).eval()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    told = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])}
    with torch.no_grad():
        before = model(**told).logits
        assert torch.equal(with_steady_attention(model)(**told).logits, before)
    assert not torch.equal(before[0, -1], before[1, -1])
