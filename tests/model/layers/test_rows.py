import pytest
import torch

from kalm_cache.model.layers.rows import bidirectional_spans, causal_spans, pack_rows, pad_to_bucket


def seen(spans: torch.Tensor, slots: int) -> list[list[list[int]]]:
    """Spans (N, T, 4) as rows of zeros and ones, one a query."""
    return [
        [[int(a <= slot < b or c <= slot < d) for slot in range(slots)] for a, b, c, d in queries]
        for queries in spans.tolist()
    ]


def test_sequences_lie_end_to_end():
    rows = pack_rows([2, 1, 3])
    assert rows.sequence.tolist() == [0, 0, 1, 2, 2, 2]
    assert rows.position.tolist() == [0, 1, 0, 0, 1, 2]
    assert rows.longest == 3
    assert rows.first().tolist() == [0, 2, 3]
    assert rows.last().tolist() == [1, 2, 5]


def test_slots_are_places_in_a_padded_buffer_behind_an_offset():
    assert pack_rows([2, 1, 3]).slots(5).tolist() == [0, 1, 5, 10, 11, 12]
    assert pack_rows([2, 1, 3]).slots(5, 2).tolist() == [2, 3, 7, 12, 13, 14]


def test_one_sequence_of_one_token_is_one_row():
    rows = pack_rows([1])
    assert (rows.sequence.tolist(), rows.position.tolist(), rows.slots(1).tolist()) == ([0], [0], [0])


def test_padded_rows_repeat_the_last_one_and_leave_the_sequences_as_they_are():
    rows = pack_rows([9, 8]).padded()
    assert len(rows.position) == 32
    assert set(zip(rows.sequence[17:].tolist(), rows.position[17:].tolist(), strict=True)) == {(1, 7)}
    assert rows.slots(9).tolist() == [*range(17), *[16] * 15]
    assert (rows.lengths.tolist(), rows.last().tolist(), rows.longest) == ([9, 8], [8, 16], 9)


def test_padding_of_rows_that_are_a_common_number_changes_nothing():
    rows = pack_rows([10, 6])
    assert rows.padded().slots(10).tolist() == rows.slots(10).tolist()


def test_rounded_numbers_are_few_and_close():
    numbers = {count: pad_to_bucket(count) for count in range(1, 5000)}
    assert all(count <= number <= max(count + 15, 17 / 16 * count + 1) for count, number in numbers.items())
    assert len(set(numbers.values())) < 100
    assert [pad_to_bucket(count, 8) for count in (1, 8, 9, 100)] == [8, 8, 16, 104]


def test_an_even_window_sees_one_token_more_to_the_right_than_to_the_left():
    # 4: the token itself and 1 to the left, 2 to the right
    assert seen(bidirectional_spans(torch.tensor([5]), 4), 5) == [
        [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [0, 1, 1, 1, 1],
            [0, 0, 1, 1, 1],
            [0, 0, 0, 1, 1],
        ]
    ]


def test_an_odd_window_sees_as_far_left_as_right():
    assert seen(bidirectional_spans(torch.tensor([4]), 3), 4) == [
        [
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [0, 1, 1, 1],
            [0, 0, 1, 1],
        ]
    ]


def test_a_window_of_one_sees_the_token_itself():
    assert seen(bidirectional_spans(torch.tensor([3]), 1), 3) == [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]


@pytest.mark.parametrize("window", [None, 6, 100])
def test_a_window_as_wide_as_the_text_sees_all_of_each_sequence_and_no_padding(window: int | None):
    spans = bidirectional_spans(torch.tensor([3, 1]), window)
    assert seen(spans, 3)[0] == [[1, 1, 1]] * 3
    assert seen(spans, 3)[1][0] == [1, 0, 0]


def test_spans_are_what_native_code_reads():
    for spans in (
        bidirectional_spans(torch.tensor([3, 2]), 4),
        causal_spans(3, torch.tensor([1, 4]), past=4, prefix=0, window=None),
    ):
        assert spans.shape == (2, 3, 4)
        assert spans.dtype == torch.int32
        assert spans.is_contiguous()


def test_own_tokens_see_their_pooled_states_and_themselves_so_far():
    # slots: 3 of pooled states, of which the second pair has 1; then 3 own tokens, of which it has 2
    spans = causal_spans(3, torch.tensor([3, 1]), past=3, prefix=0, window=None)
    first, second = seen(spans, 6)
    assert first == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert second[:2] == [[1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0]]


def test_a_window_hides_own_tokens_and_never_a_pooled_state():
    spans = causal_spans(4, torch.tensor([1]), past=1, prefix=0, window=2)
    assert seen(spans, 5) == [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]]


def test_a_kept_prefix_counts_in_the_window():
    # slots: 3 prefix tokens, 2 pooled states, 4 own tokens (prompt tokens 3, 4, 5, 6); the window is 3 prompt tokens
    spans = causal_spans(4, torch.tensor([2]), past=5, prefix=3, window=3)
    assert seen(spans, 9) == [
        [
            [0, 1, 1, 1, 1, 1, 0, 0, 0],  # token 3 sees 1, 2, 3
            [0, 0, 1, 1, 1, 1, 1, 0, 0],  # token 4 sees 2, 3, 4
            [0, 0, 0, 1, 1, 1, 1, 1, 0],  # token 5 sees 3, 4, 5
            [0, 0, 0, 1, 1, 0, 1, 1, 1],  # token 6 sees 4, 5, 6
        ]
    ]


def test_without_a_window_all_of_a_kept_prefix_is_seen_and_its_padding_is_not():
    # the past of 4 slots holds 1 prefix token and 2 pooled states
    spans = causal_spans(2, torch.tensor([2]), past=4, prefix=1, window=None)
    assert seen(spans, 6) == [[[1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]]]


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("prefix", [0, 1, 4, 7])
def test_spans_equal_the_definition_slot_by_slot(prefix: int, window: int):
    own, pooled = [5, 1, 3], [2, 6, 1]
    past = prefix + 6
    spans = causal_spans(max(own), torch.tensor(pooled), past=past, prefix=prefix, window=window)
    rows = seen(spans, past + 5)
    for n in range(3):
        for token in range(own[n]):
            prompt_token = prefix + token
            visible = range(max(0, prompt_token - window + 1), prompt_token + 1)
            expected = [0] * (past + 5)
            for other in visible:
                expected[other if other < prefix else past + other - prefix] = 1
            expected[prefix : prefix + pooled[n]] = [1] * pooled[n]
            assert rows[n][token] == expected
