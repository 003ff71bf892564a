"""What holds for all tests."""

from __future__ import annotations

import gc

# The program never collects (plan_llama.__main__): it makes many small objects and hardly a cycle. At Python's own pace
# that takes a fifth of the tests' time.
gc.set_threshold(200_000, 20, 20)
