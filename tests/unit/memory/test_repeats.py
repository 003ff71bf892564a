"""Which layers need not be built."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plan_llama.memory.repeats import stretches


def left_out(layers: str) -> int:
    return sum(stretch.left_out * stretch.period for stretch in stretches(layers))


@given(
    st.lists(
        st.text("ab", min_size=1, max_size=4).flatmap(lambda s: st.integers(1, 9).map(lambda n: s * n)),
        max_size=5,
    )
)
def test_every_layer_is_built_or_like_one_that_is(parts: list[str]) -> None:
    layers = "".join(parts)
    reached = 0
    for stretch in stretches(layers):
        assert stretch.first == reached
        built = stretch.first + stretch.built
        for il in range(built, stretch.end):
            assert layers[il] == layers[il - stretch.period]
            assert stretch.period <= stretch.built
        reached = stretch.end
    assert reached == len(layers)


@given(st.text("ab", min_size=1, max_size=40))
def test_the_last_layer_is_built(layers: str) -> None:
    assert stretches(layers)[-1].built >= 1
    assert stretches(layers)[-1].left_out == 0


def test_a_long_run_is_built_four_times() -> None:
    assert (
        left_out("d" * 3 + "m" * 75) == 69
    )  # and the last two: inputs are read for the last time in a run's last
    assert left_out("m" * 6) == 0
    assert left_out("m" * 7) == 1


def test_kinds_that_take_turns_repeat_as_a_group() -> None:
    # 62 layers of Gemma 3: five behind a window, one with the whole context
    assert left_out("wwwwwf" * 10 + "ww") == 30
    assert left_out("rrra" * 10) == 16
