"""Requests are run together, in order, each gets its own rows, and nobody waits for what does not come."""

import threading
import time

import numpy as np
import pytest

from paddleseg_ext.service.batching import Batcher, BatchOptions, Closed, QueueFull


class Recording:
    """A model that gives its input back, says what it ran, and can be held."""

    def __init__(self, held=False):
        self.runs, self.going, self.go = [], threading.Semaphore(0), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, inputs):
        self.runs.append([x.shape for x in inputs])
        self.going.release()
        assert self.go.wait(20)
        return [inputs[0] + 1, inputs[0].sum(axis=tuple(range(1, inputs[0].ndim)))]


def rows(start, count, width=3):
    return [np.arange(start, start + count, dtype="float32")[:, None].repeat(width, 1)]


def results(futures):
    return [future.result(20) for future in futures]


def test_what_waits_is_run_together_and_each_gets_its_own_rows():
    model = Recording(held=True)
    batcher = Batcher([model], BatchOptions(max_rows=8, wait_seconds=0))
    first = batcher.submit(rows(0, 1))
    assert model.going.acquire(timeout=10)
    futures = [batcher.submit(rows(10 * i, count)) for i, count in enumerate([3, 2, 3, 1], 1)]
    model.go.set()
    for start, count, (given, sums) in zip(
        [0, 10, 20, 30, 40], [1, 3, 2, 3, 1], results([first, *futures]), strict=True
    ):
        np.testing.assert_array_equal(given, rows(start, count)[0] + 1)
        np.testing.assert_array_equal(sums, 3 * rows(start, count)[0][:, 0])
    assert model.runs == [[(1, 3)], [(8, 3)], [(1, 3)]]
    batcher.close()


def test_only_requests_of_one_shape_and_type_go_together_and_in_order():
    model = Recording(held=True)
    batcher = Batcher([model], BatchOptions(max_rows=8, wait_seconds=0))
    held = batcher.submit(rows(0, 1))
    assert model.going.acquire(timeout=10)
    asked = [rows(1, 2), rows(2, 2), rows(3, 2, width=4), [rows(4, 2)[0].astype("float64")], rows(5, 2)]
    futures = [batcher.submit(inputs) for inputs in asked]
    model.go.set()
    for inputs, (given, _) in zip(asked, results(futures), strict=True):
        np.testing.assert_array_equal(given, inputs[0] + 1)
    assert model.runs == [[(1, 3)], [(4, 3)], [(2, 4)], [(2, 3)], [(2, 3)]]
    held.result(20)
    batcher.close()


def test_a_run_waits_for_more_until_it_is_full():
    model = Recording()
    batcher = Batcher([model], BatchOptions(max_rows=4, wait_seconds=15))
    began = time.monotonic()
    results([batcher.submit(rows(i, 1)) for i in range(4)])
    assert model.runs == [[(4, 3)]] and time.monotonic() - began < 10
    batcher.close()


def test_a_run_that_is_not_full_starts_when_its_time_is_over():
    model = Recording()
    batcher = Batcher([model], BatchOptions(max_rows=4, wait_seconds=0.2))
    began = time.monotonic()
    batcher.submit(rows(0, 1)).result(20)
    assert 0.2 <= time.monotonic() - began < 5
    batcher.close()


def test_a_large_request_is_run_in_parts():
    model = Recording()
    batcher = Batcher([model], BatchOptions(max_rows=4))
    given, sums = batcher.submit(rows(0, 10)).result(20)
    np.testing.assert_array_equal(given, rows(0, 10)[0] + 1)
    assert model.runs == [[(4, 3)], [(4, 3)], [(2, 3)]] and sums.shape == (10,)
    batcher.close()


def test_several_predictors_run_at_once():
    models = [Recording(held=True), Recording(held=True)]
    batcher = Batcher(models, BatchOptions(max_rows=1, wait_seconds=0))
    futures = [batcher.submit(rows(i, 1)) for i in range(2)]
    assert all(model.going.acquire(timeout=10) for model in models)
    for model in models:
        model.go.set()
    results(futures)
    batcher.close()


def test_a_model_without_a_batch_dimension_runs_one_request_at_a_time():
    model = Recording(held=True)
    batcher = Batcher([model], BatchOptions(max_rows=2), batched=False)
    futures = [batcher.submit(rows(i, 5)) for i in range(3)]
    model.go.set()
    results(futures)
    assert model.runs == [[(5, 3)]] * 3
    batcher.close()


def test_the_queue_is_bounded_and_what_was_cancelled_makes_room_and_is_not_run():
    model = Recording(held=True)
    batcher = Batcher([model], BatchOptions(max_rows=1, wait_seconds=0, capacity=2))
    futures = [batcher.submit(rows(0, 1))]
    assert model.going.acquire(timeout=10)
    futures += [batcher.submit(rows(i, 1)) for i in (1, 2)]
    assert len(batcher) == 2
    with pytest.raises(QueueFull):
        batcher.submit(rows(3, 1))
    assert futures.pop(1).cancel()
    futures.append(batcher.submit(rows(4, 1)))
    model.go.set()
    assert [given[0, 0] for given, _ in results(futures)] == [1, 3, 5] and len(model.runs) == 3
    batcher.close()


def test_the_request_that_makes_the_model_fail_is_the_only_one_to_suffer():
    going, go = threading.Event(), threading.Event()

    def model(inputs):
        going.set()
        assert go.wait(20)
        if (inputs[0] == 2).any():
            raise RuntimeError("two")
        return inputs

    batcher = Batcher([model], BatchOptions(max_rows=8, wait_seconds=0))
    futures = [batcher.submit(rows(0, 1))]
    assert going.wait(10)
    futures += [batcher.submit(rows(i, 1)) for i in (1, 2, 3)]
    go.set()
    assert isinstance(futures[2].exception(20), RuntimeError)
    for i in (0, 1, 3):
        np.testing.assert_array_equal(futures[i].result(20)[0], rows(i, 1)[0])
    batcher.close()


def test_a_model_that_gives_rows_of_its_own_number_is_not_shared_out():
    going, go = threading.Event(), threading.Event()

    def model(inputs):
        going.set()
        assert go.wait(20)
        return [inputs[0][:1]]

    batcher = Batcher([model], BatchOptions(max_rows=8, wait_seconds=0))
    first = batcher.submit(rows(0, 1))
    assert going.wait(10)
    futures = [batcher.submit(rows(i, 1)) for i in (1, 2)]
    go.set()
    assert [future.result(20)[0][0, 0] for future in [first, *futures]] == [0, 1, 2]
    batcher.close()


def test_closing_finishes_what_was_accepted_and_refuses_the_rest():
    model = Recording(held=True)
    batcher = Batcher([model], BatchOptions(max_rows=1, wait_seconds=0))
    futures = [batcher.submit(rows(i, 1)) for i in range(3)]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    end = time.monotonic() + 10
    with pytest.raises(Closed):
        while time.monotonic() < end:
            batcher.submit(rows(9, 1)).cancel()
    model.go.set()
    assert [given[0, 0] for given, _ in results(futures)] == [1, 2, 3]
    closer.join(10)
    assert not closer.is_alive()
