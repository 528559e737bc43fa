"""What tests of packed operators share."""

import pytest

from hebbline.export.foreign.expansions import trial


@pytest.fixture
def packed_is_faster(monkeypatch):
    """What is tested is the form, which time on small layers does not choose."""
    found = trial._quartiles
    monkeypatch.setattr(trial, "_quartiles", lambda *given: [1e9, *found(*given)[1:]])
