"""Attention and the head under the address and undefined-behaviour sanitizers."""

import os
import subprocess

import pytest
from test_sanitized import build


@pytest.mark.timeout(1800)
def test_attention_and_head_touch_nothing_but_their_tensors():
    program = build("attention_check")
    environment = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}
    result = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("attention with blocks") >= 3 and "scalar head" in result.stdout
