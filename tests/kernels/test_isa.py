"""The instruction set that the library names is the one that its kernels take, or refuse."""

from pathlib import Path

import numpy as np
import pytest
from packed import LAYOUTS, make_layer, make_model, open_session

from hebbline.artifacts import InputError
from hebbline.kernels.isa import kernels_isa

NAMES = ("scalar", "avx2", "avx2-vnni", "avx512", "amx", "amx-emulated")


def test_the_best_is_used_unless_the_variable_names_another(monkeypatch):
    monkeypatch.delenv("HEBBLINE_ISA", raising=False)
    best = kernels_isa()
    flags = Path("/proc/cpuinfo").read_text().split()
    expected = "amx" if "amx_int8" in flags else "avx512" if "avx512_vbmi2" in flags else None
    narrow = "avx2-vnni" if "avx_vnni" in flags else "avx2" if "avx2" in flags else "scalar"
    assert best == (expected or narrow)
    monkeypatch.setenv("HEBBLINE_ISA", "scalar")
    assert kernels_isa() == "scalar"


@pytest.mark.parametrize("isa", [*NAMES, "sse"])
def test_kernels_refuse_exactly_what_is_refused_here(isa, monkeypatch):
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    layout = LAYOUTS["bitmask"]
    weight, mask = make_layer(layout, (16, 32), 0.5)
    model = make_model(layout, layout.encode(weight, mask), 32, function=False)
    try:
        assert kernels_isa() == isa
    except InputError as error:
        assert isa in ("amx", "avx512", "avx2-vnni", "avx2", "sse")
        assert "HEBBLINE_ISA" in str(error)
        with pytest.raises(Exception, match="HEBBLINE_ISA"):
            open_session(model)
    else:
        assert np.isfinite(open_session(model).run(None, {"X": np.ones((1, 2, 32), np.float32)})[0]).all()
