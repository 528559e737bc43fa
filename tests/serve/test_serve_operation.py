"""The benchmark of what cancelling and restarting take, on a model of seconds."""

import re

from hebbline.benchmarks import serving_operation


def test_slots_are_free_and_models_back_again(long_artifact, capsys):
    serving_operation.main([str(long_artifact), "--slots", "2", "--cancels", "3", "--restarts", "1"])
    lines = capsys.readouterr().out.splitlines()
    freed, answered, back = (float(re.search(r"most (\d+\.\d)", line)[1]) for line in lines[1:])
    assert 0 <= freed <= answered < 5000 and 0 < back < 60
