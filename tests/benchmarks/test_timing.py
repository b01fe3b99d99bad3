"""That what is compared takes turns, and that a short call is timed over many."""

from benchmarks.timing import in_turns, timed_in_turns, WARM_UP


def test_subjects_take_turns_after_each_has_warmed_up():
    calls = []

    def timer(name):
        return lambda number: calls.append(name) or 1.0

    timed_in_turns({"a": timer("a"), "b": timer("b")}, repeats=2, least_seconds=0.1)
    assert calls == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "b"] * 2


def test_a_timing_takes_as_many_calls_as_fill_its_least_time_by_the_fastest_warm_up():
    numbers, warm_up = [], iter((9.0, 0.1))  # the first call compiles

    def timer(number):
        numbers.append(number)
        return next(warm_up, 0.1)

    found = timed_in_turns({"a": timer}, repeats=1, least_seconds=1.0)
    assert numbers == [1] * WARM_UP + [10]
    assert found == {"a": [0.1]}


def test_a_time_is_that_of_one_call(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: next(clock) * 3.0)
    assert in_turns({"a": lambda: None}, repeats=2, least_seconds=12.0) == {"a": [0.75, 0.75]}
