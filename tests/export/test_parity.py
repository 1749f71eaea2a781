import numpy as np
import pytest

from export.parity import Batch, batch_deltas, compare, edge_cases, logits_of
from tasks import Encoded, TaskSpec, TextInput, Window, load_task

TASK = load_task(TaskSpec(task="single_label", labels=("a", "b"), max_length=32))


def windows_of(*lengths: int) -> list[Window]:
    return [Window(row, np.arange(1, n + 1), np.zeros(n, dtype=np.int64), False) for row, n in enumerate(lengths)]


def own_sum(batch: Batch) -> np.ndarray:
    """Of each row, its ids and their number: independent of the others."""
    mask = batch["attention_mask"]
    return np.stack([(batch["input_ids"] * mask).sum(1), mask.sum(1)], axis=1).astype(np.float32)


def padded_length(batch: Batch) -> np.ndarray:
    """What the longest neighbour decides."""
    return np.full((len(batch["input_ids"]), 2), batch["input_ids"].shape[1], dtype=np.float32)


def test_outputs_come_in_the_order_of_the_rows() -> None:
    lengths = (9, 2, 30, 2, 17)
    outputs = logits_of(own_sum, windows_of(*lengths), pad_id=0)
    assert [int(output[1]) for output in outputs] == list(lengths)


@pytest.mark.parametrize("group_rows", [1, 2, 4, 12])
def test_company_is_noticed(group_rows: int) -> None:
    rows = windows_of(2, 5, 9, 14, 20, 27)
    assert batch_deltas(own_sum, rows, 0, company=2, group_rows=group_rows).max() == 0
    deltas = batch_deltas(padded_length, rows, 0, company=2, group_rows=group_rows)
    assert deltas[0] == 25, "beside the longest"
    assert deltas[:-1].min() > 0
    assert deltas[-1] == 0, "the longest itself"


def test_longer_neighbours_take_turns() -> None:
    padded = []

    def engine(batch: Batch) -> np.ndarray:
        padded.append(batch["input_ids"].shape[1])
        return own_sum(batch)

    batch_deltas(engine, windows_of(*range(5, 85)), 0, company=1, group_rows=4)
    # of a group: each of its four rows alone, then all with the shortest, then with a longer one
    assert padded[5::6][:5] == [84, 66, 49, 34, 84]


def test_compare_counts_answers_and_deltas() -> None:
    reference = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 0.1])]
    candidate = [np.array([1.0, 0.5]), np.array([0.0, 1.0]), np.array([0.1, 0.0])]
    encoded = Encoded([TextInput("x")] * 3, windows_of(3, 3, 3))
    parity = compare(
        TASK,
        [row.astype(np.float32) for row in reference],
        [row.astype(np.float32) for row in candidate],
        encoded,
    )
    assert parity.max_delta == pytest.approx(0.5)
    assert parity.mean_delta == pytest.approx((0.25 + 0 + 0.1) / 3)
    assert parity.agreement == pytest.approx(2 / 3)
    assert parity.worst_rows(3) == [2, 0, 1], "changed answers first, then by |Δlogit|"


def test_deltas_of_an_input_are_those_of_all_its_windows_without_padding() -> None:
    windows = [
        Window(row, np.ones(n, dtype=np.int64), np.zeros(n, dtype=np.int64), False)
        for row, n in [(0, 2), (0, 4), (1, 3)]
    ]
    task = load_task(TaskSpec(task="single_label", labels=("a", "b"), max_length=32, options={"truncation": "windows"}))
    reference = [np.zeros(2, dtype=np.float32) for _ in windows]
    candidate = [np.array(row, dtype=np.float32) for row in ([0, 0.25], [0, -0.75], [0, 0.5])]
    parity = compare(task, reference, candidate, Encoded([TextInput("x"), TextInput("y")], windows))
    assert parity.deltas.tolist() == [0.75, 0.5]
    assert parity.same.tolist() == [True, False], "decided by the mean of the windows"


def test_outputs_of_tokens_come_without_padding() -> None:
    def by_token(batch: Batch) -> np.ndarray:
        return np.stack([batch["input_ids"], batch["attention_mask"]], axis=-1).astype(np.float32)

    outputs = logits_of(by_token, windows_of(3, 7, 5), pad_id=99)
    assert [output.shape for output in outputs] == [(3, 2), (7, 2), (5, 2)]
    assert all((output[:, 1] == 1).all() for output in outputs)


def test_edge_cases_cover_what_real_rows_do_not() -> None:
    batches = edge_cases(vocab_size=50, max_length=32, distinguishes_texts=True, seed=0)
    shapes = {batch["input_ids"].shape for batch in batches}
    assert {(1, 1), (33, 1), (1, 32), (33, 32)} <= shapes
    assert all(batch["attention_mask"][:, 0].all() for batch in batches)
    assert all(batch["input_ids"].min() >= 0 and batch["input_ids"].max() < 50 for batch in batches)
    holes = [batch for batch in batches if (np.diff(batch["attention_mask"], axis=1) > 0).any()]
    assert holes, "masks with holes"
    assert any(batch["token_type_ids"].any() for batch in batches)
    one_type = edge_cases(vocab_size=50, max_length=32, distinguishes_texts=False, seed=0)
    assert not any(batch["token_type_ids"].any() for batch in one_type)
