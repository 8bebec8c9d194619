"""The speed that the doctor measures is the one that training can use."""

from helpers.doctor import trials

import pytest
import torch


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_speed_is_measured_with_every_thread_of_a_training(monkeypatch, threads):
    used = []

    class Timer:
        times = [1.0]

        def __init__(self, statement, globals, num_threads=1):
            used.append(num_threads)

        def blocked_autorange(self, min_run_time):
            return self

    monkeypatch.setattr(trials, "Timer", Timer)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert trials.speed()["bf16"] > 0 and used == [threads] * 3
