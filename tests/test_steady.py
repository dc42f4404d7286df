"""Steady attention against the stock one, and against itself in other company."""

import pytest
import torch
import torch.nn.functional as F

from saccade.models.steady import LEAST_ROWS, attended, filled

ROWS, SHARED, SIZE, COLUMNS = 9, 2, 16, 90


def states(group: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (rows, q, heads, size); keys and values (rows, shared heads, columns, size)."""
    torch.manual_seed(group)
    query = 2 * torch.randn(ROWS, width, SHARED * group, SIZE)
    key, value = torch.randn(2, ROWS, SHARED, COLUMNS, SIZE)
    return query, key, value


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
    query, key, value = states(group, width)
    seen = mask(ROWS, width, COLUMNS, 7)
    stock = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=seen, scale=0.25, enable_gqa=True
    ).transpose(1, 2)
    found = attended(query, key, value, seen, scaling=0.25)
    torch.testing.assert_close(found, stock, rtol=0, atol=2e-6)
    monkeypatch.setattr("saccade.models.steady.SCORES", 1)
    pieces = attended(query, key, value, seen, scaling=0.25)
    torch.testing.assert_close(pieces, stock, rtol=0, atol=2e-6)
    loose = attended(*(t.double() for t in (query, key, value)), seen, scaling=0.25)
    torch.testing.assert_close(loose.float(), stock, rtol=0, atol=2e-6)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL")
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 5, 40, 80])
@pytest.mark.parametrize("read", [0, 64])
def test_hidden_columns_and_other_rows_change_no_bit(group: int, length: int, read: int) -> None:
    """Whether few columns are filled up, or more are read and hidden, is the same too."""
    query, key, value = states(group, 1)
    seen = mask(ROWS, 1, COLUMNS, COLUMNS - length)
    together = attended(query, key, value, seen, scaling=0.25)
    columns = max(read, length)
    own = slice(COLUMNS - columns, COLUMNS)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = attended(
            query[one],
            key[one, :, own],
            value[one, :, own],
            mask(1, 1, columns, columns - length),
            scaling=0.25,
        )
        assert torch.equal(alone[0], together[row])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL")
def test_queries_of_a_longer_neighbour_change_no_bit() -> None:
    query, key, value = states(2, 7)
    together = attended(query, key, value, mask(ROWS, 7, COLUMNS, 3), scaling=0.25)
    alone = attended(query[:, -1:], key, value, mask(ROWS, 1, COLUMNS, 3), scaling=0.25)
    assert torch.equal(alone, together[:, -1:])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL")
@pytest.mark.parametrize("shape", [(128, 384), (384, 128), (1176, 96), (96, 96)])
def test_a_product_of_few_rows_is_that_of_many_to_the_bit(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(shape), torch.randn(300, shape[0])
    many = rows @ weight
    for count in (1, 2, 5, LEAST_ROWS - 1, LEAST_ROWS, 17, 100):
        assert torch.equal((filled(rows[:count]) @ weight)[:count], many[:count])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL")
@pytest.mark.parametrize("columns", [193, 200, 384, 400, 700])
@pytest.mark.parametrize("hidden", [1, 3, 50])
def test_hidden_columns_before_a_long_context_change_no_bit(columns: int, hidden: int) -> None:
    torch.manual_seed(columns)
    query = 2 * torch.randn(ROWS, 1, 2 * SHARED, SIZE)
    key, value = torch.randn(2, ROWS, SHARED, columns, SIZE)
    seen = mask(ROWS, 1, columns, hidden)
    together = attended(query, key, value, seen, scaling=0.25)
    alone = attended(
        query[:1], key[:1, :, hidden:], value[:1, :, hidden:], seen[:1, ..., hidden:], scaling=0.25
    )
    assert torch.equal(alone[0], together[0])
