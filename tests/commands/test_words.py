"""What commands say of measured speed: no word claims a gain that the machine did not show."""

from hebbline.benchmarks.linear import LinearRow
from hebbline.benchmarks.peers import PeerRow
from hebbline.commands.bench_linear import _conclude
from hebbline.commands.demo import _verdict

CELL = {"out_features": 64, "in_features": 96, "density": 0.5, "tokens": 8, "threads": 2, "isa": "avx2"}


def row(ratio):
    return LinearRow(**CELL, values="int8", layout="csr-int8", us=1, dense_us=ratio, ratio=ratio, max_rel_err=0)


def test_the_demo_names_what_does_not_pay():
    assert "avx2, sparse does not pay for this model in reading a prompt and generating" in _verdict(0.5, 0.9, "avx2")
    assert "in generating." in _verdict(2.2, 0.9, "avx2") and "in reading a prompt." in _verdict(0.3, 1.5, "scalar")
    assert "does not pay" not in _verdict(1.0, 1.5, "avx512")


def test_the_benchmark_of_layers_names_the_cells_that_do_not_pay(capsys):
    _conclude([row(0.9), row(1.4), PeerRow(**CELL, peer="a peer", us=1, dense_us=0.5, ratio=0.5)])
    printed = " ".join(capsys.readouterr().err.split())
    assert "on avx2 sparse does not pay in 1 cells: csr-int8 at 0.5, 8 tokens (0.90)" in printed
    _conclude([row(1.4)])
    assert "does not pay" not in capsys.readouterr().err
